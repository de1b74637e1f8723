"""What llama.cpp's converters changed of a weight, undone."""

from __future__ import annotations

import msgspec
from torch import Tensor

from workers.checkpoints.card import StoredTensor
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
