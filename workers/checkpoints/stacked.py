"""Tensors that hold what all experts of a layer have, one after the other, as one tensor an expert.

Where they are stored as transformers computes with them, rows are inputs: then the name says so, and
`transposed` finds them. MXFP4 is stored as products have it, and so are the experts of Gemma 4.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from workers.checkpoints.blocks import PLAIN
from workers.checkpoints.quantisation.scheme import Parts, Stored
from workers.checkpoints.safetensors import Tensor

MOST_EXPERTS = 4096
TRANSPOSED = "weight_transposed"
HALVES = {"gate_proj": "transposed", "up_proj": "transposed_second"}  # of the columns of both

_STACKED = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)(_blocks|_scales|_bias)?")
_USUAL = {None: TRANSPOSED, "_blocks": "weight_packed", "_scales": "weight_scale", "_bias": "bias"}


def unstacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of each expert under names of their own, and all others under theirs."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = _STACKED.fullmatch(name)
        if match is None or len(tensor.shape) < 2 or not 1 <= tensor.shape[0] <= MOST_EXPERTS:
            found[name] = tensor
            continue
        experts, projection, kind = match.groups()
        count, first, *rest = tensor.shape
        shape = (first, math.prod(rest)) if rest else (first,)
        size = tensor.size // count
        for number in range(count):
            own = f"{experts}.{number}.{projection}.{_USUAL[kind]}"
            found[own] = Tensor(tensor.file, tensor.dtype, shape, tensor.offset + number * size, size)
    return found


def unstacked_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same of what is stored as products have it, gates above what they open."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = _STACKED.fullmatch(name)
        if match is None or match[3] or len(tensor.shape) != 3 or not 1 <= tensor.shape[0] <= MOST_EXPERTS:
            found[name] = tensor
            continue
        experts, projection, _ = match.groups()
        count, rows, columns = tensor.shape
        parts = ["gate_proj", "up_proj"] if projection == "gate_up_proj" and rows % 2 == 0 else [projection]
        size, start = tensor.size // count // len(parts), tensor.offset
        for number in range(count):
            for part in parts:
                own = f"{experts}.{number}.{part}.weight"
                shape = (rows // len(parts), columns)
                found[own] = Tensor(tensor.file, tensor.dtype, shape, start, size)
                start += size
    return found


def transposed(stored: Stored, name: str, shape: tuple[int, ...]) -> Parts | None:
    """What a weight is made of whose rows are stored as columns; None where it is not."""
    if len(shape) != 2:
        return None
    other = name.removesuffix("weight") + TRANSPOSED
    if stored.find(other) is not None:
        source = stored.need(other, PLAIN, shape[::-1])
        return Parts(source.dtype, "transposed", (source,))
    for own, conversion in HALVES.items():
        other = name.removesuffix(f"{own}.weight") + f"gate_up_proj.{TRANSPOSED}"
        if name.endswith(f".{own}.weight") and stored.find(other) is not None:
            source = stored.need(other, PLAIN, (shape[1], 2 * shape[0]))
            return Parts(source.dtype, conversion, (source,))
    return None
