"""Attention sinks (https://arxiv.org/abs/2309.17453), as gpt-oss learns them."""

from __future__ import annotations

from collections.abc import Iterator

from workers.parallel import RankGroup
from workers.weights.blocks import Empty
from workers.weights.loader import Slice


class Sinks:
    """A score for nothing, of each head of this rank: what goes there is taken from no token."""

    def __init__(self, name: str, heads: int, group: RankGroup, empty: Empty) -> None:
        self.name, self.heads, self.share = name, heads, group.share(heads)
        self.weight = empty(len(self.share))

    def pieces(self) -> Iterator[Slice]:
        yield Slice(self.name, (self.heads,), self.weight, row=self.share.start)
