"""How many may wait for one model, of one account and of all, and for how long."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from math import inf
from typing import Generic, TypeVar

from ipc.errors import Code, CortexError

MOST_BYTES = 1 << 30  # of images, with all that wait

T = TypeVar("T", bound=Hashable)


class Bounds(Generic[T]):
    """Those that have not begun, in the order of their arrival.

    Time only counts against one while turns can be had (`start_clock`): how long a load may take is the load
    deadline's business, and a cold model of many gigabytes must not eat the patience of those who wait.

    Args:
        limit: of all.
        account_limit: of one account.
        wait_seconds: how long one may wait.
        now: the clock, monotonic seconds.
    """

    def __init__(
        self, limit: int, account_limit: int, wait_seconds: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit, self._account_limit = limit, account_limit
        self.wait_seconds = wait_seconds
        self._now = now
        self._arrivals: OrderedDict[T, tuple[float, str, int]] = OrderedDict()  # when, of whom, and bytes
        self._of_account: Counter[str] = Counter()
        self._bytes = 0
        self._clock_started: float | None = None

    def __len__(self) -> int:
        return len(self._arrivals)

    def __iter__(self) -> Iterator[T]:
        return iter(self._arrivals)

    def __contains__(self, item: object) -> bool:
        return item in self._arrivals

    def enter(self, item: T, account: str, spare: int = 0, size: int = 0) -> None:
        """`item` waits from now on.

        Args:
            spare: how many of those who wait have a place already, and only await their turn to take it.
            size: bytes of the images that it has; one may be as large as it likes where no other has any.

        Raises:
            CortexError: QUEUE_FULL.
        """
        waiting, of_account = len(self._arrivals), self._of_account[account]
        if waiting >= self._limit + spare:
            text = f"{waiting} requests already wait for this model, which is its limit (queue.limit)"
            raise _full(text, waiting, self._limit)
        if of_account >= self._account_limit + spare:
            text = (
                f"{of_account} requests of this account already wait for this model, which is as many as one "
                "account may have there (queue.account_limit)"
            )
            raise _full(text, of_account, self._account_limit)
        if size and self._bytes and self._bytes + size > MOST_BYTES:
            text = f"the images of requests that wait for this model come to {self._bytes >> 20} MiB, and"
            raise _full(f"{text} {MOST_BYTES >> 20} MiB may wait", waiting, self._limit)
        self._of_account[account] = of_account + 1
        self._bytes += size
        self._arrivals[item] = self._now(), account, size

    def arrived(self, item: T) -> float:
        """When `item` came, on the clock `now`; inf: it waits no more."""
        arrival, *_ = self._arrivals.get(item, (inf,))
        return arrival

    def leave(self, item: T) -> None:
        """`item` has begun, or waits no more. Nothing happens when it is not there."""
        if (arrival := self._arrivals.pop(item, None)) is None:
            return
        _, account, size = arrival
        self._bytes -= size
        left = self._of_account[account] - 1
        if left:
            self._of_account[account] = left
        else:
            del self._of_account[account]

    def start_clock(self) -> None:
        """Turns can be had: waiting time counts from now on."""
        self._clock_started = self._now()

    def stop_clock(self) -> None:
        """Nobody can have a turn: waiting time does not count."""
        self._clock_started = None

    @property
    def next_deadline(self) -> float | None:
        """When the first of them has waited long enough, on the clock `now`; None while no time counts."""
        if self._clock_started is None or not self._arrivals:
            return None
        arrived, *_ = next(iter(self._arrivals.values()))
        return max(arrived, self._clock_started) + self.wait_seconds

    def expired(self) -> T | None:
        """The first of them, where it has waited too long."""
        deadline = self.next_deadline
        return next(iter(self._arrivals)) if deadline is not None and deadline <= self._now() else None


def _full(message: str, waiting: int, limit: int) -> CortexError:
    return CortexError(Code.QUEUE_FULL, message, details={"waiting": waiting, "limit": limit})
