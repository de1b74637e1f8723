"""FP4 (e2m1) in small blocks: NVFP4, of 16 with an e4m3 scale each and one float32, and MXFP4, of 32 with an
exponent each (https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf).

NVFP4 is written by NVIDIA's ModelOpt, which multiplies by `weight_scale_2`, and by compressed-tensors, which
divides by `weight_global_scale`. The first of two numbers stands in the lower half of a byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.checkpoints.files import refuse
from workers.checkpoints.quantisation import fp8
from workers.checkpoints.quantisation.scheme import Parts, Scheme, Stored, strings

NV, MX = 16, 32  # elements of a block


def read_modelopt(path: Path, given: Mapping[str, Any]) -> Scheme:
    """The scheme of ModelOpt's `quantization_config`."""
    kind = given.get("quant_algo")
    skipped = (
        *strings(path, "ignore", given.get("ignore")),
        *strings(path, "exclude_modules", given.get("exclude_modules")),
    )
    if kind == "FP8":
        return Scheme("FP8, with one scale", fp8.in_rows, skipped, fp8.BESIDE)
    if kind != "NVFP4":
        refuse(path, f"quantization_config.quant_algo {kind} is not supported; there are FP8, NVFP4")
    if given.get("group_size") not in (None, NV):
        refuse(path, f"quantization_config.group_size {given['group_size']} is not supported; {NV} is")
    return Scheme("NVFP4", _modelopt, skipped, fp8.BESIDE)


def read_mxfp4(path: Path, given: Mapping[str, Any]) -> Scheme:
    """The scheme of gpt-oss."""
    key = "modules_to_not_convert"
    return Scheme("MXFP4", mxfp4, strings(path, key, given.get(key)))


def _modelopt(stored: Stored, module: str, shape: tuple[int, int]) -> Parts:
    return nvfp4(stored, module, shape, "weight", "weight_scale_2", "nvfp4")


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
