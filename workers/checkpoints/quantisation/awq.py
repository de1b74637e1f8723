"""AWQ (https://arxiv.org/abs/2306.00978): groups of 4-bit numbers with a scale and a zero point.

`qweight` is the weight turned on its side: eight outputs of one input stand in an int32, in the order
0 2 4 6 1 3 5 7 from the lowest four bits, which is what AutoAWQ's `gemm` kernels want.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.checkpoints.files import refuse
from workers.checkpoints.quantisation.scheme import Parts, Scheme, Stored, group_format, only, strings

PACKED = 8  # numbers in an int32


def read(path: Path, given: Mapping[str, Any]) -> Scheme:
    """The scheme of `quantization_config`."""
    only(path, given, "bits", 4)
    only(path, given, "w_bit", 4)
    only(path, given, "zero_point", True)
    version = given.get("version") or "gemm"
    if not isinstance(version, str) or version.lower() != "gemm":
        refuse(path, f"quantization_config.version {version} is not supported; gemm is")
    if given.get("backend") == "llm-awq":
        refuse(path, "quantization_config.backend llm-awq is not supported: it packs in another order")
    group = given.get("group_size") or given.get("q_group_size") or 128
    check_group(path, group)

    def find(stored: Stored, module: str, shape: tuple[int, int]) -> Parts:
        rows, columns = shape
        size = columns if group == -1 else group
        kept = group_format("INT4", size, columns)
        if columns % size or rows % PACKED or kept is None:
            refuse(path, f"the weight of {module}, {list(shape)}, is not made of 4-bit groups of {size}")
        groups = columns // size
        return Parts(
            kept,
            "awq",
            (
                stored.need(f"{module}.qweight", ["I32"], (columns, rows // PACKED)),
                stored.need(f"{module}.qzeros", ["I32"], (groups, rows // PACKED)),
                stored.need(f"{module}.scales", ["F16", "BF16", "F32"], (groups, rows)),
            ),
        )

    skipped = strings(path, "modules_to_not_convert", given.get("modules_to_not_convert"))
    return Scheme(f"AWQ, 4 bits in groups of {group}", find, skipped)


def check_group(path: Path, group: Any) -> None:
    """See that it is -1 for one group a row, or columns that blocks divide."""
    if type(group) is not int or (group != -1 and (group < 32 or group % 32)):
        refuse(path, f"quantization_config.group_size {group} is not supported; -1 and multiples of 32 are")
