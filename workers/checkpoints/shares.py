"""How the ranks of a group share a model: in equal parts, of which each has one, or several that follow each
other. A rank whose card is faster or larger than the others' has more of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise
from math import gcd
from typing import NamedTuple

MOST_PARTS = 8  # that ranks share unevenly: of one with most it is an eighth at least


class Share(NamedTuple):
    """What one rank has of all that is shared: `count` of `parts`, from number `first` on."""

    first: int = 0
    count: int = 1
    parts: int = 1

    def of(self, total: int) -> int:
        """Its part of `total`, each of whose parts is rounded up."""
        return self.count * -(-total // self.parts)

    def range(self, total: int) -> range:
        """Which of `total` rows, columns or heads it has, that the parts divide evenly."""
        part = total // self.parts
        return range(self.first * part, (self.first + self.count) * part)

    def kv_range(self, heads: int) -> range:
        """Which key-value heads it has: where parts outnumber them one, that neighbours have as well."""
        first = self.first * heads // self.parts
        return range(first, first + max(1, self.count * heads // self.parts))

    def kv_heads(self, heads: int) -> int:
        """How many that are."""
        return len(self.kv_range(heads))


class Split(NamedTuple):
    """The parts of each rank."""

    counts: tuple[int, ...] = (1,)

    @classmethod
    def evenly(cls, ranks: int) -> Split:
        """One part each."""
        return cls((1,) * ranks)

    def __str__(self) -> str:
        of_each = "" if self.even else f" with {':'.join(map(str, self.counts))} of it"
        return f"{self.ranks} ranks{of_each}"

    @property
    def ranks(self) -> int:
        return len(self.counts)

    @property
    def parts(self) -> int:
        """Of all ranks together."""
        return sum(self.counts)

    @property
    def even(self) -> bool:
        """Whether all have as many."""
        return len(set(self.counts)) == 1

    def divides_kv(self, heads: int) -> bool:
        """Whether each rank can have some of so many key-value heads, or a copy of the one that it needs."""
        few = self.parts % heads == 0 and (self.even or heads == 1)
        return few or heads % self.parts == 0

    @property
    def part(self) -> Share:
        """One of them, as if a rank had no more."""
        return Share(parts=self.parts)

    def share(self, rank: int) -> Share:
        """What `rank` has."""
        return Share(sum(self.counts[:rank]), self.counts[rank], self.parts)

    def shares(self) -> Iterator[Share]:
        """What each has."""
        return map(self.share, range(self.ranks))


WHOLE = Share()  # of a group of one
ALONE = Split()


def uneven(ranks: int) -> Iterator[Split]:
    """All ways in which not all ranks have as much, each in as few parts as it takes."""
    for parts in range(ranks + 1, MOST_PARTS + 1):
        for ends in combinations(range(1, parts), ranks - 1):
            counts = tuple(end - begin for begin, end in pairwise((0, *ends, parts)))
            if gcd(*counts) == 1:
                yield Split(counts)


def ways(ranks: int) -> Iterator[Split]:
    """All in which so many ranks could share a model: evenly, and then unevenly."""
    yield Split.evenly(ranks)
    yield from uneven(ranks)
