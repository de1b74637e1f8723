"""FP4 (e2m1) in small blocks: NVFP4, of 16 with an e4m3 scale each and one float32, and MXFP4, of 32 with an
exponent each (https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf).

NVFP4 is written by NVIDIA's ModelOpt, which multiplies by `weight_scale_2`, and by compressed-tensors, which
divides by `weight_global_scale`. The first of two numbers stands in the lower half of a byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.checkpoints.files import read_json, refuse
from workers.checkpoints.quantisation import fp8
from workers.checkpoints.quantisation.scheme import Find, Parts, Scheme, Stored, strings

NV, MX = 16, 32  # elements of a block
# As ModelOpt writes it; before 2025, nothing of it stood in `config.json`, and later not always all of it.
BESIDE, WITHIN = "hf_quant_config.json", "quantization"
MIXED = "MIXED_PRECISION"


def beside(folder: Path) -> dict[str, Any]:
    """What ModelOpt's own file in `folder` says; nothing where there is none. CortexError: it is damaged."""
    path = folder / BESIDE
    if not path.exists():
        return {}
    if not isinstance(says := read_json(path, dict[str, Any]).get(WITHIN), dict):
        refuse(path, f"{WITHIN} is no object")
    return says


def read_modelopt(path: Path, given: Mapping[str, Any], within: str = "quantization_config") -> Scheme:
    """The scheme of ModelOpt's `quantization_config`, in which all may stand in an object of its own, or of
    the file that it writes beside.

    Args:
        within: what `given` is in the file at `path`, for whoever reads why it is refused.
    """
    if isinstance(inner := given.get(WITHIN), dict):
        given = {**given, **inner}
    skipped = (
        *strings(path, "ignore", given.get("ignore"), within),
        *strings(path, "exclude_modules", given.get("exclude_modules"), within),
    )
    if (kind := given.get("quant_algo")) != MIXED:
        return Scheme(*_algorithm(path, given, within), skipped, fp8.BESIDE)
    layers = given.get("quantized_layers")
    if not layers and (layers := beside(path.parent).get("quantized_layers")):
        path, within = path.with_name(BESIDE), WITHIN
    if (
        not layers
        or not isinstance(layers, dict)
        or not all(isinstance(each, dict) for each in layers.values())
    ):
        refuse(path, f"{within}.quant_algo {kind} has no quantized_layers, an object for each")
    titles = {
        title
        for title, _ in (
            _algorithm(path, each, f"{within}.quantized_layers.{name}") for name, each in layers.items()
        )
    }
    return Scheme(" and ".join(sorted(titles)), _either, skipped, fp8.BESIDE)


def _algorithm(path: Path, given: Mapping[str, Any], within: str) -> tuple[str, Find]:
    """What an algorithm of ModelOpt makes of weights. CortexError: it is another than there are."""
    kind, size = given.get("quant_algo"), given.get("group_size")
    if not isinstance(kind, str) or kind not in ALGORITHMS:
        known = ", ".join(ALGORITHMS)
        refuse(path, f"{within}.quant_algo {kind} is not supported; there are {known}")
    if "NVFP4" in kind and size not in (None, NV):
        refuse(path, f"{within}.group_size {size} is not supported; {NV} is")
    return ALGORITHMS[kind]


def read_mxfp4(path: Path, given: Mapping[str, Any]) -> Scheme:
    """The scheme of gpt-oss."""
    key = "modules_to_not_convert"
    return Scheme("MXFP4", mxfp4, strings(path, key, given.get(key)))


def _either(stored: Stored, module: str, shape: tuple[int, int]) -> Parts:
    """Of a checkpoint with weights in both: FP4 has two numbers in a byte."""
    weight = stored.find(f"{module}.weight")
    find = _modelopt if weight is not None and weight.dtype == "U8" else fp8.in_rows
    return find(stored, module, shape)


def _modelopt(stored: Stored, module: str, shape: tuple[int, int]) -> Parts:
    return nvfp4(stored, module, shape, "weight", "weight_scale_2", "nvfp4")


# Some quantise activations as well, or say how scales of these are found.
ALGORITHMS: dict[str, tuple[str, Find]] = {
    "FP8": ("FP8, with one scale", fp8.in_rows),
    "FP8_PER_CHANNEL_PER_TOKEN": ("FP8, with a scale a row", fp8.in_rows),
    "NVFP4": ("NVFP4", _modelopt),
    "W4A16_NVFP4": ("NVFP4", _modelopt),
}


def nvfp4(
    stored: Stored, module: str, shape: tuple[int, int], weight: str, whole: str, conversion: str
) -> Parts:
    """A weight whose tensors have these names, and whose one scale is used as the conversion has it."""
    rows, columns = shape
    return Parts(
        "NVFP4",
        conversion,
        (
            stored.need(f"{module}.{weight}", ["U8"], (rows, columns // 2)),
            stored.need(f"{module}.weight_scale", ["F8_E4M3"], (rows, columns // NV)),
            stored.number(f"{module}.{whole}"),
        ),
    )


def mxfp4(stored: Stored, module: str, shape: tuple[int, int]) -> Parts:
    """A weight whose scales are exponents."""
    rows, columns = shape
    return Parts(
        "MXFP4",
        "mxfp4",
        (
            stored.need(f"{module}.weight_packed", ["U8"], (rows, columns // 2)),
            stored.need(f"{module}.weight_scale", ["U8", "F8_E8M0"], (rows, columns // MX)),
        ),
    )
