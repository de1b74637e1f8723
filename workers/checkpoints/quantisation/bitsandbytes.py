"""bitsandbytes: 4 bits in blocks of the flat weight (nf4, fp4), or 8 bits with a maximum for each row.

https://arxiv.org/abs/2305.14314 (QLoRA): the scales of the blocks may be quantised themselves. What a 4-bit
weight is stands in a tensor of JSON beside it, `quant_state`. https://arxiv.org/abs/2208.07339 (LLM.int8).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from workers.checkpoints.files import decode_json, open_file, refuse
from workers.checkpoints.quantisation.scheme import Parts, Scheme, Stored, only, reshaped, strings
from workers.checkpoints.safetensors import Tensor

BLOCK = 64
BY_ROWS = b"\0"  # how an int8 weight lies; others are for the products of some GPUs
STATE_LIMIT = 10_000  # bytes
Positive = Annotated[int, msgspec.Meta(ge=1)]


class State(msgspec.Struct):
    """What the JSON beside a 4-bit weight says."""

    quant_type: Literal["nf4", "fp4"]
    blocksize: Positive
    shape: tuple[Positive, ...]
    nested_blocksize: Positive | None = None
    nested_offset: float = 0.0


def read(path: Path, given: Mapping[str, Any]) -> Scheme:
    """The scheme of `quantization_config`."""
    skipped = strings(path, "llm_int8_skip_modules", given.get("llm_int8_skip_modules"))
    if given.get("load_in_8bit") or given.get("_load_in_8bit"):
        return Scheme("bitsandbytes int8", in_8_bits, skipped, (".weight_format",))
    if not (given.get("load_in_4bit") or given.get("_load_in_4bit")):
        refuse(path, "quantization_config has neither load_in_4bit nor load_in_8bit")
    only(path, given, "bnb_4bit_quant_storage", "uint8")
    kind = only(path, given, "bnb_4bit_quant_type", "fp4", "nf4")

    def find(stored: Stored, module: str, shape: tuple[int, int]) -> Parts:
        return _in_4_bits(stored, module, shape, kind)

    return Scheme(f"bitsandbytes {kind}", find, skipped, (".quant_map", ".nested_quant_map"))


def in_8_bits(stored: Stored, module: str, shape: tuple[int, int]) -> Parts:
    """A weight with the largest number of each row, which is 127 there."""
    weight = stored.need(f"{module}.weight", ["I8"], shape)
    largest = stored.need(f"{module}.SCB", ["F32"], (shape[0],), (shape[0], 1))
    said = stored.find(f"{module}.weight_format")
    if said is not None and said.size == 1:
        with open_file(said.file) as file:
            file.seek(said.offset)
            if file.read(1) != BY_ROWS:
                refuse(said.file, f"{module}.weight_format is not 0: only weights by rows are supported")
    return Parts("INT8_ROW", "bitsandbytes_8", (weight, reshaped(largest, shape[0])))


def _in_4_bits(stored: Stored, module: str, shape: tuple[int, int], kind: str) -> Parts:
    name, (rows, columns) = f"{module}.weight", shape
    count = rows * columns
    weight = stored.need(name, ["U8"], (-(-count // 2), 1), (-(-count // 2),))
    says = stored.find(f"{name}.quant_state.bitsandbytes__{kind}")
    if says is None:
        refuse(
            weight.file,
            f"{name!r} comes without {name}.quant_state.bitsandbytes__{kind}, which says what it is",
        )
    state = _state(says, name)
    if state.quant_type != kind or state.shape != shape:
        refuse(
            says.file,
            f"the state of {name!r} says {state.quant_type} {list(state.shape)}, not {kind} {list(shape)}",
        )
    if state.blocksize % BLOCK or columns % state.blocksize:
        refuse(
            weight.file,
            f"{name!r} has rows of {columns}, which blocks of {state.blocksize} do not divide: not supported",
        )
    blocks = count // state.blocksize
    absmax = reshaped(stored.need(f"{name}.absmax", ["F32", "U8"], (blocks,), (blocks, 1)), blocks)
    sources = [reshaped(weight, rows, columns // 2), reshaped(absmax, rows, columns // state.blocksize)]
    if absmax.dtype == "U8":
        if state.nested_blocksize is None:
            refuse(says.file, f"the state of {name!r} has no nested_blocksize, and its absmax is quantised")
        nested = math.ceil(blocks / state.nested_blocksize)
        sources += [
            reshaped(says, math.prod(says.shape)),
            stored.need(f"{name}.nested_absmax", ["F32"], (nested,)),
            stored.need(f"{name}.nested_quant_map", ["F32"], (256,)),
        ]
    return Parts(f"{kind.upper()}_{BLOCK}", "bitsandbytes_4", tuple(sources))


def _state(tensor: Tensor, name: str) -> State:
    if tensor.dtype != "U8" or tensor.size > STATE_LIMIT:
        refuse(tensor.file, f"the state of {name!r} is no short JSON")
    with open_file(tensor.file) as file:
        file.seek(tensor.offset)
        return decode_json(tensor.file, file.read(tensor.size), State, f"the state of {name}")
