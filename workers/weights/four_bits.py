"""Stored groups of 4- or 8-bit numbers, and blocks of 4-bit floats: to rows in blocks.

Sources of groups are the packed numbers, the scales, and the zero points where there are some; of what is
turned on its side, columns of the weight are rows of them.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from ipc.errors import Code, CortexError
from workers.checkpoints.blocks import FORMATS
from workers.checkpoints.stored_tensors import StoredTensor
from workers.weights.eight_bits import ONE
from workers.weights.reading import Read
from workers.weights.rows import four_times, joined, nibbles, paired, with_zeros

AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]  # where, in an int32, the four bits of each of eight outputs are
GGML_BLOCK = 32


class Groups(NamedTuple):
    """A part of a weight as numbers from zero up, with the scale and the zero point of each block."""

    numbers: Tensor  # [rows, columns] uint8
    scales: Tensor  # [rows, blocks] float32
    zeros: Tensor | None  # [rows, blocks] float32; None: the middle of the numbers


def awq(read: Read, tensor: StoredTensor, rows: range, columns: range) -> Tensor:
    """Eight outputs in an int32, out of order."""
    weight, zeros, scales = tensor.sources

    def unpack(packed: Tensor) -> Tensor:
        ordered = nibbles(packed).view(len(packed), -1, 8)[:, :, AWQ_ORDER]
        return ordered.flatten(1)[:, rows.start % 8 :][:, : len(rows)].t()

    words = _words(rows, 8)
    groups, place = _groups(tensor, columns, weight.shape[0] // scales.shape[0])
    scale = read(scales, groups, rows).float().t()[:, place]
    zero = unpack(read(zeros, groups, words)).float()[:, place]
    return kept(tensor.dtype, Groups(unpack(read(weight, columns, words)), scale, zero))


def gptq_4(read: Read, tensor: StoredTensor, rows: range, columns: range) -> Tensor:
    """Eight inputs in an int32; zero points, eight outputs in one, are stored less one."""
    return _gptq(read, tensor, rows, columns, bits=4, less=1)


def gptq_8(read: Read, tensor: StoredTensor, rows: range, columns: range) -> Tensor:
    """The same with four in an int32."""
    return _gptq(read, tensor, rows, columns, bits=8, less=1)


def gptq_v2_4(read: Read, tensor: StoredTensor, rows: range, columns: range) -> Tensor:
    """The second format, in which zero points are as they are."""
    return _gptq(read, tensor, rows, columns, bits=4, less=0)


def gptq_v2_8(read: Read, tensor: StoredTensor, rows: range, columns: range) -> Tensor:
    """The same with four in an int32."""
    return _gptq(read, tensor, rows, columns, bits=8, less=0)


def _gptq(read: Read, tensor: StoredTensor, rows: range, columns: range, bits: int, less: int) -> Tensor:
    weight, zeros, scales, *order = tensor.sources
    packed = 32 // bits
    groups, place = _groups(tensor, columns, weight.shape[0] * packed // scales.shape[0])
    scale = read(scales, groups, rows).float().t()[:, place]
    zero = _unpacked(read(zeros, groups, _words(rows, packed)), bits)
    zero = (zero[:, rows.start % packed :][:, : len(rows)] + less & (1 << bits) - 1).t()[:, place]
    words = read(weight, range(weight.shape[0]) if order else _words(columns, packed), rows)
    numbers = _unpacked(words, bits).view(len(words), len(rows), packed).transpose(0, 1).flatten(1)
    return kept(tensor.dtype, Groups(_in_order(read, order, numbers, columns), scale, zero.float()))


def packed_4(read: Read, tensor: StoredTensor, rows: range, columns: range) -> Tensor:
    """Eight inputs in an int32, as the weight lies; zero points, eight outputs in one."""
    return _packed(read, tensor, rows, columns, bits=4)


def packed_8(read: Read, tensor: StoredTensor, rows: range, columns: range) -> Tensor:
    """The same with four in an int32."""
    return _packed(read, tensor, rows, columns, bits=8)


def _packed(read: Read, tensor: StoredTensor, rows: range, columns: range, bits: int) -> Tensor:
    weight, scales, *more = tensor.sources
    zeros, order = (more[:-1], more[-1:]) if tensor.order else (more, [])
    packed = 32 // bits
    groups, place = _groups(tensor, columns, weight.shape[1] * packed // scales.shape[1])
    scale, zero = read(scales, rows, groups).float()[:, place], None
    for source in zeros:
        words = read(source, _words(rows, packed), groups)
        zero = _unpacked(words, bits).view(len(words), len(groups), packed).transpose(1, 2).flatten(0, 1)
        zero = zero[rows.start % packed :][: len(rows)].float()[:, place]
    wanted = range(weight.shape[1]) if order else _words(columns, packed)
    numbers = _in_order(read, order, _unpacked(read(weight, rows, wanted), bits), columns)
    return kept(tensor.dtype, Groups(numbers, scale, zero))


def ordered(read: Read, groups: StoredTensor) -> Tensor:  # [columns] int32
    """The numbers of columns, those of a group together, from the group of each."""
    of_each = read(groups, range(groups.shape[0]), ONE).contiguous().view(torch.int32).flatten()
    return of_each.argsort(stable=True).int()


def _in_order(read: Read, order: list[StoredTensor], numbers: Tensor, columns: range) -> Tensor:
    """Those at the places `columns`, where all were read because another tensor says which those are."""
    if not order:
        return numbers
    return numbers[:, ordered(read, order[0])[columns.start : columns.stop]]


def nvfp4(read: Read, tensor: StoredTensor, rows: range, columns: range) -> Tensor:
    """Two e2m1 in a byte, an e4m3 for each 16 of them, and one float32 by which all are multiplied."""
    return _nvfp4(read, tensor, rows, columns, read(tensor.sources[2], ONE, ONE).float())


def nvfp4_divided(read: Read, tensor: StoredTensor, rows: range, columns: range) -> Tensor:
    """The same, divided by the float32."""
    return _nvfp4(read, tensor, rows, columns, 1 / read(tensor.sources[2], ONE, ONE).float())


def _nvfp4(read: Read, tensor: StoredTensor, rows: range, columns: range, whole: Tensor) -> Tensor:
    weight, scales, _ = tensor.sources
    scale = read(scales, rows, _words(columns, 16))
    return joined(read(weight, rows, _words(columns, 2)), scale, four_times(whole.expand(len(rows), 1)))


def mxfp4(read: Read, tensor: StoredTensor, rows: range, columns: range) -> Tensor:
    """Two e2m1 in a byte, and an exponent for each 32 of them: to ggml's blocks."""
    weight, scales = tensor.sources
    scale = read(scales, rows, _words(columns, GGML_BLOCK))
    return _ggml_blocks(scale.unsqueeze(2), nibbles(read(weight, rows, _words(columns, 2))))


def bitsandbytes_4(read: Read, tensor: StoredTensor, rows: range, columns: range) -> Tensor:
    """Two numbers in a byte, the first in the upper half, and a maximum for each block, which may be
    quantised: then the JSON of the weight, the maxima of its blocks, and what its numbers mean follow."""
    weight, largest, *nested = tensor.sources
    size = tensor.shape[1] // largest.shape[1]
    blocks, place = _groups(tensor, columns, size)
    scale = read(largest, rows, blocks)
    if nested:
        scale = scale.long()
        says, maxima, meaning = nested
        state = msgspec.json.decode(bytes(read(says, range(says.shape[0]), ONE).flatten().tolist()))
        offset, per = state.get("nested_offset", 0.0), state["nested_blocksize"]
        flat = torch.arange(rows.start, rows.stop).unsqueeze(1) * largest.shape[1] + torch.tensor(blocks)
        scale = read(meaning, range(meaning.shape[0]), ONE).float().flatten()[scale]
        scale = scale * read(maxima, range(maxima.shape[0]), ONE).float().flatten()[flat // per] + offset
    scale = scale.float()[:, place]
    packed = read(weight, rows, _words(columns, 2))
    return joined(packed >> 4 | packed << 4, scale)


def kept(name: str, groups: Groups) -> Tensor:  # [rows, row bytes] uint8
    """Groups in the format of that name.

    Raises:
        CortexError: MODEL_LOAD_FAILED, the format has no zero points, and there are some.
    """
    numbers, scales, zeros = groups
    middle = 8 if name == "Q4_0" or name.startswith("INT4") else 128
    if name.startswith("INT4"):
        zeros = torch.full_like(scales, middle) if zeros is None else zeros
        return joined(paired(numbers), with_zeros(scales, zeros))
    if zeros is not None and (zeros != middle).any():
        raise CortexError(
            Code.MODEL_LOAD_FAILED,
            "config.json: quantization_config.sym is true, and a zero point is "
            f"{zeros[zeros != middle][0]:g}, not {middle}",
        )
    if name == "Q4_0":
        halves = scales.to(torch.float16).contiguous().view(torch.uint8).view(len(scales), -1, 2)
        return _ggml_blocks(halves, numbers)
    # less 128, in two's complement
    return joined(numbers ^ 128, four_times(scales) if name == "INT8_ROW" else scales)


def _ggml_blocks(heads: Tensor, numbers: Tensor) -> Tensor:  # [rows, blocks, bytes], [rows, columns]
    low, high = numbers.reshape(*heads.shape[:2], 2, GGML_BLOCK // 2).unbind(2)
    return torch.cat([heads, low | high << 4], dim=2).flatten(1)


def _unpacked(words: Tensor, bits: int) -> Tensor:  # [..., bytes] uint8 -> [..., numbers] uint8
    return nibbles(words) if bits == 4 else words


def _words(numbers: range, packed: int) -> range:
    """The words, each of so many numbers, that these numbers stand in."""
    return range(numbers.start // packed, -(-numbers.stop // packed))


def _groups(tensor: StoredTensor, columns: range, size: int) -> tuple[range, Tensor]:
    """Groups that columns are in, and the place among them of the group of each block of the kept format."""
    form = FORMATS[tensor.dtype]
    block = form.elements if form.elements > 1 else len(columns)
    groups = _words(columns, size)
    return groups, torch.arange(columns.start, columns.stop, block) // size - groups.start
