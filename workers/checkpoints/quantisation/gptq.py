"""GPTQ (https://arxiv.org/abs/2210.17323): groups of 4- or 8-bit numbers with a scale and a zero point.

`qweight` is the weight turned on its side, with consecutive inputs of one output in an int32; `qzeros` has
consecutive outputs in one, and in the first format less one (`checkpoint_format: gptq`; `gptq_v2` has them as
they are). `g_idx` says which group an input belongs to. Where a group's are not neighbours (`desc_act`) its
columns are kept together, and inputs are put in their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.checkpoints.files import refuse
from workers.checkpoints.quantisation.awq import check_group
from workers.checkpoints.quantisation.scheme import Orders, Parts, Scheme, Stored, group_format, only


def read(path: Path, given: Mapping[str, Any]) -> Scheme:
    """The scheme of `quantization_config`."""
    if "bits" not in given:
        refuse(path, "quantization_config.bits is missing")
    bits = only(path, given, "bits", 4, 8)
    group = given.get("group_size") or 128
    check_group(path, group)
    symmetric = only(path, given, "sym", True, False)
    only(path, given, "pack_dtype", "int32")
    layout = given.get("checkpoint_format") or "gptq"
    if layout not in ("gptq", "gptq_v2"):
        refuse(path, f"quantization_config.checkpoint_format {layout} is not supported; gptq and gptq_v2 are")
    if given.get("dynamic"):
        refuse(path, "quantization_config.dynamic is not supported: settings of single modules")
    if bits == 8 and not symmetric:
        refuse(path, "quantization_config: 8 bits with zero points (sym false) are not supported")
    packed, orders = 32 // bits, Orders()

    def find(stored: Stored, module: str, shape: tuple[int, int]) -> Parts:
        rows, columns = shape
        size = columns if group == -1 else group
        if columns % size or columns % packed or rows % packed:
            refuse(path, f"the weight of {module}, {list(shape)}, is not made of {bits}-bit groups of {size}")
        groups = columns // size
        weight = stored.need(f"{module}.qweight", ["I32"], (columns // packed, rows))
        zeros = stored.need(f"{module}.qzeros", ["I32"], (groups, rows // packed))
        scales = stored.need(f"{module}.scales", ["F16", "BF16", "F32"], (groups, rows))
        order = orders.find(stored, f"{module}.g_idx", columns, size, is_said=bool(given.get("desc_act")))
        exact = bits == 4 and symmetric and scales.dtype == "F16" and size % 32 == 0
        kept = "Q4_0" if exact else group_format(f"INT{bits}", size, columns)  # (q - 8) times a float16
        if kept is None:
            refuse(path, f"the weight of {module}, {list(shape)}, is not made of {bits}-bit groups of {size}")
        return Parts(kept, f"{layout}_{bits}", (weight, zeros, scales), order)

    return Scheme(f"GPTQ, {bits} bits in groups of {group}", find)
