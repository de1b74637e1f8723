"""One epoch of a model: all its rank processes, from their start to the last descriptor."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Protocol

import msgspec

from ipc.errors import Code, CortexError
from ipc.heartbeat import HeartbeatPage
from ipc.messages.state import RankState
from ipc.ring import RingBroken
from ipc.worker_messages import (
    Abort,
    AdapterReport,
    DropAdapter,
    Fatal,
    LoadAdapter,
    Loading,
    PoolReport,
    Ready,
    Report,
    ResizePool,
    SequenceReport,
    StepReport,
    Stop,
    Submit,
    Waiting,
)
from neuron.processes.answers import Answers
from neuron.processes.commands import Commands, Image, encode
from neuron.processes.spawn import GroupSpec, Rank, spawn
from neuron.processes.watchdog import Watchdog
from neuron.processes.worker import Worker

log = logging.getLogger("neuron.processes.group")

# Of records that are taken in one turn of the loop: some milliseconds' worth. One record may have more.
TURN_BYTES = 32 << 10
POOL = 0  # its pool, as the subject of an order: there is one
ANSWER_SECONDS = 5.0  # from its orders until a process that was warm shows that it has read them
STOP_SECONDS = 1.5  # from the Stop command to SIGTERM
RELEASE_SECONDS = 10.0  # the same, where a process shall give its memory back and live on
TERMINATE_SECONDS = 0.5  # from SIGTERM to SIGKILL
KILL_SECONDS = 10.0  # from SIGKILL to giving up on a process that the kernel holds

_decoder = msgspec.msgpack.Decoder(Report)


class Sink(Protocol):
    """Where the output of one request goes."""

    def advance(self, report: SequenceReport) -> None:
        """Take what is new, of one step or of several. Must not raise."""
        ...


class WorkerSource(Protocol):
    """Where processes wait for a rank to be (`neuron.processes.standby`)."""

    def take(self, device: str) -> Worker | None: ...

    def wants(self, device: str) -> bool: ...

    def offer(self, device: str, worker: Worker, report: Waiting) -> bool: ...


class WorkerGroup:
    """Starts all ranks of a model, proves them, feeds rank 0, and ends them together.

    A group lives once: a rank that dies, breaks its ring or stops making progress takes the whole group with
    it, because its siblings would wait for it in a collective for ever. `gone` is the moment after that at
    which every process is reaped and every descriptor closed; the next epoch may start then.

    Args:
        spec: what to start.
        epoch: counts the groups of this model.
        step_deadline: seconds that a rank may make no progress while requests are open.
        on_loading: told (fraction from 0 to 1 of the slowest rank, what it does) while the ranks load.
        on_steps: told the newest `StepReport`s, in order, after their sequences went to their sinks.
        on_death: told once, and only after `ready`, why the group ended. `WORKER_DIED` or `STEP_DEADLINE`.
        standby: lends processes, and gets them back after an orderly `stop`; None: processes serve once.
    """

    def __init__(
        self,
        spec: GroupSpec,
        epoch: int,
        *,
        step_deadline: float,
        on_loading: Callable[[float, str], None],
        on_steps: Callable[[list[StepReport]], None],
        on_death: Callable[[CortexError], None],
        standby: WorkerSource | None = None,
    ) -> None:
        self.spec = spec
        self.epoch = epoch
        self.open: dict[int, Sink] = {}  # requests in the worker, by request id
        self._step_deadline = step_deadline
        self._on_loading = on_loading
        self._on_steps = on_steps
        self._on_death = on_death
        self._standby = standby
        self._loop = asyncio.get_running_loop()
        self._resources = ExitStack()  # what this process holds for as long as a rank lives
        self._ranks: list[Rank] = []
        self._commands: Commands
        self._heartbeat: HeartbeatPage
        self._watchdog: Watchdog
        self._alive: set[Rank] = set()
        self.died_waiting = False  # a process died before it read which rank it is: no fault of the model
        self.was_killed = False  # a rank was killed before it was ready, by whomever, and said no word
        self._fractions = [0.0] * len(spec.devices)
        self._adapting: Answers[AdapterReport] = Answers(len(spec.devices), "adapter")
        self._resizing: Answers[PoolReport] = Answers(len(spec.devices), "pool")
        self._ready: asyncio.Future[list[Ready]] = self._loop.create_future()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self._death: CortexError | None = None
        self._ended = False  # stopped or dead: nothing is expected of the ranks any more
        self._deadline_timer: asyncio.TimerHandle | None = None

    # --- birth ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start every rank. Call it on the main thread: a rank dies with the *thread* that started it.

        Raises:
            CortexError: MODEL_LOAD_FAILED when a process or descriptor cannot be had; nothing stays behind.
        """
        try:
            self._ranks, ring, self._heartbeat = spawn(self.spec, self.epoch, self._resources, self._borrow)
        except OSError as error:
            self.was_killed = isinstance(error, ConnectionError)  # before it read its order
            failure = CortexError(
                Code.MODEL_LOAD_FAILED, f"the worker processes of {self.spec.model} did not start: {error}"
            )
            self._end(failure)
            raise failure from error
        self._commands = Commands(ring)
        self._watchdog = Watchdog(self._ranks, self._heartbeat, ring, self._step_deadline)
        self._alive = set(self._ranks)
        self._loop.add_reader(self._commands.fileno(), self._on_room)
        for rank in self._ranks:
            self._loop.add_reader(rank.worker.pidfd, self._on_exit, rank)
            self._loop.add_reader(rank.reports.fileno(), self._on_records, rank)
            self._loop.call_soon(self._on_records, rank)
        log.info(
            "worker group started model=%s epoch=%d pids=%s devices=%s%s",
            self.spec.model,
            self.epoch,
            ",".join(str(rank.pid) for rank in self._ranks),
            ",".join(self.spec.devices),
            f" parts={':'.join(map(str, self.spec.parts))}" if self.spec.parts else "",
        )

    async def ready(self, deadline: float) -> list[Ready]:
        """Wait for every rank's `Ready`, one report a rank.

        Raises:
            CortexError: a rank died, hangs, or was not ready within `deadline` seconds; then the group ends.
        """
        expecting = asyncio.create_task(self._expect_beats())
        try:
            await asyncio.wait([self._ready], timeout=deadline)
        finally:
            expecting.cancel()
        if not self._ready.done():
            late = "; ".join(f"{rank}: {rank.loading}" for rank in self._ranks if rank.ready is None)
            self._end(
                CortexError(
                    Code.MODEL_LOAD_FAILED,
                    f"{self.spec.model} was not ready within {deadline:g} seconds; {late}",
                )
            )
        ready = self._ready.result()
        if self._death is not None:  # in the moment between the last report and this line
            raise self._death
        return ready

    async def _expect_beats(self) -> None:
        """End the group where a process that waited warm does not read its orders: no fault of the model."""
        for _ in range(2):  # one that was stopped with them has half of it left when all go on
            await asyncio.sleep(ANSWER_SECONDS / 2)
        hung = [
            each for each in self._ranks if each.worker.warm and not self._heartbeat.read(each.index).time
        ]
        if hung and not self._ended:
            self.was_killed = self.died_waiting = True
            text = f"{hung[0]} of {self.spec.model} hung for {ANSWER_SECONDS:g} seconds, and reads no orders"
            self._end(CortexError(Code.MODEL_LOAD_FAILED, text))

    # --- work -------------------------------------------------------------------------------------------

    def submit(self, submit: Submit, sink: Sink, images: Sequence[Image] = ()) -> None:
        """Hand a request to the worker; its output goes to `sink` until its finish is reported.

        Args:
            images: that stand in its prompt.

        Raises:
            CortexError: BAD_REQUEST for one that is too large to travel; nothing of it stays.
        """
        record = encode(submit)
        if len(record) > self._commands.largest:
            raise CortexError(
                Code.BAD_REQUEST,
                f"the request comes to {len(record)} bytes for the worker, which takes "
                f"{self._commands.largest}: its prompt, grammar, token lists and words are too long together",
            )
        if not self.open:
            self._watchdog.begin()
        self.open[submit.request_id] = sink
        self._commands.show(images)
        self._commands.send(record)
        if self._deadline_timer is None:
            self._watch_progress()

    def abort(self, request_id: int) -> None:
        """End a request in the worker before its next step; it stays in `open` until the worker says so."""
        if request_id in self.open and not self._ended:
            self._commands.send(encode(Abort(request_id)))

    def withdraw(self, request_id: int) -> None:
        """Forget a request, and end it in the worker: whatever that still says of it goes nowhere."""
        if self.open.pop(request_id, None) is not None and not self._ended:
            self._commands.send(encode(Abort(request_id)))

    def adapt(self, order: LoadAdapter | DropAdapter) -> asyncio.Future[list[AdapterReport]]:
        """Have every rank read an adapter, or give its memory back, while steps go on.

        Returns:
            What each rank answered, in their order; or the error with which the group ended before that.

        Raises:
            ValueError: not all have answered yet what they were told of it before.
        """
        done = self._adapting.begin(order.number)
        if self._ended:
            self._adapting.end(self._death or stopped(self.spec.model))
        else:
            self._commands.send(encode(order))
        return done

    def resize(self, kept: int, usable: int) -> asyncio.Future[list[PoolReport]]:
        """Have every rank change its pool of keys and values, between two steps (`ResizePool`).

        Returns:
            What each rank answered, in their order; or the error with which the group ended before that.

        Raises:
            ValueError: not all have answered yet what they were told before.
        """
        done = self._resizing.begin(POOL)
        if self._ended:
            self._resizing.end(self._death or stopped(self.spec.model))
        else:
            self._commands.send(encode(ResizePool(kept, usable)))
        return done

    def ranks(self) -> list[RankState]:
        """The heartbeat page, read without asking anybody."""
        if self.gone.done():
            return []
        now = time.monotonic()
        beats = [(rank, self._heartbeat.read(rank.index)) for rank in self._ranks]
        return [
            RankState(
                rank=rank.index,
                pid=rank.pid,
                device=rank.device,
                state=beat.state,
                step=beat.step,
                age=max(0.0, now - beat.time) if beat.time else 0.0,
                memory=beat.memory,
                collectives=beat.collectives,
                collective_seconds=beat.collective_seconds,
            )
            for rank, beat in beats
        ]

    def _borrow(self, device: str) -> Worker | None:
        return self._standby.take(device) if self._standby is not None else None

    def _on_room(self) -> None:
        try:
            self._commands.on_room()
        except RingBroken as error:
            self._end(CortexError(Code.WORKER_DIED, f"{self._ranks[0]} takes no commands: {error}"))

    def _on_records(self, rank: Rank, most: float = TURN_BYTES) -> None:
        if self.gone.done():
            return
        try:
            self._take(rank, list(map(_decoder.decode, rank.reports.read_all(most))))
            again = rank.reports.arm()
        except (RingBroken, msgspec.MsgspecError) as error:
            self._loop.remove_reader(rank.reports.fileno())
            self._end(CortexError(Code.WORKER_DIED, f"the reports of {rank} cannot be read: {error}"))
            return
        if again:
            self._loop.call_soon(self._on_records, rank)

    def _take(self, rank: Rank, reports: list[Report]) -> None:
        if self._ended:
            return
        steps = [report for report in reports if type(report) is StepReport]
        if steps:
            self._deliver(steps)
        if len(steps) == len(reports):
            return
        for report in reports:
            if isinstance(report, Loading):
                rank.loading = report.message
                self._fractions[rank.index] = report.fraction
                self._on_loading(min(self._fractions), report.message)
            elif isinstance(report, Ready):
                self._on_rank_ready(rank, report)
            elif isinstance(report, AdapterReport):
                self._adapting.take(report.number, rank.index, report)
            elif isinstance(report, PoolReport):
                self._resizing.take(POOL, rank.index, report)
            elif isinstance(report, Fatal):
                rank.fatal = report
                self._end(self._failure(rank))

    def _deliver(self, steps: list[StepReport]) -> None:
        """Hand out what the steps made; several steps that came together are one piece of output."""
        if len(steps) == 1:
            news = steps[0].sequences
        else:
            merged: dict[int, SequenceReport] = {}
            for step in steps:
                for report in step.sequences:
                    whole = merged.setdefault(report.request_id, report)
                    if whole is not report:
                        _append(whole, report)
            news = list(merged.values())
        for report in news:
            sink = self.open.get(report.request_id)
            if report.finish:
                self.open.pop(report.request_id, None)
            if sink is not None:
                sink.advance(report)
        self._commands.flush()
        self._on_steps(steps)

    def _on_rank_ready(self, rank: Rank, report: Ready) -> None:
        size = len(self._ranks)
        if report.all_reduce != size:
            self._end(
                CortexError(
                    Code.MODEL_LOAD_FAILED,
                    f"the ranks of {self.spec.model} do not reach each other: {rank} summed "
                    f"{report.all_reduce} ones, not {size}",
                )
            )
            return
        rank.ready = report
        if all(other.ready for other in self._ranks) and not self._ready.done():
            self._ready.set_result([other.ready for other in self._ranks])

    # --- progress ---------------------------------------------------------------------------------------

    def _watch_progress(self) -> None:
        """See that every rank moves while requests are open; runs on a timer only then."""
        self._deadline_timer = None
        if self._ended or not self.open:
            return
        self._commands.flush()
        if doing := self._watchdog.look():
            self._end(
                CortexError(
                    Code.STEP_DEADLINE,
                    f"{self.spec.model} made no progress for {self._step_deadline:g} seconds: {doing}",
                )
            )
            return
        self._deadline_timer = self._loop.call_later(min(self._step_deadline / 4, 5.0), self._watch_progress)

    # --- death ------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """End the ranks: by command, then SIGTERM, then SIGKILL, each with its time; wait till they are gone.

        Raises:
            CortexError: INTERNAL when the kernel did not give a process back in time.
        """
        if self._ready.done() and not self._ended:  # commands are read after the load
            self._end(None)
            keeping = [rank for rank in self._alive if self._may_live_on(rank)]
            for rank in self._alive:
                if rank in keeping:
                    self._loop.add_reader(rank.worker.control.fileno(), self._on_waiting, rank)
                else:
                    rank.worker.dismiss()
            self._commands.send(encode(Stop()))
            await self._gone_within(RELEASE_SECONDS if keeping else STOP_SECONDS)
        self._standby = None  # whoever has not come back by now shall end
        self._end(None)
        self._signal(signal.SIGTERM)
        await self._gone_within(TERMINATE_SECONDS)
        self._signal(signal.SIGKILL)
        await self.wait_gone()

    async def wait_gone(self) -> None:
        """Wait, after a death, for the last process to be reaped and the last descriptor to be closed.

        Raises:
            CortexError: INTERNAL when the kernel did not give a process back in time.
        """
        if not await self._gone_within(KILL_SECONDS):
            names = ", ".join(str(rank) for rank in self._alive)
            raise CortexError(
                Code.INTERNAL,
                f"{names} of {self.spec.model} did not end within {KILL_SECONDS:g} s of SIGKILL",
            )

    async def _gone_within(self, seconds: float) -> bool:
        await asyncio.wait([self.gone], timeout=seconds)
        return self.gone.done()

    def _failure(self, rank: Rank) -> CortexError:
        """Why the group ended, as seen at `rank`. A rank that was killed comes before one that missed it."""
        rank = next((other for other in self._ranks if (other.worker.exit_code or 0) < 0), rank)
        what = f"{rank} of {self.spec.model} {rank.last_words}"
        if self._ready.done():
            step = self._heartbeat.read(rank.index).step
            return CortexError(Code.WORKER_DIED, f"{what} (step {step})")
        code = rank.fatal.code if rank.fatal is not None else Code.INTERNAL
        self.was_killed = rank.fatal is None and (rank.worker.exit_code or 0) < 0
        return CortexError(Code.MODEL_LOAD_FAILED if code == Code.INTERNAL else code, what)

    def _end(self, error: CortexError | None) -> None:
        """End the epoch. With an error everything is killed at once, and whoever waits is told."""
        if self._ended:
            return
        self._ended = True
        self._death = error
        if self._ranks:
            self._commands.drop()  # whoever sent it has gone, or waits for the next epoch
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        for answers in (self._adapting, self._resizing):
            answers.end(error or stopped(self.spec.model))
        if not self._ready.done():
            self._ready.set_exception(error or stopped(self.spec.model))
            self._ready.exception()  # nobody has to ask
            tell_owner = False
        else:
            tell_owner = error is not None
        if error is not None:
            self._signal(signal.SIGKILL)
        self._close_when_empty()
        if tell_owner:
            self._on_death(error)

    def _signal(self, number: signal.Signals) -> None:
        for rank in self._alive:
            rank.worker.signal(number)

    def _may_live_on(self, rank: Rank) -> bool:
        return self._standby is not None and self._standby.wants(rank.device)

    def _on_waiting(self, rank: Rank) -> None:
        """`rank` has given everything back, or is gone."""
        worker, report = rank.worker, rank.worker.report()
        self._loop.remove_reader(worker.control.fileno())
        self._loop.remove_reader(worker.pidfd)  # whoever keeps it watches that itself
        if report is not None and self._standby and self._standby.offer(rank.device, worker, report):
            self._forget(rank)
            self._close_when_empty()
        else:
            self._loop.add_reader(worker.pidfd, self._on_exit, rank)
            worker.dismiss()

    def _on_exit(self, rank: Rank) -> None:
        """The pidfd of `rank` says that it ended."""
        self._on_records(rank, math.inf)  # its last words
        if not self._ended and rank.worker.waited and not self._heartbeat.read(rank.index).time:
            self.died_waiting = True
        self._loop.remove_reader(rank.worker.pidfd)
        self._loop.remove_reader(rank.worker.control.fileno())
        rank.worker.reap()  # returns at once: the pidfd spoke
        self._forget(rank)
        self._end(self._failure(rank))
        self._close_when_empty()

    def _forget(self, rank: Rank) -> None:
        """The process of `rank` is not this group's any more."""
        self._loop.remove_reader(rank.reports.fileno())
        self._alive.discard(rank)

    def _close_when_empty(self) -> None:
        if not self._alive and not self.gone.done():
            if self._ranks:
                self._loop.remove_reader(self._commands.fileno())
                self._commands.close()
            self._resources.close()
            self.gone.set_result(None)
            log.info("worker group gone model=%s epoch=%d", self.spec.model, self.epoch)


def stopped(model: str) -> CortexError:
    """For whoever waits for a load that nobody wants any more."""
    return CortexError(Code.MODEL_LOAD_FAILED, f"the load of {model} was stopped")


def _append(whole: SequenceReport, later: SequenceReport) -> None:
    """Add what a later step did. In place, for thousands of steps may have come together."""
    whole.token_ids += later.token_ids
    whole.finish = later.finish
    if (known := whole.more) is None or (news := later.more) is None:
        whole.more = known or later.more
        return
    known.logprobs.extend(news.logprobs)
    known.prompt_logprobs.extend(news.prompt_logprobs)
    embedding = known.embedding or news.embedding
    whole.more = msgspec.structs.replace(known, embedding=embedding, message=news.message, code=news.code)
