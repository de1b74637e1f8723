"""Root mean square normalisation (Zhang & Sennrich 2019)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.kernels import fused, step
from workers.parallel import RankGroup
from workers.weights.blocks import Empty
from workers.weights.loader import Slice


class RMSNorm:
    """`x / rms(x) * weight` over the last dimension; the statistics are float32 whatever `x` is.

    Args:
        offset: is added to the weight, which is stored without it. The product is float32 then.
    """

    def __init__(self, name: str, size: int, eps: float, empty: Empty, offset: float = 0.0) -> None:
        self.name, self.eps, self.offset = name, eps, offset
        self.weight = empty(size)

    def pieces(self) -> Iterator[Slice]:
        yield Slice(f"{self.name}.weight", tuple(self.weight.shape), self.weight)

    def __call__(self, x: Tensor) -> Tensor:  # [..., size]
        if self._compiled(x):
            return step.norm(x, self.weight, self.eps, self.offset)
        if fused.has_triton(x.device):
            return fused.norm(x, self.weight, self.eps, self.offset)
        return self.plain(x)

    def added(self, x: Tensor, y: Tensor) -> Tensor:  # [..., size] each
        """`x`, and `y` normalised."""
        if self._compiled(y) and x.dtype == y.dtype:
            return step.norm(y, self.weight, self.eps, self.offset, x)
        if fused.has_triton(x.device):
            return fused.norm(y, self.weight, self.eps, self.offset, x)
        return x + self.plain(y)

    def of_sum(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:  # [tokens, size] each
        """`x + y`, and that normalised."""
        if fused.has_triton(x.device):
            return fused.norm_of_sum(x, y, self.weight, self.eps, self.offset)
        if self._compiled(y) and x.dtype == y.dtype:
            return step.norm_of_sum(x, y, self.weight, self.eps, self.offset)
        total = x + y
        return total, self(total)

    def _compiled(self, x: Tensor) -> bool:
        return x.dtype == self.weight.dtype and step.takes(x, x.shape[-1])

    def plain(self, x: Tensor) -> Tensor:  # [..., size]
        """What the kernels compute, in torch."""
        if not self.offset:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        weight = self.weight.float() + self.offset
        return F.rms_norm(x.float(), weight.shape, weight, self.eps).to(x.dtype)


def over_rms(x: Tensor, eps: float) -> Tensor:  # [..., size] -> [..., 1]
    """What float32 is multiplied with to be normalised, over the last dimension."""
    # F.rms_norm takes ten times as long where the rows are many and short
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    return square.div_(x.shape[-1]).add_(eps).rsqrt_()


class HeadNorm:
    """RMSNorm of each head by itself, with one weight for the query heads and another for the key heads.

    Args:
        names: of the norms in the checkpoint: two, or one where there are no key heads.
        heads: how many there are of each, on this rank.
        head_dim: size of a head.
        offset: as of `RMSNorm`.
    """

    def __init__(
        self,
        names: Sequence[str],
        heads: Sequence[int],
        head_dim: int,
        eps: float,
        empty: Empty,
        offset: float = 0.0,
    ) -> None:
        self.names, self.heads, self.eps, self.offset = names, list(heads), eps, offset
        self.weights = [empty(head_dim) for _ in names]

    def pieces(self) -> Iterator[Slice]:
        for name, weight in zip(self.names, self.weights, strict=True):
            yield Slice(f"{name}.weight", tuple(weight.shape), weight)

    def __call__(self, x: Tensor) -> Tensor:  # [tokens, heads of both, head_dim] float32; changed in place
        x.mul_(over_rms(x, self.eps))
        for part, weight in zip(x.split(self.heads, dim=1), self.weights, strict=True):
            part.mul_(weight.float() + self.offset if self.offset else weight)
        return x


class BareHeadNorm(HeadNorm):
    """The same without weights: all of them are 1, and none is in the checkpoint."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        for weight in self.weights:
            weight.fill_(1.0)

    def pieces(self) -> Iterator[Slice]:
        return iter(())


class WholeNorm:
    """RMSNorm of all query heads together, and of all key heads, which are spread over the ranks.

    Args:
        names: of the two norms in the checkpoint.
        heads: how many there are of each, on all ranks.
        head_dim: size of a head.
    """

    def __init__(
        self,
        names: tuple[str, str],
        heads: tuple[int, int],
        head_dim: int,
        eps: float,
        group: RankGroup,
        empty: Empty,
    ) -> None:
        self.names, self.eps, self.group = names, eps, group
        self.sizes = [count * head_dim for count in heads]
        self.shares = [group.share(heads[0]), group.share_kv(heads[1])]
        self.weights = [empty(len(share), head_dim) for share in self.shares]
        # elements whose squares all ranks together add up: some have the same key heads
        kv_heads = sum(share.kv_heads(heads[1]) for share in group.split.shares())
        self.counted = [heads[0] * head_dim, kv_heads * head_dim]

    def pieces(self) -> Iterator[Slice]:
        for name, size, share, weight in zip(self.names, self.sizes, self.shares, self.weights, strict=True):
            yield Slice(f"{name}.weight", (size,), weight.view(-1), row=share.start * weight.shape[1])

    def __call__(self, x: Tensor) -> Tensor:  # [tokens, heads of both, head_dim] float32; changed in place
        parts = x.split([len(share) for share in self.shares], dim=1)
        sums = torch.stack([part.square().sum(dim=(1, 2)) for part in parts])
        sums = self.group.all_reduce(sums)
        for part, weight, square, size in zip(parts, self.weights, sums, self.counted, strict=True):
            part.mul_(square.div(size).add_(self.eps).rsqrt_()[:, None, None]).mul_(weight)
        return x
