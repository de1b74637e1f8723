"""FP8 (e4m3): numbers of one byte, with a scale for each block of 128 x 128, each row, or the whole weight.

Written by transformers (`quant_method: fp8`), as DeepSeek-V3 and Qwen3 are published, and by vLLM's
exporters, which call the scale `weight_scale`. https://arxiv.org/abs/2412.19437, section 3.3
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.checkpoints.files import refuse
from workers.checkpoints.quantisation.scheme import Parts, Scheme, Stored, only, reshaped, strings
from workers.checkpoints.safetensors import Tensor

BLOCK = 128
SCALES = ("F32", "BF16", "F16")
BESIDE = (".input_scale", ".activation_scale", ".k_scale", ".v_scale", ".kv_scale", ".output_scale")


def read(path: Path, given: Mapping[str, Any]) -> Scheme:
    """The scheme of `quantization_config`."""
    only(path, given, "fmt", "e4m3", "float8_e4m3fn")
    blocks = given.get("weight_block_size")
    if blocks not in (None, [BLOCK, BLOCK]):
        refuse(path, f"quantization_config.weight_block_size {blocks} is not supported; {[BLOCK, BLOCK]} is")

    def find(stored: Stored, module: str, shape: tuple[int, int]) -> Parts:
        return in_blocks(stored, module, shape) if blocks else in_rows(stored, module, shape)

    skipped = (
        *strings(path, "modules_to_not_convert", given.get("modules_to_not_convert")),
        *strings(path, "ignored_layers", given.get("ignored_layers")),
    )
    return Scheme(
        "FP8, " + ("in blocks of 128 x 128" if blocks else "with a scale a row"), find, skipped, BESIDE
    )


def in_blocks(stored: Stored, module: str, shape: tuple[int, int]) -> Parts:
    """A weight with a scale for each block."""
    rows, columns = shape
    weight = stored.need(f"{module}.weight", ["F8_E4M3"], shape)
    blocks = (-(-rows // BLOCK), -(-columns // BLOCK))
    return Parts("FP8_128", "fp8_blocks", (weight, stored.need(_scale(stored, module), SCALES, blocks)))


def in_rows(stored: Stored, module: str, shape: tuple[int, int]) -> Parts:
    """A weight with a scale for each row, or one for all."""
    weight = stored.need(f"{module}.weight", ["F8_E4M3"], shape)
    return Parts("FP8_ROW", "scaled_rows", (weight, row_scales(stored, _scale(stored, module), shape[0])))


def row_scales(stored: Stored, name: str, rows: int) -> Tensor:
    """A scale for each row, or one for all, as a vector."""
    scales = stored.need(name, SCALES, (rows, 1), (rows,), (1, 1), (1,), ())
    return reshaped(scales, rows if scales.shape[:1] == (rows,) else 1)


def _scale(stored: Stored, module: str) -> str:
    other = f"{module}.weight_scale"
    return other if stored.find(other) is not None else f"{module}.weight_scale_inv"
