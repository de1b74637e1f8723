"""A matrix for each head of its own, which multiplies what that head has."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from workers.layers.steady import cancelling, steadily, steady_counts
from workers.parallel import RankGroup
from workers.weights.blocks import Empty
from workers.weights.loader import Slice


class HeadLinear:
    """The matrices that make keys and values of a latent vector, for the heads of this rank.

    Args:
        name: in the checkpoint, without `.weight`: of each head the rows of its keys, then those of its
            values.
        sizes: of a head's key and of its value.
        rank: size of the latent vector.
        heads: on all ranks.
    """

    def __init__(
        self, name: str, sizes: tuple[int, int], rank: int, heads: int, group: RankGroup, empty: Empty
    ) -> None:
        self.name, self.sizes = name, sizes
        share = group.share(heads)
        self.first, self.shape = share.start * sum(sizes), (heads * sum(sizes), rank)
        self.weight = empty(len(share) * sum(sizes), rank)
        self._counts: list[int] | None = None  # of rows; None: any

    def pieces(self) -> Iterator[Slice]:
        yield Slice(f"{self.name}.weight", self.shape, self.weight, row=self.first)

    @property
    def _parts(self) -> tuple[Tensor, Tensor]:  # [heads, size, rank] each
        return self.weight.view(-1, sum(self.sizes), self.shape[1]).split(self.sizes, dim=1)

    def through_keys(self, x: Tensor) -> Tensor:  # [tokens, heads, key size] -> [tokens, heads, rank]
        """A query for the latent vector, of one for the keys that would be made of it."""
        return self._product(x, self._parts[0])

    def through_values(self, x: Tensor) -> Tensor:  # [tokens, heads, rank] -> [tokens, heads, value size]
        """The value that a head makes of a latent vector."""
        return self._product(x, self._parts[1].transpose(1, 2))

    def make_exact(self) -> None:
        """From now on give a token the same bits whatever stands beside it."""
        keys, values = self._parts
        found = []
        for matrix in (keys, values.transpose(1, 2)):
            heads, size, made = matrix.shape
            probe, weight = cancelling(made, size, matrix.dtype, matrix.device)
            like = torch.empty_strided(
                matrix.shape, matrix.stride(), dtype=matrix.dtype, device=matrix.device
            )
            like.copy_(weight.T)
            probe = probe[:, None].repeat(1, heads, 1)
            found.append(steady_counts(lambda x, like=like: _each(x, like), probe))
        self._counts = [count for count in found[0] if count in found[1]] or [1]

    def _product(self, x: Tensor, matrix: Tensor) -> Tensor:
        if self._counts is None:
            return _each(x, matrix)
        return steadily(lambda rows: _each(rows, matrix), x, self._counts)


def _each(x: Tensor, matrix: Tensor) -> Tensor:  # [tokens, heads, n], [heads, n, m] -> [tokens, heads, m]
    y = x.new_empty(*x.shape[:2], matrix.shape[2])  # contiguous, as what comes behind takes it
    torch.bmm(x.transpose(0, 1), matrix, out=y.transpose(0, 1))
    return y
