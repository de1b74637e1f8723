"""Layer normalisation (Ba et al. 2016)."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from workers.weights.blocks import Empty
from workers.weights.loader import Slice


class LayerNorm:
    """`(x - mean) / deviation * weight + bias` over the last dimension; some have no bias.

    Every rank has all of it.
    """

    def __init__(self, name: str, size: int, eps: float, empty: Empty, bias: bool = True) -> None:
        self.name, self.eps = name, eps
        self.weight = empty(size)
        self.bias = empty(size) if bias else None

    def pieces(self) -> Iterator[Slice]:
        yield Slice(f"{self.name}.weight", tuple(self.weight.shape), self.weight)
        if self.bias is not None:
            yield Slice(f"{self.name}.bias", tuple(self.bias.shape), self.bias)

    def __call__(self, x: Tensor) -> Tensor:  # [..., size]
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
