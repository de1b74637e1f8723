"""The waiting room of one model: bounded in length and in time, first come first served."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from ipc.errors import Code, CortexError

T = TypeVar("T")


class WaitingRoom(Generic[T]):
    """Requests that wait for their model to load, or for a place in its worker.

    Time only counts against a request while the model is ready (`start_clock`): how long a load may take is
    the load deadline's business, and a cold model of many gigabytes must not eat the patience of its queue.

    Args:
        limit: requests that may wait at once.
        wait_seconds: how long one may wait while the model is ready.
        now: the clock, monotonic seconds.
    """

    def __init__(self, limit: int, wait_seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._wait_seconds = wait_seconds
        self._now = now
        self._arrivals: OrderedDict[T, float] = OrderedDict()
        self._clock_started: float | None = None
        self._last_departure: float | None = None
        self._departure_gap = 1.0  # seconds, smoothed, measured while others waited

    def __len__(self) -> int:
        return len(self._arrivals)

    def __iter__(self) -> Iterable[T]:
        return iter(self._arrivals)

    def push(self, item: T) -> None:
        """Let `item` wait at the end of the line.

        Raises:
            CortexError: QUEUE_FULL, with an estimate of when a place may be free.
        """
        if len(self._arrivals) >= self._limit:
            raise CortexError(
                Code.QUEUE_FULL,
                f"{len(self._arrivals)} requests already wait for this model, which is its limit",
                retry_after=self.retry_after(),
                details={"waiting": len(self._arrivals), "limit": self._limit},
            )
        self._arrivals[item] = self._now()

    def push_front(self, items: Iterable[T]) -> None:
        """Put `items`, in their order, before all others: they were already let in once."""
        for item in reversed(list(items)):
            self._arrivals[item] = self._now()
            self._arrivals.move_to_end(item, last=False)

    def pop(self) -> T:
        """Take the one that waits longest. Raises KeyError when nobody waits."""
        item, _ = self._arrivals.popitem(last=False)
        now = self._now()
        if self._last_departure is not None:
            self._departure_gap += 0.2 * (now - self._last_departure - self._departure_gap)
        self._last_departure = now if self._arrivals else None
        return item

    def discard(self, item: T) -> None:
        """Forget `item`, which may have left already."""
        self._arrivals.pop(item, None)

    def clear(self) -> list[T]:
        """Take everybody, in order."""
        everybody = list(self._arrivals)
        self._arrivals.clear()
        return everybody

    def retry_after(self) -> float:
        """Seconds until the line, as it is, should be gone: from 1 to 120."""
        return min(max(1.0, len(self._arrivals) * self._departure_gap), 120.0)

    def start_clock(self) -> None:
        """The model is ready: waiting time counts from now on."""
        self._clock_started = self._now()

    def stop_clock(self) -> None:
        """The model is not ready: waiting time does not count."""
        self._clock_started = None

    @property
    def next_deadline(self) -> float | None:
        """When the first in line has waited long enough, on the clock `now`; None while no time counts."""
        if self._clock_started is None or not self._arrivals:
            return None
        return max(next(iter(self._arrivals.values())), self._clock_started) + self._wait_seconds

    def expired(self) -> list[T]:
        """Take out those who have waited too long."""
        late = []
        while (deadline := self.next_deadline) is not None and deadline <= self._now():
            late.append(self._arrivals.popitem(last=False)[0])
        return late
