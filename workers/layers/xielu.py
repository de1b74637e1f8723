"""xIELU (https://arxiv.org/abs/2411.13010): an activation that grows as a square, and is learned."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.layers.steady import elementwise
from workers.weights.blocks import Empty
from workers.weights.loader import Slice


class XIELU:
    """`a x² + b x` above 0, and `c (exp(x) - 1 - x) + b x` below, with numbers of each layer's own.

    Every rank has all of them. Computed in float32, whatever `x` is.
    """

    NAMES = ("alpha_p", "alpha_n", "beta", "eps")  # `eps`: x below 0 is no nearer to it in the exponential

    def __init__(self, name: str, empty: Empty) -> None:
        self.name, self.exact = name, False
        self.values = [empty(1, dtype=torch.float32) for _ in self.NAMES]

    def pieces(self) -> Iterator[Slice]:
        for name, value in zip(self.NAMES, self.values, strict=True):
            yield Slice(f"{self.name}.{name}", (1,), value)

    def __call__(self, x: Tensor) -> Tensor:  # [tokens, inner]
        return elementwise(self._each, x) if self.exact else self._each(x)

    def _each(self, x: Tensor) -> Tensor:
        square, exponential, beta, eps = self.values
        wide = x.float()
        below = torch.minimum(wide, eps).expm1_().sub_(wide).mul_(beta + F.softplus(exponential))
        above = (wide * F.softplus(square)).mul_(wide)
        return torch.where(wide > 0, above, below).addcmul_(wide, beta).to(x.dtype)
