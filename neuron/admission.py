"""The requests of one model: a line that is bounded in length and in time, and those in its worker."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from ipc.errors import Code, CortexError
from neuron.config import Queue
from neuron.generation import Generation
from neuron.group import WorkerGroup

T = TypeVar("T")

HANDED_OVER = 2  # times max_sequences: no slot waits for the supervisor, and the line stays fair
ATTEMPTS = 2  # workers that may get one request; more could mean that it is what kills them


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


class Admission:
    """Lets requests in, hands them to the worker while there is one, and knows what became of them.

    Args:
        queue: how many may wait, and how long.
        max_sequences: that the worker computes at once.
    """

    def __init__(self, queue: Queue, max_sequences: int) -> None:
        self.running: set[Generation] = set()  # handed over, and not ended
        self.quiet = asyncio.Event()  # nothing runs
        self.quiet.set()
        self.counts = {"finished": 0, "cancelled": 0, "failed": 0}  # by outcome
        self._wait_seconds = queue.wait_seconds
        self._handed_over = HANDED_OVER * max_sequences
        self._room: WaitingRoom[Generation] = WaitingRoom(queue.limit, queue.wait_seconds)
        self._group: WorkerGroup | None = None  # while requests are handed over
        self._context_length = 0  # of that group
        self._timer: asyncio.TimerHandle | None = None  # for the first in line

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._room)

    @property
    def idle(self) -> bool:
        """There is no request at all."""
        return not self.running and not len(self._room)

    def open(self, group: WorkerGroup, context_length: int) -> None:
        """From now on requests are handed to `group`."""
        self._group, self._context_length = group, context_length
        self._room.start_clock()
        self.pump()
        self._watch_line()

    def shut(self) -> None:
        """From now on requests wait, and their time does not count."""
        self._group = None
        self._room.stop_clock()
        self._watch_line()

    def admit(self, generation: Generation) -> bool:
        """Take a prepared request. Returns whether it has to wait.

        Raises:
            CortexError: QUEUE_FULL.
        """
        self._room.push(generation)
        self.pump()
        if not len(self._room):
            return False
        if self._group is not None:
            generation.progress("queued", f"{len(self._room)} requests wait for this model")
            self._watch_line()
        return True

    def pump(self) -> None:
        """Hand waiting requests to the worker, as far as it has use for them."""
        while len(self._room) and self._group is not None and len(self._group.open) < self._handed_over:
            generation = self._room.pop()
            try:
                generation.check_length(self._context_length)  # it may be less than before the load
            except CortexError as error:
                generation.fail(error)
                continue
            self.running.add(generation)
            self.quiet.clear()
            self._group.submit(generation.submission(self._context_length), generation)

    def leave(self, generation: Generation) -> bool:
        """Forget a request that ended. Returns whether it was in the worker, which may still have it."""
        self.counts[generation.outcome] += 1
        self._room.discard(generation)
        if generation not in self.running:
            return False
        self.running.discard(generation)
        if not self.running:
            self.quiet.set()
        return True

    def lose_worker(self, error: CortexError) -> None:
        """The worker died: what had begun is lost and says so, the rest stands first in line again."""
        self.shut()
        again = [g for g in self.running if not g.begun and g.attempts < ATTEMPTS]
        again.sort(key=lambda generation: generation.key)  # the order of their arrival
        self.running.difference_update(again)
        self._room.push_front(again)
        for generation in list(self.running):
            generation.fail(error)
        self.quiet.set()

    def fail_all(self, error: CortexError) -> None:
        """End every request, waiting or running."""
        for generation in [*self._room.clear(), *self.running]:
            generation.fail(error)

    def tell(self, message: str, fraction: float | None) -> None:
        """Tell those in line how the load goes that they wait for."""
        for generation in list(self._room):
            generation.progress("loading", message, fraction)

    def _watch_line(self) -> None:
        """See that nobody waits longer than allowed; a timer runs only while somebody does."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for generation in self._room.expired():
            generation.fail(
                CortexError(
                    Code.QUEUE_TIMEOUT,
                    f"the request waited {self._wait_seconds:g} seconds for its turn",
                    retry_after=self._room.retry_after(),
                )
            )
        if (deadline := self._room.next_deadline) is not None:
            delay = max(0.0, deadline - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._watch_line)
