"""Rows of blocks for a GPU: the same bits in another order, so that 16 bytes of a load are numbers alone.

A block of ggml's has its scales among its numbers, and begins at any byte. Here a row has all its numbers
first, then what they have of higher bits, then its scales, field by field and block by block. Within 128
columns numbers stand as tensor cores take them (`mma.m16n8k16`, PTX ISA, "Matrix Fragments"): of each 32
columns a thread holds eight, as halves of 16 bits whose two neighbours are a register. So a program loads,
masks and multiplies, and nothing goes from thread to thread. As many bytes as before, which can be undone,
but of rows whose columns are no whole steps: zeros fill their last one.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.checkpoints.blocks import FORMATS, GROUP, STEP, filled

AXES = (2, 2, 2, 4, 2, 2)  # of a step's columns: a number's place is one in each, named so below
_C1, _C0, _S, _T, _B1, _B0 = range(len(AXES))  # of 4 groups of 32; of its halves; thread; pair; in it


class Packing(NamedTuple):
    """Where numbers of some bits are: in runs of bytes, of which each holds first the lowest bits of all."""

    bits: int
    start: int = 0  # of a block's bytes
    stop: int = 0
    run: int = 1  # bytes

    def read(self, data: Tensor) -> Tensor:  # [n, bytes] uint8 -> [n, numbers] uint8
        runs = data.reshape(len(data), -1, 1, self.run)
        return (runs >> _shifts(self.bits, data).view(-1, 1) & ((1 << self.bits) - 1)).reshape(len(data), -1)

    def written(self, numbers: Tensor) -> Tensor:  # the other way round
        runs = numbers.reshape(len(numbers), -1, 8 // self.bits, self.run)
        shifted = runs << _shifts(self.bits, numbers).view(-1, 1)
        return shifted.sum(dim=2, dtype=torch.uint8).reshape(len(numbers), -1)


class Fields(NamedTuple):
    """What a block has: numbers, their higher bits if any, and scales, by first and last byte."""

    numbers: Packing
    higher: Packing | None
    scales: tuple[tuple[int, int], ...]


def _nibbles(start: int, stop: int, run: int) -> Packing:
    return Packing(4, start, stop, run)


BLOCKS = {
    "Q4_0": Fields(_nibbles(2, 18, 16), None, ((0, 2),)),
    "Q4_1": Fields(_nibbles(4, 20, 16), None, ((0, 4),)),
    "Q5_0": Fields(_nibbles(6, 22, 16), Packing(1, 2, 6, 1), ((0, 2),)),
    "Q5_1": Fields(_nibbles(8, 24, 16), Packing(1, 4, 8, 1), ((0, 4),)),
    "Q8_0": Fields(Packing(8, 2, 34), None, ((0, 2),)),
    "Q4_K": Fields(_nibbles(16, 144, 32), None, ((0, 16),)),
    "Q5_K": Fields(_nibbles(48, 176, 32), Packing(1, 16, 48, 32), ((0, 16),)),
    "Q6_K": Fields(_nibbles(0, 128, 64), Packing(2, 128, 192, 32), ((192, 208), (208, 210))),
    "MXFP4": Fields(_nibbles(1, 17, 16), None, ((0, 1),)),
}
SIX_BITS = ("Q4_K", "Q5_K")  # whose scales are
ROWS = {  # whose rows have their numbers first already; bits
    **dict.fromkeys(("INT8_128", "FP8_128", "INT8_ROW", "FP8_ROW"), 8),
    **dict.fromkeys(("INT4_32", "INT4_64", "INT4_128", "NVFP4", "NF4_64", "FP4_64"), 4),
}
# The order of axes in a plane of so many bits: bytes first, then what stands in one, its lowest bits last.
ORDER = {
    8: (_C1, _T, _C0, _S, _B0, _B1),
    4: (_T, _C1, _C0, _B0, _S, _B1),
    2: (_T, _C1, _B0, _C0, _S, _B1),
    1: (_T, _B0, _C1, _C0, _S, _B1),
}


def takes(name: str, columns: int) -> bool:
    """Whether rows of so many columns in that format have planes."""
    return (name in BLOCKS or name in ROWS) and columns % GROUP == 0


def plane_bytes(name: str) -> tuple[int, ...]:
    """What 128 columns of a row take of each of its planes, as these follow each other; of one that is the
    whole row's they take 0."""
    form = FORMATS[name]
    if name in ROWS:
        numbers, both = STEP * ROWS[name] // 8, STEP // form.elements * form.nbytes
        return numbers, *[both - numbers] * (both > numbers), *[0] * (form.row_nbytes > 0)
    fields = BLOCKS[name]
    packed = [part.bits * STEP // 8 for part in (fields.numbers, fields.higher) if part is not None]
    return *packed, *((stop - start) * STEP // form.elements for start, stop in fields.scales)


def to_planes(name: str, rows: Tensor) -> Tensor:  # [rows, row bytes] uint8, both
    """The bits of rows in the format of that name, in planes, with those that fill their last step."""
    rows = _filled(name, rows)
    columns = FORMATS[name].columns(rows.shape[1])
    if name in ROWS:
        end = columns * ROWS[name] // 8
        return torch.cat([_plane(Packing(ROWS[name]).read(rows[:, :end]), ROWS[name]), rows[:, end:]], dim=1)
    fields, blocks = BLOCKS[name], rows.reshape(-1, FORMATS[name].nbytes)
    parts = [
        _plane(part.read(blocks[:, part.start : part.stop]).view(len(rows), columns), part.bits)
        for part in (fields.numbers, fields.higher)
        if part is not None
    ]
    if name in SIX_BITS:
        parts.append(_by_half(blocks[:, :16]).reshape(len(rows), -1))
    else:
        parts += [blocks[:, start:stop].reshape(len(rows), -1) for start, stop in fields.scales]
    return torch.cat(parts, dim=1)


def from_planes(name: str, rows: Tensor) -> Tensor:  # [rows, row bytes] uint8, both
    """The other way round, but what fills them stays."""
    columns = FORMATS[name].columns(rows.shape[1])
    if name in ROWS:
        end = columns * ROWS[name] // 8
        return torch.cat([Packing(ROWS[name]).written(_numbers(rows[:, :end], ROWS[name])), rows[:, end:]], 1)
    fields, form = BLOCKS[name], FORMATS[name]
    count = columns // form.elements
    blocks = rows.new_empty(len(rows) * count, form.nbytes)
    end = 0
    for part in (fields.numbers, fields.higher):
        if part is not None:
            start, end = end, end + columns * part.bits // 8
            numbers = _numbers(rows[:, start:end], part.bits).view(len(blocks), -1)
            blocks[:, part.start : part.stop] = part.written(numbers)
    for first, last in fields.scales:
        start, end = end, end + count * (last - first)
        scales = rows[:, start:end].reshape(len(blocks), -1)
        blocks[:, first:last] = _by_scale(scales) if name in SIX_BITS else scales
    return blocks.view(len(rows), -1)


def _filled(name: str, rows: Tensor) -> Tensor:  # [rows, row bytes] uint8, both
    form = FORMATS[name]
    columns = form.columns(rows.shape[1])
    more = filled(columns)
    if not more:
        return rows
    blocks = more // form.elements * form.nbytes
    if name in BLOCKS:
        return F.pad(rows, (0, blocks))
    numbers, end = more * ROWS[name] // 8, columns * ROWS[name] // 8
    scales = slice(end, rows.shape[1] - form.row_nbytes)
    parts = F.pad(rows[:, :end], (0, numbers)), F.pad(rows[:, scales], (0, blocks - numbers))
    return torch.cat([*parts, rows[:, scales.stop :]], dim=1)


def _plane(numbers: Tensor, bits: int) -> Tensor:  # [rows, columns] uint8 -> [rows, bytes] uint8
    order, rows = [axis + 2 for axis in ORDER[bits]], len(numbers)
    moved = numbers.view(rows, -1, *AXES).permute(0, 1, *order)
    return (moved.reshape(-1, 8 // bits) << _shifts(bits, numbers)).sum(1, dtype=torch.uint8).view(rows, -1)


def _numbers(plane: Tensor, bits: int) -> Tensor:  # [rows, bytes] uint8 -> [rows, columns] uint8
    order = ORDER[bits]
    apart = plane.unsqueeze(-1) >> _shifts(bits, plane) & ((1 << bits) - 1)
    moved = apart.reshape(len(plane), -1, *(AXES[axis] for axis in order))
    back = [order.index(axis) + 2 for axis in range(len(order))]
    return moved.permute(0, 1, *back).reshape(len(plane), -1)


def _by_half(scales: Tensor) -> Tensor:  # [blocks, 16] uint8, both
    """Scales of Q4_K and Q5_K: of each half of a block four scales, with the upper bits of its four minima,
    and then the lower bits of all minima; so that a half takes one word, and half of another.

    ggml has four of each in whole, and four in pieces (`get_scale_min_k4` in `ggml-quants.c`).
    """
    both, d, m, pieces = scales.view(-1, 4, 4).unbind(1)
    second = pieces & 15 | d >> 2 & 48 | m & 192
    return torch.cat([both, d & 63 | m << 2 & 192, second, m & 15 | pieces & 240], dim=1)


def _by_scale(scales: Tensor) -> Tensor:  # [blocks, 16] uint8, both
    """The other way round."""
    both, first, second, lower = scales.view(-1, 4, 4).unbind(1)
    d = first & 63 | second << 2 & 192
    m = lower & 15 | first >> 2 & 48 | second & 192
    return torch.cat([both, d, m, second & 15 | lower & 240], dim=1)


def _shifts(bits: int, like: Tensor) -> Tensor:
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=like.device)


assert prod(AXES) == STEP
