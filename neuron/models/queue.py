"""The requests of one model: those that have not begun, bounded in number and in time, and those that have.

Who is next is decided in one place, the worker's scheduler: whatever was prepared is handed over as soon as
the model is ready, and counts as waiting until the worker has computed some of it.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from ipc.errors import Code, CortexError
from neuron.config import Queue
from neuron.processes.group import WorkerGroup
from neuron.requests.progress import LoadProgress
from neuron.requests.request import OpenRequest

T = TypeVar("T")

ATTEMPTS = 2  # workers that may get one request; more could mean that it is what kills them


class WaitingLine(Generic[T]):
    """Requests that wait for their model to load, or in its worker for their turn.

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

    def push(self, item: T, spare: int = 0) -> None:
        """Let `item` wait at the end of the line.

        Args:
            spare: how many of those who wait have a place already, and only await their turn to take it.

        Raises:
            CortexError: QUEUE_FULL, with an estimate of when a place may be free.
        """
        if len(self._arrivals) >= self._limit + spare:
            raise CortexError(
                Code.QUEUE_FULL,
                f"{len(self._arrivals)} requests already wait for this model, which is its limit",
                retry_after=self.retry_after(),
                details={"waiting": len(self._arrivals), "limit": self._limit},
            )
        self._arrivals[item] = self._now()

    def depart(self, item: T) -> None:
        """`item` has its turn. Nothing happens when it is not there."""
        if self._arrivals.pop(item, None) is None:
            return
        now = self._now()
        if self._last_departure is not None:
            self._departure_gap += 0.2 * (now - self._last_departure - self._departure_gap)
        self._last_departure = now if self._arrivals else None

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


class RequestQueue:
    """Lets requests in, hands them to the worker while there is one, and knows what became of them.

    Args:
        queue: how many may wait, and how long.
        max_sequences: that the worker computes at once.
    """

    def __init__(self, queue: Queue, max_sequences: int) -> None:
        self.running: set[OpenRequest] = set()  # begun, and not ended
        self.quiet = asyncio.Event()  # nothing is in the worker
        self.quiet.set()
        self.counts = {"finished": 0, "cancelled": 0, "failed": 0}  # by outcome
        self._wait_seconds = queue.wait_seconds
        self._max_sequences = max_sequences
        self._room: WaitingLine[OpenRequest] = WaitingLine(queue.limit, queue.wait_seconds)
        self._unhanded: dict[OpenRequest, None] = {}  # in the room, and not in the worker; in order
        self._handed: set[OpenRequest] = set()  # in the worker
        self._group: WorkerGroup | None = None  # while requests are handed over
        self._context_length = 0  # of that group
        self._timer: asyncio.TimerHandle | None = None  # for the first in line

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._room)

    @property
    def idle(self) -> bool:
        """There is no request at all."""
        return not self._handed and not len(self._room)

    def open(self, group: WorkerGroup, context_length: int) -> None:
        """From now on requests are handed to `group`."""
        self._group, self._context_length = group, context_length
        self._room.start_clock()
        self._hand_over()
        self._watch_line()

    def shut(self) -> None:
        """From now on requests wait, and their time does not count."""
        self._group = None
        self._room.stop_clock()
        self._watch_line()

    def admit(self, work: OpenRequest) -> bool:
        """Take a prepared request. Returns whether it has to wait for a worker.

        Raises:
            CortexError: QUEUE_FULL.
        """
        spare = max(0, self._max_sequences - len(self.running)) if self._group is not None else 0
        self._room.push(work, spare)
        self._unhanded[work] = None
        if self._group is None:
            return True
        if len(self._handed) >= self._max_sequences:
            work.progress("queued", LoadProgress(f"{len(self._room)} requests wait for this model"))
        self._hand_over()
        if self._timer is None:
            self._watch_line()
        return False

    def begin(self, work: OpenRequest) -> None:
        """The worker has computed some of it."""
        self._room.depart(work)
        self.running.add(work)

    def leave(self, work: OpenRequest) -> bool:
        """Forget a request that ended. Returns whether it was in the worker, which may still have it."""
        self.counts[work.outcome] += 1
        self._room.discard(work)
        self._unhanded.pop(work, None)
        self.running.discard(work)
        if work not in self._handed:
            return False
        self._handed.discard(work)
        if not self._handed:
            self.quiet.set()
        return True

    def lose_worker(self, error: CortexError) -> None:
        """The worker died: what had begun is lost and says so, the rest stands first in line again."""
        self.shut()
        again = [g for g in self._handed if not g.begun and g.attempts < ATTEMPTS]
        again.sort(key=lambda work: work.key)  # the order of their arrival
        self._handed.difference_update(again)
        self._unhanded = dict.fromkeys(again) | self._unhanded
        for work in list(self._handed):
            work.fail(error)
        self.quiet.set()

    def _hand_over(self) -> None:
        """Give the worker all that it does not have."""
        for work in list(self._unhanded):
            del self._unhanded[work]
            try:
                work.check_length(self._context_length)  # it may be less than before the load
            except CortexError as error:
                work.fail(error)
                continue
            self._handed.add(work)
            self.quiet.clear()
            try:
                for part in work.hand_over(self._context_length):
                    self._group.submit(part.submit, part)
            except CortexError as error:
                work.fail(error)

    def fail_all(self, error: CortexError) -> None:
        """End every request, waiting or running."""
        for work in [*self._room.clear(), *self._handed]:
            work.fail(error)

    def tell(self, progress: LoadProgress) -> None:
        """Tell those in line how the load goes that they wait for."""
        for work in list(self._room):
            work.progress("loading", progress)

    def _watch_line(self) -> None:
        """See that nobody waits longer than allowed; a timer runs only while somebody does."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for work in self._room.expired():
            work.fail(
                CortexError(
                    Code.QUEUE_TIMEOUT,
                    f"the request waited {self._wait_seconds:g} seconds for its turn",
                    retry_after=self._room.retry_after(),
                )
            )
        if (deadline := self._room.next_deadline) is not None:
            delay = max(0.0, deadline - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._watch_line)
