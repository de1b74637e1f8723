"""What llama.cpp's converters changed of a weight, undone."""

from __future__ import annotations

import msgspec
import torch
from torch import Tensor

from workers.checkpoints.blocks import PLAIN
from workers.checkpoints.stored_tensors import StoredTensor
from workers.weights.dequantise import dequantise
from workers.weights.reading import Read


def halves_apart(read: Read, weight: StoredTensor, rows: range, columns: range) -> Tensor:
    """Rows of heads in which the two that turn together are neighbours, as those that are half a head apart.

    So queries and keys of a Llama are written. The source has the shape `[heads, head_dim, ...]`.
    """
    (source,) = weight.sources
    heads, head_dim, *rest = source.shape
    first, last = rows.start // head_dim, -(-rows.stop // head_dim)
    flat = msgspec.structs.replace(source, shape=(heads * head_dim, *rest))
    pairs = read(flat, range(first * head_dim, last * head_dim), columns)
    apart = pairs.unflatten(0, (last - first, head_dim // 2, 2)).transpose(1, 2).reshape(pairs.shape)
    start = rows.start - first * head_dim
    return apart[start : start + len(rows)]


def less_one(read: Read, weight: StoredTensor, rows: range, columns: range) -> Tensor:
    """A norm's weight to which one was added, as that of a Gemma is."""
    return read(weight.sources[0], rows, columns).float() - 1.0


def latent_heads(read: Read, weight: StoredTensor, rows: range, columns: range) -> Tensor:
    """Of each head the rows of its keys, `[heads * rank, key]` with inputs as rows, and those of its values,
    `[heads * value, rank]`; whatever they are stored as, as float32."""
    keys, values = weight.sources
    rank = weight.shape[1]
    heads = keys.shape[0] // rank
    key, value = keys.shape[1], values.shape[0] // heads
    first, last = rows.start // (key + value), -(-rows.stop // (key + value))

    def wide(source: StoredTensor, size: int, width: int) -> Tensor:  # [heads, size, width]
        part = read(source, range(first * size, last * size), range(width))
        part = part if source.dtype in PLAIN else dequantise(source.dtype, part)
        return part.float().view(last - first, size, width)

    both = torch.cat([wide(keys, rank, key).transpose(1, 2), wide(values, value, rank)], dim=1).flatten(0, 1)
    start = rows.start - first * (key + value)
    return both[start : start + len(rows), columns.start : columns.stop]


def tiled_heads(read: Read, weight: StoredTensor, rows: range, columns: range) -> Tensor:
    """Rows of value heads, those of a key head together, as Qwen3.5 has them.

    Of the sources the last has the shape `[tile, key head, row of a head, ...]`; rows of one before it stay
    where they are.
    """
    *before, values = weight.sources
    tiles, heads, size, *rest = values.shape
    flat = msgspec.structs.replace(values, shape=(tiles * heads * size, *rest))
    kept = before[0].shape[0] if before else 0
    parts = [read(before[0], range(rows.start, min(rows.stop, kept)), columns)] if rows.start < kept else []
    at, end = max(rows.start - kept, 0), rows.stop - kept
    while at < end:
        head, row = divmod(at, size)
        start = (head % tiles * heads + head // tiles) * size + row
        count = min(size - row, end - at)
        parts.append(read(flat, range(start, start + count), columns))
        at += count
    return torch.cat(parts)


def tiled_rates(read: Read, weight: StoredTensor, rows: range, columns: range) -> Tensor:
    """The same of a vector of rates, each stored as minus its exponential."""
    return tiled_heads(read, weight, rows, columns).float().neg().log()


def opening_gates(read: Read, weight: StoredTensor, rows: range, columns: range) -> Tensor:
    """Of `[key head, 2, value head of it, columns]` those of what opens, which come first."""
    return _gates(read, weight, rows, columns, 0)


def decaying_gates(read: Read, weight: StoredTensor, rows: range, columns: range) -> Tensor:
    """The same of what decays."""
    return _gates(read, weight, rows, columns, 1)


def _gates(read: Read, weight: StoredTensor, rows: range, columns: range, place: int) -> Tensor:
    (source,) = weight.sources
    heads, two, values, width = source.shape
    flat = msgspec.structs.replace(source, shape=(heads * two * values, width))
    both = read(flat, range(flat.shape[0]), columns)
    return both.unflatten(0, (heads, two, values))[:, place].flatten(0, 1)[rows.start : rows.stop]
