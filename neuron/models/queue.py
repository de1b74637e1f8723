"""The requests of one model: those that have not begun, bounded in number and in time, and those that have.

Who is next is decided in one place, the worker's scheduler: whatever was prepared is handed over as soon as
the model is ready, and counts as waiting until the worker has computed some of it.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from ipc.errors import Code, CortexError
from neuron.config import Queue
from neuron.processes.group import WorkerGroup
from neuron.requests.progress import LoadProgress
from neuron.requests.request import OpenRequest, Phase

T = TypeVar("T")

TELL_SECONDS = 1.0  # between two times that a request is told where it stands
ATTEMPTS = 2  # workers that may die with one request; more would mean that it is what kills them


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

    def __iter__(self) -> Iterator[T]:
        return iter(self._arrivals)

    def arrivals(self) -> Iterable[tuple[T, float]]:
        """Everybody with the time of their arrival, in order."""
        return self._arrivals.items()

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

    How far each is, its own `phase` says; those that have not begun stand in the line as well.

    Args:
        queue: how many may wait, and how long.
        max_sequences: that the worker computes at once; of the next worker it may be another number.
        serves: whether the worker has the adapter of a request that has one. While it has not, the request
            waits; `resume` says when to ask again.
    """

    def __init__(
        self, queue: Queue, max_sequences: int, serves: Callable[[OpenRequest], bool] = lambda request: True
    ) -> None:
        self.counts = {"finished": 0, "cancelled": 0, "failed": 0}  # by outcome
        self._wait_seconds = queue.wait_seconds
        self._serves = serves
        self.max_sequences = max_sequences
        self._requests: dict[OpenRequest, None] = {}  # all that are open, in the order of their arrival
        self._line: WaitingLine[OpenRequest] = WaitingLine(queue.limit, queue.wait_seconds)
        self._group: WorkerGroup | None = None  # while requests are handed over
        self._context_length = 0  # of that group
        self._timer: asyncio.TimerHandle | None = (
            None  # for the first in line, and for the news of the others
        )

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._line)

    @property
    def running(self) -> int:
        """Requests that have begun."""
        return len(self._requests) - len(self._line)

    @property
    def idle(self) -> bool:
        """There is no request at all."""
        return not self._requests

    @property
    def quiet(self) -> bool:
        """Nothing is in the worker."""
        return not any(request.phase in ("queued", "running") for request in self._requests)

    def open(self, group: WorkerGroup, context_length: int) -> None:
        """From now on requests are handed to `group`."""
        self._group, self._context_length = group, context_length
        self._line.start_clock()
        self.resume()
        self._watch_line()

    def resume(self) -> None:
        """Hand over what waits, as far as the worker has its adapters."""
        if self._group is not None:
            self._hand_over([request for request in self._line if request.phase == "waiting"])

    def with_adapter(self, number: int, *phases: Phase) -> list[OpenRequest]:
        """The requests for that adapter which are in one of these phases, in the order of their arrival."""
        return [
            request for request in self._requests if request.adapter == number and request.phase in phases
        ]

    def shut(self) -> None:
        """From now on requests wait, and their time does not count."""
        self._group = None
        self._line.stop_clock()
        self._watch_line()

    def take_back(self) -> None:
        """Have all that the worker did not begin wait again, for the next worker."""
        group = self._group
        self.shut()
        for request in [request for request in self._line if request.phase == "queued"]:
            for part in request.parts:
                group.withdraw(part.submit.request_id)
            request.take_back()

    def admit(self, request: OpenRequest) -> bool:
        """Take a prepared request. Returns whether it has to wait for a worker.

        Raises:
            CortexError: QUEUE_FULL.
        """
        # While the model loads, as many as it computes at once have a place there, too.
        self._line.push(request, max(0, self.max_sequences - self.running))
        request.phase = "waiting"
        self._requests[request] = None
        if self._group is None:
            return True
        if len(self._requests) > self.max_sequences:
            request.progress(_place_in_line(len(self._line)))
        self._hand_over([request])
        if self._timer is None:
            self._watch_line()
        return False

    def begin(self, request: OpenRequest) -> None:
        """The worker has computed some of it."""
        self._line.depart(request)

    def leave(self, request: OpenRequest) -> None:
        """Forget a request that ended."""
        if request in self._requests:  # else it was never let in
            del self._requests[request]
            self.counts[request.outcome] += 1
            self._line.discard(request)

    def lose_worker(self, error: CortexError) -> None:
        """The worker died: what had begun is lost and says so, the rest waits for the next one."""
        self.shut()
        for request in list(self._requests):
            if request.phase not in ("queued", "running"):
                continue
            request.deaths += 1
            if request.phase == "queued" and request.deaths < ATTEMPTS:
                request.phase = "waiting"
            else:
                request.fail(error)

    def _hand_over(self, requests: Iterable[OpenRequest]) -> None:
        """Give the worker what it does not have."""
        for request in requests:
            try:
                request.check_length(self._context_length)  # it may be less than before the load
            except CortexError as error:
                request.fail(error)
                continue
            if request.adapter and not self._serves(request):
                continue
            try:
                for part in request.hand_over(self._context_length):
                    self._group.submit(part.submit, part)
            except CortexError as error:
                request.fail(error)

    def fail_all(self, error: CortexError) -> None:
        """End every request, waiting or running."""
        for request in list(self._requests):
            request.fail(error)

    def tell(self, progress: LoadProgress) -> None:
        """Tell those in line how the load goes that they wait for."""
        for request in list(self._line):
            request.progress(progress)

    def _watch_line(self) -> None:
        """See that nobody waits longer than allowed, and knows where it stands; a timer runs only while
        somebody waits for a worker that is there.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for request in self._line.expired():
            request.fail(
                CortexError(
                    Code.QUEUE_TIMEOUT,
                    f"the request waited {self._wait_seconds:g} seconds for its turn",
                    retry_after=self._line.retry_after(),
                )
            )
        if (deadline := self._line.next_deadline) is not None:
            delay = min(max(0.0, deadline - time.monotonic()), TELL_SECONDS)
            self._timer = asyncio.get_running_loop().call_later(delay, self._watch_line)
            self._tell_places()

    def _tell_places(self) -> None:
        """Tell those who still wait how many stand before them. Priorities and accounts may change that."""
        if len(self._requests) <= self.max_sequences:
            return  # each has a place, and begins with the next step
        now = time.monotonic()
        for position, (request, since) in enumerate(self._line.arrivals(), 1):
            if now - since < TELL_SECONDS:
                return
            request.progress(_place_in_line(position))


def _place_in_line(position: int) -> LoadProgress:
    return LoadProgress(f"number {position} in the line for this model", stage="queued", position=position)
