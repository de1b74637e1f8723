"""The life of one rank: load, prove the group, then one step after the other until it is told to end."""

from __future__ import annotations

import gc
import logging
import time
from contextlib import ExitStack
from functools import partial

import msgspec

from ipc.errors import Code, CortexError
from ipc.heartbeat import HeartbeatPage
from ipc.ring import Ring
from ipc.worker_messages import Fatal, Loading, Ready, WorkerSpec
from workers.process.engines import make_engine
from workers.process.loop import Beat, follow, lead
from workers.process.outbox import WRITE_TIMEOUT, Outbox
from workers.step.engine import Engine, Loaded

PROGRESS_INTERVAL = 0.1  # seconds between two reports of a load

logger = logging.getLogger("workers.process.rank")
encode = msgspec.msgpack.Encoder().encode


def serve(spec: WorkerSpec) -> bool:
    """Be the rank that `spec` describes.

    Returns:
        True after a `Stop`; False after an error, of which a `Fatal` report has told the supervisor.
    """
    reports = Outbox(Ring.attach(spec.reports))
    heartbeat = HeartbeatPage.attach(spec.heartbeat_fd, spec.world_size)
    beat = partial(heartbeat.beat, spec.rank)
    beat(state="starting", step=0, epoch=spec.epoch)
    with ExitStack() as stack:
        try:
            engine = make_engine(spec, heartbeat)
            stack.callback(engine.close)
            loaded = load(spec, engine, reports, beat)
            if spec.rank == 0:
                lead(spec, loaded, engine, reports, beat)
            else:
                follow(spec, engine, reports, beat)
        except Exception as error:
            logger.exception("rank failed model=%s rank=%d epoch=%d", spec.model, spec.rank, spec.epoch)
            reports.write(encode(last_words(error)), WRITE_TIMEOUT)
            return False
    return True


def load(spec: WorkerSpec, engine: Engine, reports: Outbox, beat: Beat) -> Loaded:
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
        loaded = engine.load(progress)
        all_reduce = engine.prove()
    except CortexError:
        raise
    except Exception as error:
        raise CortexError(Code.MODEL_LOAD_FAILED, f"{type(error).__name__}: {error}") from error
    gc.collect()
    gc.freeze()  # the model stays until the rank ends: no collection shall walk through it again
    memory = loaded.memory.total
    beat(state="ready", step=0, memory=memory)
    seconds = time.monotonic() - started
    ready = Ready(all_reduce, loaded.kv_pages, loaded.memory, seconds, loaded.woken, loaded.resizable)
    reports.write(encode(ready), WRITE_TIMEOUT)
    logger.info("rank ready model=%s rank=%d memory=%d seconds=%.2f", spec.model, spec.rank, memory, seconds)
    return loaded


def last_words(error: Exception) -> Fatal:
    """What a rank says that ends of `error`."""
    if isinstance(error, CortexError):
        return Fatal(error.code, error.message)
    return Fatal(Code.INTERNAL, f"{type(error).__name__}: {error}")
