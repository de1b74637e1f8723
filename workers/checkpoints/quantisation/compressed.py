"""compressed-tensors, which llm-compressor writes: a scheme for each group of modules.

https://github.com/vllm-project/compressed-tensors. Numbers of 4 or 8 bits are packed in int32, above zero,
the first in the lowest bits (`pack-quantized`); others lie as they are (`int-quantized`, `float-quantized`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from workers.checkpoints.files import refuse
from workers.checkpoints.quantisation import fp4, fp8
from workers.checkpoints.quantisation.scheme import (
    Find,
    Orders,
    Parts,
    Scheme,
    Stored,
    group_format,
    matches,
    strings,
)

UNUSED = (*fp8.BESIDE, ".weight_shape", ".input_global_scale", ".q_scale")
SCALES = ("F16", "BF16", "F32")


class Weights(msgspec.Struct, kw_only=True):
    """How the weights of a group are quantised."""

    num_bits: int
    type: Literal["int", "float"] = "int"
    symmetric: bool = True
    strategy: str | None = None
    group_size: int | None = None
    block_structure: list[int] | str | None = None
    actorder: str | bool | None = None
    dynamic: bool | str = False


class Group(msgspec.Struct, kw_only=True):
    """Modules that are quantised alike."""

    targets: list[str]
    weights: Weights | None = None
    format: str | None = None


class Compressed(msgspec.Struct, kw_only=True):
    """The `quantization_config` itself."""

    config_groups: dict[str, Group]
    format: str | None = None
    ignore: list[str] | None = None
    quantization_status: str | None = None
    sparsity_config: dict[str, Any] | None = None
    transform_config: dict[str, Any] | None = None


class _Target(NamedTuple):
    targets: tuple[str, ...]
    find: Find


def read(path: Path, given: Mapping[str, Any]) -> Scheme:
    """The scheme of `quantization_config`."""
    try:
        says = msgspec.convert(given, Compressed)
    except msgspec.ValidationError as error:
        refuse(path, f"quantization_config: {error}")
    if says.quantization_status not in (None, "compressed", "frozen"):
        refuse(path, f"quantization_config.quantization_status {says.quantization_status} is not supported")
    if (says.sparsity_config or {}).get("format", "dense") != "dense":
        refuse(path, f"quantization_config.sparsity_config {says.sparsity_config['format']} is not supported")
    if says.transform_config and says.transform_config.get("config_groups"):
        refuse(path, "quantization_config.transform_config is not supported")
    found, titles = [], []
    for group in says.config_groups.values():
        if group.weights is not None:
            title, find = _group(path, group.format or says.format, group.weights)
            titles.append(title)
            found.append(_Target(strings(path, "targets", group.targets), find))
    if not found:
        refuse(path, "quantization_config.config_groups has no weights")

    def find(stored: Stored, module: str, shape: tuple[int, int]) -> Parts | None:
        for targets, one in found:
            if "Linear" in targets or matches(module, targets):
                return one(stored, module, shape)
        return None

    skipped = strings(path, "ignore", says.ignore)
    return Scheme(f"compressed-tensors {' and '.join(dict.fromkeys(titles))}", find, skipped, UNUSED)


def _group(path: Path, layout: str | None, weights: Weights) -> tuple[str, Find]:
    """What a group is called, and how the parts of its weights are found."""
    if weights.dynamic:
        refuse(path, "quantization_config: weights that are quantised dynamically are not supported")
    bits, strategy = weights.num_bits, weights.strategy or ("group" if weights.group_size else "tensor")
    match layout, weights.type, bits, strategy:
        case "nvfp4-pack-quantized", "float", 4, _:
            return "nvfp4", _nvfp4
        case "mxfp4-pack-quantized", "float", 4, _:
            return "mxfp4", fp4.mxfp4
        case "float-quantized" | "naive-quantized", "float", 8, "tensor" | "channel":
            return "fp8", fp8.in_rows
        case "float-quantized" | "naive-quantized", "float", 8, "block" if weights.block_structure in (
            [fp8.BLOCK, fp8.BLOCK],
            "128x128",
        ):
            return "fp8 in blocks", fp8.in_blocks
        case "int-quantized" | "naive-quantized", "int", 8, "tensor" | "channel" if weights.symmetric:
            return "int8", _int8
        case "pack-quantized", "int", 4 | 8, "group" | "channel" if bits == 4 or weights.symmetric:
            if weights.actorder not in (None, False, "weight", "static", "group", "dynamic"):
                refuse(path, f"quantization_config: actorder {weights.actorder} is not supported")
            return f"int{bits}", partial(_packed, path, weights, Orders())
    more = "" if weights.symmetric else ", asymmetric"
    refuse(
        path,
        f"quantization_config: format {layout or 'none'} with weights of {weights.type} {bits}, by {strategy}"
        f"{more}, is not supported",
    )


def _nvfp4(stored: Stored, module: str, shape: tuple[int, int]) -> Parts:
    return fp4.nvfp4(stored, module, shape, "weight_packed", "weight_global_scale", "nvfp4_divided")


def _int8(stored: Stored, module: str, shape: tuple[int, int]) -> Parts:
    weight = stored.need(f"{module}.weight", ["I8"], shape)
    scales = fp8.row_scales(stored, f"{module}.weight_scale", shape[0])
    return Parts("INT8_ROW", "scaled_rows", (weight, scales))


def _packed(
    path: Path, weights: Weights, orders: Orders, stored: Stored, module: str, shape: tuple[int, int]
) -> Parts:
    rows, columns = shape
    bits, packed = weights.num_bits, 32 // weights.num_bits
    size = weights.group_size if weights.group_size and weights.strategy != "channel" else columns
    if size < 1 or columns % size or columns % packed:
        refuse(path, f"the weight of {module}, {list(shape)}, is not made of groups of {size}")
    groups = columns // size
    numbers = stored.need(f"{module}.weight_packed", ["I32"], (rows, columns // packed))
    scales = stored.need(f"{module}.weight_scale", SCALES, (rows, groups))
    sources = [numbers, scales]
    if not weights.symmetric:
        zeros = (-(-rows // packed), groups)
        sources.append(stored.need(f"{module}.weight_zero_point", ["I32"], zeros))
    exact = bits == 4 and weights.symmetric and scales.dtype == "F16" and size % 32 == 0
    kept = "Q4_0" if exact else group_format(f"INT{bits}", size, columns)
    if bits == 8 and groups == 1:
        kept = "INT8_ROW"
    if kept is None:
        refuse(path, f"the weight of {module}, {list(shape)}, has groups of {size}, which is not supported")
    is_said = weights.actorder in ("group", "dynamic")
    order = orders.find(stored, f"{module}.weight_g_idx", columns, size, is_said=is_said)
    return Parts(kept, f"packed_{bits}", tuple(sources), order)
