"""The steps of a rank, from ready to `Stop`.

Rank 0 leads: it takes commands, schedules, tells the other ranks the plan, and reports what each step
brought. On a GPU it does so for one step while the last one runs (`Loaded.in_flight`). The others follow:
they execute the plans that come. A rank with nothing to do blocks and uses no CPU; it dies with its
supervisor, so it needs no other end to such a wait.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from ipc.broadcast import BroadcastRing
from ipc.ring import Ring
from ipc.worker_messages import (
    Abort,
    Command,
    DropAdapter,
    ImageData,
    LoadAdapter,
    ResizePool,
    SequenceReport,
    StepReport,
    Stop,
    Submit,
    WorkerSpec,
)
from workers.process.fragments import hear, records, tell
from workers.process.outbox import WRITE_TIMEOUT, Outbox
from workers.scheduling.pacing import Pace
from workers.scheduling.scheduler import Scheduler
from workers.scheduling.whole import WholeScheduler
from workers.step.engine import Engine, Loaded, OutOfDeviceMemory, Sent, StepResult
from workers.step.plan import StepPlan

TURN_COMMANDS = 256  # taken between two steps: a few milliseconds, however many are waiting

logger = logging.getLogger("workers.process.loop")
decode_command = msgspec.msgpack.Decoder(Command).decode
Beat = Callable[..., None]  # HeartbeatPage.beat of this rank


def lead(spec: WorkerSpec, loaded: Loaded, engine: Engine, reports: Outbox, beat: Beat) -> None:
    """Rank 0: steps as long as there is work, until `Stop`. Commands take effect before the next step.

    While steps are in flight the next one is planned and sent, unless it has to know what they bring.
    """
    commands = Ring.attach(spec.commands)
    plans = BroadcastRing.attach_writer(spec.plans) if spec.plans else None
    scheduler = make_scheduler(spec, loaded)
    pace = Pace(spec.max_step_tokens)
    gallery = loaded.gallery
    flight = Flight(engine, scheduler, pace, loaded.in_flight)
    idle = False
    while True:
        for record in take(commands, wait=idle):
            match decode_command(record):
                case Submit(images=[_, *_]) as request:
                    scheduler.submit(request, gallery.take(request.images))
                case Submit() as request:
                    scheduler.submit(request)
                case ImageData() as piece:
                    gallery.receive(piece)
                case Abort(request_id=request_id):
                    scheduler.abort(request_id)
                case LoadAdapter() | DropAdapter() as order:
                    if plans is not None:
                        tell(plans, order, WRITE_TIMEOUT)
                    engine.adapt(order, reports.say)
                case ResizePool() as order:
                    while flight.steps:  # they may write to pages that go
                        flight.land()
                    scheduler.resize(order.usable)
                    if plans is not None:
                        tell(plans, order, WRITE_TIMEOUT)
                    reports.say(engine.resize(order))
                    # of pages that are gone, though nobody asks for anything
                    report_steps(scheduler, reports)
                case Stop():
                    if plans is not None:
                        tell(plans, None, WRITE_TIMEOUT)
                    beat(state="stopping", step=scheduler.step)
                    return
        plan = None
        if flight.is_ahead:
            beside = (pace.chunk(), pace.work()) if scheduler.has_prompts else ()
            plan = scheduler.plan(*beside)
        if plan is not None:
            beat(state="stepping", step=plan.step, collectives=engine.collectives())
            if plans is not None:
                tell(plans, plan, WRITE_TIMEOUT)
            try:
                flight.send(plan)
            except OutOfDeviceMemory as error:
                logger.warning("out of memory model=%s step=%d reason=%s", spec.model, plan.step, error)
                scheduler.step_failed(f"the device has too little memory left for this request: {error}")
        if plan is None or len(flight.steps) > loaded.in_flight:
            flight.land()
        if news := scheduler.take_reports():
            report_steps(scheduler, reports, news)
        idle = not flight.steps and (plan is None or scheduler.is_empty)
        if idle:
            beat(state="ready", step=scheduler.step, collectives=engine.collectives())


def report_steps(
    scheduler: Scheduler | WholeScheduler, reports: Outbox, news: Sequence[SequenceReport] = ()
) -> None:
    """Tell what the last steps brought, and how what is cached changed."""
    cached, evicted = scheduler.take_page_news()
    counts = scheduler.statistics()
    report = StepReport(scheduler.step, list(news), **counts, cached=cached, evicted=evicted)
    for record in records(report):
        reports.write(record, WRITE_TIMEOUT)


class Executed(NamedTuple):
    """A step that was over when it was sent."""

    brought: StepResult
    ahead: bool = False

    def result(self) -> StepResult:
        return self.brought


class Flight:
    """The steps that were sent and not observed, the oldest first."""

    def __init__(
        self, engine: Engine, scheduler: Scheduler | WholeScheduler, pace: Pace, in_flight: int
    ) -> None:
        self.steps: deque[tuple[Sent, int, int, float]] = deque()  # tokens of answers and prompts, and when
        self._scheduler, self._pace = scheduler, pace
        self._send = engine.send if in_flight else lambda plan: Executed(engine.execute(plan))
        self._landed = 0.0  # when the last one was observed

    @property
    def is_ahead(self) -> bool:
        """Whether the next step can be planned without knowing what those in flight bring."""
        return not self.steps or self.steps[-1][0].ahead  # so were those before it

    def send(self, plan: StepPlan) -> None:
        """Begin a step.

        Raises:
            OutOfDeviceMemory: it does not run, and no step is in flight any more.
        """
        began = time.monotonic()
        try:
            sent = self._send(plan)
        except OutOfDeviceMemory:
            while self.steps:
                self.land()
            raise
        scheduler = self._scheduler
        self.steps.append((sent, scheduler.decode_tokens, scheduler.prefill_tokens, began))

    def land(self) -> None:
        """Wait for the oldest, if there is one, and tell the scheduler what it brought."""
        if not self.steps:
            return
        sent, decode_tokens, prefill_tokens, began = self.steps.popleft()
        result = sent.result()
        self._scheduler.observe(result)
        now = time.monotonic()
        self._pace.observe(decode_tokens, prefill_tokens, now - max(began, self._landed), result.looked)
        self._landed = now


def make_scheduler(spec: WorkerSpec, loaded: Loaded) -> Scheduler | WholeScheduler:
    """The one that fits what the engine does with a sequence."""
    limits = {
        "max_sequences": spec.max_sequences,
        "max_step_tokens": spec.max_step_tokens,
        "context_length": spec.context_length,
    }
    if loaded.whole:
        return WholeScheduler(**limits)
    pools = {"kv_pages": loaded.kv_pages, "states": loaded.states, "host_states": loaded.host_states}
    return Scheduler(
        **limits, **pools, caches=loaded.caches, speculation=spec.speculation, together=loaded.together
    )


def follow(spec: WorkerSpec, engine: Engine, reports: Outbox, beat: Beat) -> None:
    """Any other rank: execute what rank 0 plans, until it plans no more."""
    plans = BroadcastRing.attach_reader(spec.plans, spec.rank - 1)
    step = 0
    while (plan := hear(plans)) is not None:
        if isinstance(plan, ResizePool):
            reports.say(engine.resize(plan))
            continue
        if not isinstance(plan, StepPlan):
            engine.adapt(plan, reports.say)
            continue
        step = plan.step
        beat(state="stepping", step=step)
        engine.execute(plan)
        beat(state="ready", step=step, collectives=engine.collectives())
    beat(state="stopping", step=step)


def take(commands: Ring, wait: bool) -> Iterator[bytes]:
    """The commands of one turn; with `wait` there is one at least."""
    if wait:
        yield commands.read(None)
    for _ in range(TURN_COMMANDS):
        if (record := commands.try_read()) is None:
            return
        yield record
