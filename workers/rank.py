"""The life of one rank: load, prove the group, then one step after the other until it is told to end.

Rank 0 leads: it takes commands, schedules, tells the other ranks the plan, and reports what each step
brought. The others follow: they execute the plans that come. A rank with nothing to do blocks and uses no
CPU; it dies with its supervisor, so it needs no other end to such a wait.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import msgspec

from ipc.broadcast import BroadcastRing
from ipc.errors import Code, CortexError
from ipc.heartbeat import HeartbeatPage
from ipc.ring import Ring
from ipc.worker_messages import Abort, Command, Fatal, Loading, Ready, StepReport, Stop, Submit, WorkerSpec
from workers.engine import Engine, make_engine
from workers.plan import decode_plan, encode_plan
from workers.scheduler import Scheduler

WRITE_TIMEOUT = 60.0  # seconds of back-pressure after which the reader of a ring counts as lost
PROGRESS_INTERVAL = 0.1  # seconds between two reports of a load

logger = logging.getLogger("workers.rank")
encode = msgspec.msgpack.Encoder().encode
decode_command = msgspec.msgpack.Decoder(Command).decode
Beat = Callable[..., None]  # HeartbeatPage.beat of this rank


def run(spec: WorkerSpec) -> int:
    """Serve as the rank that `spec` describes.

    Returns:
        The exit code: 0 after a `Stop`; 1 after an error, of which a `Fatal` report has told the supervisor.
    """
    reports = Ring.attach(spec.reports)
    heartbeat = HeartbeatPage.attach(spec.heartbeat_fd, spec.world_size)
    beat = partial(heartbeat.beat, spec.rank)
    beat(state="starting", step=0, epoch=spec.epoch)
    with ExitStack() as stack:
        try:
            engine = make_engine(spec, heartbeat)
            stack.callback(engine.close)
            load(spec, engine, reports, beat)
            if spec.rank == 0:
                lead(spec, engine, reports, beat)
            else:
                follow(spec, engine, beat)
        except Exception as error:
            logger.exception("rank failed model=%s rank=%d epoch=%d", spec.model, spec.rank, spec.epoch)
            reports.write(encode(last_words(error)), WRITE_TIMEOUT)
            return 1
    return 0


def load(spec: WorkerSpec, engine: Engine, reports: Ring, beat: Beat) -> None:
    """Load the engine and prove the group, with `Loading` reports on the way and `Ready` at the end."""
    started = last_report = time.monotonic()

    def progress(fraction: float, message: str) -> None:
        nonlocal last_report
        now = time.monotonic()
        beat(state="loading", step=0)
        if now - last_report >= PROGRESS_INTERVAL:
            last_report = now
            reports.write(encode(Loading(fraction, message)), WRITE_TIMEOUT)

    try:
        beat(state="loading", step=0)
        memory = engine.load(progress)
        all_reduce = engine.prove()
    except CortexError:
        raise
    except Exception as error:
        raise CortexError(Code.MODEL_LOAD_FAILED, f"{type(error).__name__}: {error}") from error
    gc.collect()
    gc.freeze()  # the model lives as long as the process: no collection shall walk through it again
    beat(state="ready", step=0, memory=memory)
    seconds = time.monotonic() - started
    reports.write(encode(Ready(all_reduce, memory, seconds)), WRITE_TIMEOUT)
    logger.info("rank ready model=%s rank=%d memory=%d seconds=%.2f", spec.model, spec.rank, memory, seconds)


def lead(spec: WorkerSpec, engine: Engine, reports: Ring, beat: Beat) -> None:
    """Rank 0: steps as long as there is work, until `Stop`. Commands take effect before the next step."""
    commands = Ring.attach(spec.commands)
    plans = BroadcastRing.attach_writer(spec.plans) if spec.plans else None
    scheduler = Scheduler(
        max_sequences=spec.max_sequences,
        max_step_tokens=spec.max_step_tokens,
        context_length=spec.context_length,
        kv_pages=spec.kv_pages,
    )
    records: list[bytes] = []
    while True:
        for record in records:
            match decode_command(record):
                case Submit() as request:
                    scheduler.submit(request)
                case Abort(request_id=request_id):
                    scheduler.abort(request_id)
                case Stop():
                    if plans is not None:
                        plans.write(encode_plan(None), WRITE_TIMEOUT)
                    beat(state="stopping", step=scheduler.step)
                    return
        plan = scheduler.plan()
        if plan is not None:
            beat(state="stepping", step=plan.step)
            if plans is not None:
                plans.write(encode_plan(plan), WRITE_TIMEOUT)
            scheduler.commit(engine.execute(plan))
        if news := scheduler.take_reports():
            running, waiting = len(scheduler.running), len(scheduler.waiting)
            report = StepReport(scheduler.step, news, running, waiting, scheduler.pool.num_free)
            reports.write(encode(report), WRITE_TIMEOUT)
        if plan is None:
            beat(state="ready", step=scheduler.step)
            records = [commands.read(None), *commands.read_all()]
        else:
            records = commands.read_all()


def follow(spec: WorkerSpec, engine: Engine, beat: Beat) -> None:
    """Any other rank: execute what rank 0 plans, until it plans no more."""
    plans = BroadcastRing.attach_reader(spec.plans, spec.rank - 1)
    step = 0
    while (plan := decode_plan(plans.read(None))) is not None:
        step = plan.step
        beat(state="stepping", step=step)
        engine.execute(plan)
        beat(state="ready", step=step)
    beat(state="stopping", step=step)


def last_words(error: Exception) -> Fatal:
    if isinstance(error, CortexError):
        return Fatal(error.code, error.message)
    return Fatal(Code.INTERNAL, f"{type(error).__name__}: {error}")
