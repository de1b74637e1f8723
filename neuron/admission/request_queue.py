"""The requests of one model: those that wait for their turn, and those that the worker has.

The order is decided here. The worker gets no more sequences than it computes at once, and a few that are
ready for the moment in which one ends; all else waits in a `FairLine`, which lets go of one sequence at a
time. Of what the worker has, it shares out the tokens of each step (`workers/scheduling/fair_queue.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection
from math import inf

from ipc.errors import Code, CortexError
from neuron.admission.bounds import Bounds
from neuron.admission.fair_line import Claim, FairLine
from neuron.admission.service_rate import ServiceRate
from neuron.config import Queue
from neuron.processes.group import WorkerGroup
from neuron.requests.progress import LoadProgress
from neuron.requests.request import OpenRequest, OpenSequence, Phase

TELL_SECONDS = 1.0  # between two times that a request is told where it stands
SOON_SECONDS = 0.2  # until it is told that first, together with others that came
ATTEMPTS = 2  # workers that may die with one request: it may be what kills them, or another that they had
MOST_DEATHS = 5  # the same, where it was never alone with them
AHEAD_SHARE = 8  # one in so many sequences that a worker computes at once, that it has ready beside these
USUAL_OUTPUT = 256  # tokens of an answer, until some were measured
AGEING_SHARE = 2  # of the time that one may wait: then its account has a turn whatever its priority


class RequestQueue:
    """Lets requests in, hands them to the worker in their order, and knows what became of them.

    How far each is, its own `phase` says.

    Args:
        settings: how many may wait, and how long.
        max_sequences: that the worker computes at once; of the next worker it may be another number.
        whole: a sequence takes one step, so that the worker needs as many ready as it computes at once.
        serves: whether the worker has the adapter of a request that has one. While it has not, the request
            waits beside the line; `resume` says when to ask again.
    """

    def __init__(
        self,
        settings: Queue,
        max_sequences: int,
        whole: bool = False,
        serves: Callable[[OpenRequest], bool] = lambda request: True,
    ) -> None:
        self.counts = {"finished": 0, "cancelled": 0, "failed": 0}  # by outcome
        self.adopt(max_sequences, whole)
        self._requests: dict[OpenRequest, None] = {}  # all that are open, in the order of their arrival
        self._not_begun: Bounds[OpenRequest] = Bounds(
            settings.limit, settings.most_of_one_account, settings.wait_seconds
        )
        self._line: FairLine[OpenRequest] = FairLine(settings.wait_seconds / AGEING_SHARE)
        self._rest: dict[OpenRequest, deque[OpenSequence]] = {}  # what the worker lacks of one that it has
        self._serves = serves
        self._aside: dict[OpenRequest, None] = {}  # those that wait for their adapter
        # Workers died with each of these: they are tried alone, one after the other, before all others, until
        # they have more tokens than these.
        self._suspects: dict[OpenRequest, float] = {}
        self._rate = ServiceRate()
        self._usual_output = float(USUAL_OUTPUT)
        self._request_seconds = 1.0  # that one is in the worker, smoothed
        self._group: WorkerGroup | None = None  # while requests are handed over
        self._context_length = 0  # of that group
        self._worker_waits = 0  # sequences that had no place in its last step
        self._timer: asyncio.TimerHandle | None = None  # for the first to be late, and for the news of all
        self._untold: set[OpenRequest] = set()  # that wait, and do not know where
        self._telling: asyncio.TimerHandle | None = None

    def adopt(self, max_sequences: int, whole: bool) -> None:
        """The next worker is like this."""
        self.max_sequences = max_sequences
        self._ahead = max_sequences if whole else max(1, max_sequences // AHEAD_SHARE)

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._not_begun)

    @property
    def running(self) -> int:
        """Requests that have begun."""
        return len(self._requests) - len(self._not_begun)

    @property
    def idle(self) -> bool:
        """There is no request at all."""
        return not self._requests

    @property
    def quiet(self) -> bool:
        """Nothing is in the worker."""
        return not any(request.phase in ("queued", "running") for request in self._requests)

    @property
    def seconds_in_worker(self) -> float:
        """That a request is there, smoothed."""
        return self._request_seconds

    # --- whether there is a worker ------------------------------------------------------------------------

    def open(self, group: WorkerGroup, context_length: int) -> None:
        """From now on requests are handed to `group`."""
        self._group, self._context_length, self._worker_waits = group, context_length, 0
        self._not_begun.start_clock()
        self._line.start_clock()
        self._feed()
        self._watch()

    def resume(self) -> None:
        """Let those that waited for their adapter have their turns, as far as the worker has it now."""
        if self._group is not None:
            self._end_aside()
            self._feed()

    def with_adapter(self, number: int, *phases: Phase) -> list[OpenRequest]:
        """The requests for that adapter which are in one of these phases, in the order of their arrival."""
        return [
            request for request in self._requests if request.adapter == number and request.phase in phases
        ]

    def shut(self) -> None:
        """From now on requests wait, and their time does not count."""
        self._group = None
        self._end_aside()
        self._not_begun.stop_clock()
        self._line.stop_clock()
        self._rate.end(time.monotonic())
        self._watch()

    def take_back(self) -> None:
        """Have all that the worker did not begin wait again, for the next worker; what began is all there."""
        group = self._group
        for request in list(self._rest):
            while request.phase == "running" and request in self._rest:
                self._hand_over(request)
        self.shut()
        for request in self._queued():
            if self._withdraw(request, group):
                self._wait_again(request)

    def interrupt(self, group: WorkerGroup) -> None:
        """Have all that the worker has wait for the next one, to go on where it was.

        Who can go on elsewhere at once fails, as in `lose_worker`.
        """
        for request in list(reversed(self._requests)):
            runs = request.phase == "running"
            if request.phase not in ("queued", "running") or not self._withdraw(request, group):
                continue
            if runs and request.replicated:
                request.fail(CortexError(Code.INSUFFICIENT_MEMORY, "its model makes room for another"))
            else:
                self._wait_again(request)

    def interrupt_adapter(self, number: int) -> None:
        """The same of all that use that adapter, until it is there again."""
        for request in reversed(self.with_adapter(number, "queued", "running")):
            if self._group is not None and self._withdraw(request, self._group):
                self._wait_again(request)
        self.resume()

    def lose_worker(self, error: CortexError) -> None:
        """The worker died: what it had waits for the next one, to go on where it was.

        One of them may be what killed it. Who was there when a second one died is tried alone, and fails when
        that dies, too; so does who can go on elsewhere at once.
        """
        self.shut()
        had = [request for request in reversed(self._requests) if request.phase in ("queued", "running")]
        for request in had:
            request.deaths += 1
            guilty = request.deaths >= ATTEMPTS and (len(had) == 1 or request.deaths >= MOST_DEATHS)
            if guilty or (request.phase == "running" and request.replicated):
                request.fail(error)
            else:
                request.phase = "waiting"
                self._wait_again(request)

    def on_steps(self, waiting: int) -> None:
        """The worker has made steps; in the last one so many sequences had no place."""
        self._worker_waits = waiting
        if self._line or self._suspects:
            self._feed()

    # --- requests -----------------------------------------------------------------------------------------

    def admit(self, request: OpenRequest) -> bool:
        """Take a prepared request. Returns whether it has to wait for a worker.

        Raises:
            CortexError: QUEUE_FULL, with an estimate of when a place may be free.
        """
        try:
            # While the model loads, as many as it computes at once have a place there, too.
            spare = max(0, self.max_sequences - self.running)
            self._not_begun.enter(request, request.request.account, spare, request.image_bytes)
        except CortexError as error:
            error.retry_after = self._retry_after(self.waiting)
            raise
        request.phase = "waiting"
        self._requests[request] = None
        if self._group is None:
            self._line.push(request, self._claim(request))
            return True
        if not self._line and self._has_room():
            if len(self._group.open) >= self.max_sequences:  # it is ready for the moment in which one ends
                position = len(self._places()) + 1
                request.progress(self._progress(position, position))
            self._hand_over(request)
            if request in self._rest:
                self._line.push(request, self._claim(request))
                self._feed()
        elif request.adapter and not self._serves(request):
            self._aside[request] = None
        else:
            self._line.push(request, self._claim(request))
            self._tell_soon(request)
        if self._timer is None:
            self._watch()
        return False

    def begin(self, request: OpenRequest) -> None:
        """The worker has computed some of it."""
        self._not_begun.leave(request)

    def reuse(self, request: OpenRequest, tokens: int) -> None:
        """What so many tokens are worth of its prompt was computed before, and costs nothing."""
        if self._line:
            self._line.refund(request, tokens)

    def leave(self, request: OpenRequest) -> None:
        """Forget a request that ended."""
        if request not in self._requests:  # it was never let in
            return
        del self._requests[request]
        self.counts[request.outcome] += 1
        if request.outcome == "finished":
            self._request_seconds += 0.2 * (request.seconds_in_worker - self._request_seconds)
            self._usual_output += 0.1 * (request.output_tokens - self._usual_output)
        if self._line:
            self._line.leave(request, 0 if request in self._not_begun else request.tokens_computed)
        self._not_begun.leave(request)
        self._rest.pop(request, None)
        self._aside.pop(request, None)
        self._suspects.pop(request, None)
        self._untold.discard(request)

    def fail_all(self, error: CortexError) -> None:
        """End every request, waiting or running."""
        for request in list(self._requests):
            request.fail(error)

    # --- without memory -----------------------------------------------------------------------------------

    def waits_since(self, adapter: int = 0) -> float:
        """When the request came that has waited longest and has not begun, of all or of those for an adapter;
        -inf: there is none; inf: only such as have begun."""
        return min(map(self._not_begun.arrived, self._waiting_for(adapter)), default=-inf)

    def refuse(self, since: float, error: CortexError, adapter: int = 0) -> bool:
        """Have those fail that came until then and have not begun, unless these are all. Returns whether
        there are others."""
        waiting = self._waiting_for(adapter)
        late = [request for request in waiting if self._not_begun.arrived(request) <= since]
        if len(late) == len(waiting):
            return False
        for request in late:
            request.fail(error)
        return True

    def _waiting_for(self, adapter: int) -> list[OpenRequest]:
        return self.with_adapter(adapter, "waiting") if adapter else list(self._requests)

    # --- turns --------------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        """Whether there is a worker that can take one more sequence now, or soon."""
        if self._group is None or self._suspects:
            return False
        there = len(self._group.open)
        if there >= self.max_sequences + self._ahead:
            return False
        # It may have fewer places than that, where pages are short: then what it has is enough.
        return self._worker_waits <= self._ahead or not there

    def _feed(self) -> None:
        """Hand over what has its turn, as far as the worker has room."""
        self._try_suspects()
        while self._line and self._has_room():
            request = self._line.next()
            begins = request not in self._rest
            self._hand_over(request)
            if begins and request not in self._aside:
                self._rate.count(time.monotonic())
        if self._line and self._group is not None:  # the end of one that failed may have others come first
            self._rate.begin(time.monotonic())
        else:
            self._rate.end(time.monotonic())

    def _try_suspects(self) -> None:
        """Hand over the next one, once the one before it has ended, or gone on and waits for the others.

        One whose adapter came late finds others in the worker, and waits until these have ended.
        """
        while self._suspects and self._group is not None:
            request = min(self._suspects, key=lambda suspect: (suspect.phase == "waiting", suspect.key))
            if request.phase != "waiting":
                if request.output_tokens <= self._suspects[request]:
                    return
                del self._suspects[request]
                if self._suspects and self._withdraw(request, self._group):
                    self._line.put_back(request, self._claim(request))
            elif self._group.open:
                return
            else:
                self._suspects[request] = request.output_tokens
                self._hand_over(request)
                while request in self._rest:
                    self._hand_over(request)

    def _hand_over(self, request: OpenRequest) -> None:
        """Give the worker the next of its sequences."""
        parts = self._rest.pop(request, None)
        try:
            if parts is None:
                request.check_length(self._context_length)  # it may be less than before the load
                if request.adapter and not self._serves(request):
                    self._line.leave(request)
                    self._suspects.pop(request, None)
                    self._aside[request] = None
                    return
                parts = deque(request.hand_over(self._context_length))
            if not parts:  # others wrote all of it
                self._line.leave(request)
                return
            part = parts.popleft()
            if request in self._line:
                self._line.serve(request, self._cost_of(request, part), all_of_it=not parts)
            if parts:
                self._rest[request] = parts
            self._group.submit(part.submit, part, part.images)
        except CortexError as error:
            request.fail(error)

    def _claim(self, request: OpenRequest) -> Claim:
        asked = request.request
        cost = sum(self._cost_of(request, part) for part in request.parts)
        return Claim(asked.priority, asked.account, request.session, cost)

    def _cost_of(self, request: OpenRequest, part: OpenSequence) -> int:
        return request.cost_of(part, round(self._usual_output))

    def _queued(self) -> list[OpenRequest]:
        """Those that the worker has and did not begin, the last one first."""
        return [request for request in reversed(self._requests) if request.phase == "queued"]

    def _end_aside(self) -> None:
        """Have those that wait for their adapter wait in the line again, each before all of its session, or
        to be tried alone."""
        for request in reversed(self._aside):
            self._wait_again(request)
        self._aside.clear()

    def _withdraw(self, request: OpenRequest, group: WorkerGroup) -> bool:
        """Have the worker end what it has of a request, which goes on later; False: it was found dead."""
        for part in request.parts:
            group.withdraw(part.submit.request_id)
        if request.phase not in ("queued", "running"):
            return False
        request.take_back()
        return True

    def _wait_again(self, request: OpenRequest) -> None:
        self._rest.pop(request, None)
        if request.deaths < ATTEMPTS:
            self._line.put_back(request, self._claim(request))
        else:
            self._line.leave(request)
            self._suspects[request] = request.output_tokens

    # --- what those who wait are told -----------------------------------------------------------------------

    def tell(self, progress: LoadProgress) -> None:
        """Tell those who wait how the load goes that they wait for."""
        for request in [request for request in self._requests if request.phase != "running"]:
            request.progress(progress)

    def _watch(self) -> None:
        """See that nobody waits longer than allowed, and knows where it stands; a timer runs only while
        somebody waits for a worker that is there.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while (late := self._not_begun.expired()) is not None:
            self._give_up(late)
        if (deadline := self._not_begun.next_deadline) is not None:
            delay = min(max(0.0, deadline - time.monotonic()), TELL_SECONDS)
            self._timer = asyncio.get_running_loop().call_later(delay, self._watch)
            # Or each of them begins with the next step.
            if self._line or self._suspects or len(self._group.open) > self.max_sequences:
                self._tell_places()

    def _give_up(self, request: OpenRequest) -> None:
        """It has waited too long."""
        places = self._places()
        position = places.index(request) + 1
        self._not_begun.leave(request)
        request.fail(
            CortexError(
                Code.QUEUE_TIMEOUT,
                f"the request waited {self._not_begun.wait_seconds:g} seconds for its turn, and is number "
                f"{position} of {len(places)} in the line for this model",
                retry_after=self._retry_after(position),
                details={"position": position, "waiting": len(places)},
            )
        )

    def _retry_after(self, turns: int) -> float:
        return self._rate.retry_after(turns, time.monotonic(), self._request_seconds / self.max_sequences)

    def _tell_soon(self, request: OpenRequest) -> None:
        """Tell it where it stands, with those who come within a moment: one look at the line for all."""
        self._untold.add(request)
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(SOON_SECONDS, self._tell_new)

    def _tell_new(self) -> None:
        self._telling = None
        if self._untold and self._group is not None:
            self._tell_places(self._untold)
        self._untold.clear()

    def _tell_places(self, only: Collection[OpenRequest] | None = None) -> None:
        """Tell those who wait, or some of them, how many stand before them, and how long that will take."""
        places = self._places()
        for position, request in enumerate(places, 1):
            if request not in self._aside and (only is None or request in only):
                request.progress(self._progress(position, len(places)))

    def _progress(self, position: int, waiting: int) -> LoadProgress:
        return LoadProgress(
            f"number {position} of {waiting} in the line for this model",
            stage="queued",
            position=position,
            waiting=waiting,
            seconds_left=self._rate.seconds(position, time.monotonic()),
        )

    def _places(self) -> list[OpenRequest]:
        """All that have not begun, in the order in which they are to; last those that wait for an adapter."""
        queued = [request for request in self._not_begun if request.phase == "queued"]
        suspects = sorted(self._suspects, key=lambda request: request.key)
        to_try = [request for request in suspects if request.phase == "waiting"]
        in_line = [request for request in self._line.order() if request.phase == "waiting"]
        return [*queued, *to_try, *in_line, *self._aside]
