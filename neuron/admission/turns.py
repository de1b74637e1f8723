"""Deficit round robin: those who share something take turns, and what they use is counted in tokens.

Each share has a credit. One whose credit is above 0 is served, as long as it is; then it gets `QUANTUM` more
and goes to the end of the ring. What a request costs is taken off as it is served, and put right once it is
known better, so credit may fall far below 0: whoever was served much is passed by until that is paid.
(Shreedhar and Varghese, "Efficient Fair Queuing using Deficit Round Robin", 1995, with the credit charged
afterwards, as Linux' fq_codel does.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence, Sized
from dataclasses import dataclass
from typing import Generic, TypeVar

QUANTUM = 16  # tokens: less than most requests, or one with small ones had many turns in a row

K = TypeVar("K", bound=Hashable)
Q = TypeVar("Q", bound=Sized)
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Share(Generic[K, Q]):
    """What one of those who take turns has waiting; while it is empty it stays until its debt is paid."""

    key: K
    queue: Q
    credit: int = QUANTUM

    def give(self, tokens: int) -> None:
        """Put right what it was charged; up to what a new one has, for it may have been alone meanwhile."""
        self.credit = min(self.credit + tokens, QUANTUM)


class Turns(Generic[K, Q]):
    """The ring of them.

    Args:
        make: an empty queue, for one who is new.
    """

    def __init__(self, make: Callable[[], Q]) -> None:
        self._make = make
        self._ring: deque[Share[K, Q]] = deque()
        self._shares: dict[K, Share[K, Q]] = {}

    def __bool__(self) -> bool:
        """Whether something waits in any of them."""
        return any(share.queue for share in self._ring)

    def get(self, key: K) -> Share[K, Q] | None:
        return self._shares.get(key)

    def enter(self, key: K) -> Share[K, Q]:
        """The share of that one, who comes last where it had none."""
        if (share := self._shares.get(key)) is None:
            share = self._shares[key] = Share(key, self._make())
            self._ring.append(share)
        return share

    def waiting(self) -> list[Share[K, Q]]:
        """Those in which something waits, beginning with the one that has the turn."""
        return [share for share in self._ring if share.queue]

    def next(self) -> Share[K, Q]:
        """Who is to be served; something must be waiting."""
        ring = self._ring
        in_vain = min(rounds(share.credit) for share in ring if share.queue) - 1
        if in_vain > 0:  # whole rounds in which nobody would be served
            for share in ring:
                share.credit += in_vain * QUANTUM
        while True:
            share = ring[0]
            if share.credit <= 0:
                share.credit += QUANTUM
                ring.rotate(-1)
            elif share.queue:
                return share
            else:  # it owes nothing any more
                del self._shares[share.key]
                ring.popleft()


def rounds(credit: int) -> int:
    """How often one with that credit is passed by before it is served."""
    return 0 if credit > 0 else -credit // QUANTUM + 1


def in_order(queues: Iterable[tuple[int, Sequence[tuple[T, int]]]]) -> list[tuple[T, int]]:
    """All that waits in the order in which it will be served, if nothing comes meanwhile.

    Args:
        queues: of each share, as the ring has them, its credit and what waits in it, with its cost.
    """
    found: list[tuple[int, tuple[T, int]]] = []
    for credit, queue in queues:
        for entry in queue:
            found.append((rounds(credit), entry))
            credit -= entry[1]
    found.sort(key=lambda each: each[0])  # equal ones stay as the ring has them
    return [entry for _, entry in found]
