"""Root mean square normalisation (Zhang & Sennrich 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.layers.linear import Empty
from workers.loader import Piece


class RMSNorm:
    """`x / rms(x) * weight` over the last dimension; the statistics are float32 whatever `x` is."""

    def __init__(self, name: str, size: int, eps: float, empty: Empty) -> None:
        self.name, self.eps = name, eps
        self.weight = empty(size)

    def pieces(self) -> Iterator[Piece]:
        yield Piece(f"{self.name}.weight", tuple(self.weight.shape), self.weight)

    def __call__(self, x: Tensor) -> Tensor:  # [..., size]
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class HeadNorm:
    """RMSNorm of each head by itself, with one weight for the query heads and another for the key heads.

    Args:
        norms: name in the checkpoint and number of heads, in the order of the heads.
        head_dim: size of a head.
    """

    def __init__(self, norms: list[tuple[str, int]], head_dim: int, eps: float, empty: Empty) -> None:
        self.norms, self.eps = norms, eps
        self.weight = empty(sum(heads for _, heads in norms), head_dim)

    def pieces(self) -> Iterator[Piece]:
        rows = iter(self.weight)
        for name, heads in self.norms:
            for row in islice(rows, heads):
                yield Piece(f"{name}.weight", tuple(row.shape), row)

    def __call__(self, x: Tensor) -> Tensor:  # [tokens, heads, head_dim] float32; consumed
        # F.rms_norm takes ten times as long on many short rows
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        return x.mul_(square.div_(x.shape[-1]).add_(self.eps).rsqrt_()).mul_(self.weight)
