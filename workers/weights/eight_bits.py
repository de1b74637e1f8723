"""Stored numbers of one byte, FP8 or int8, with their scales: to rows in blocks."""

from __future__ import annotations

from torch import Tensor

from workers.checkpoints.stored_tensors import StoredTensor
from workers.weights.reading import Read
from workers.weights.rows import four_times, joined

BLOCK = 128  # rows and columns that have one scale
ONE = range(1)


def fp8_blocks(read: Read, tensor: StoredTensor, rows: range, columns: range) -> Tensor:
    """Sources: the numbers, and a scale for each block of 128 x 128. The last row of blocks may be cut."""
    numbers, scales = tensor.sources
    first = rows.start // BLOCK
    above, left = range(first, -(-rows.stop // BLOCK)), columns.start // BLOCK
    scale = read(scales, above, range(left, left + len(columns) // BLOCK)).float()
    scale = scale.repeat_interleave(BLOCK, dim=0)[rows.start - first * BLOCK :][: len(rows)]
    return joined(read(numbers, rows, columns), scale)


def scaled_rows(read: Read, tensor: StoredTensor, rows: range, columns: range) -> Tensor:
    """Sources: the numbers, and a vector with a scale for each row, or with one for all."""
    numbers, scales = tensor.sources
    scale = read(scales, ONE if scales.shape == (1,) else rows, ONE).float().expand(len(rows), 1)
    return joined(read(numbers, rows, columns), four_times(scale))


def bitsandbytes_8(read: Read, tensor: StoredTensor, rows: range, columns: range) -> Tensor:
    """Sources: the numbers, and a vector with the largest of each row, which is 127 there."""
    numbers, largest = tensor.sources
    scale = read(largest, rows, ONE).float() * (1 / 127)
    return joined(read(numbers, rows, columns), four_times(scale))


def apart(read: Read, tensor: StoredTensor, rows: range, columns: range) -> Tensor:
    """Sources: the numbers, and a scale for each block of a row, as they are kept."""
    numbers, scales = tensor.sources
    left = columns.start // BLOCK
    scale = read(scales, rows, range(left, left + len(columns) // BLOCK))
    return joined(read(numbers, rows, columns), scale)
