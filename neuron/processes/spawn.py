"""Starting the rank processes of a group: their rings, their specs, their processes."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import msgspec

from ipc.broadcast import BroadcastRing
from ipc.heartbeat import HeartbeatPage
from ipc.memory import SharedMemory
from ipc.model_settings import KVCacheDtype, Quantization, Speculation
from ipc.ring import Ring
from ipc.sealed import seal
from ipc.worker_messages import SUM_BYTES, Fatal, Ready, SimulatedSpec, WeightCache, WorkerSpec
from neuron.processes.worker import Worker
from workers.checkpoints.adapter import AdapterCard
from workers.checkpoints.card import ModelCard


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSpec:
    """What all ranks of one model have in common. `devices` has one entry a rank."""

    model: str
    engine: str
    devices: tuple[str, ...]
    parts: tuple[int, ...] = ()  # of the model, that each rank has; none: all have as many
    threads: int
    context_length: int
    max_sequences: int
    max_step_tokens: int
    kv_pages: int  # at most
    states: int | None = None  # on each rank; None: enough for all sequences
    host_states: int = 0  # for each rank, of those that left its device
    resizable: bool = False  # its pool may shrink and grow
    rank_budgets: tuple[int, ...] | None = None  # bytes of each rank; None: whatever so many pages take
    card: ModelCard | None = None  # of a transformer
    adapters: tuple[AdapterCard, ...] = ()
    dtype: str = "bfloat16"
    exact: bool = False
    simulated: SimulatedSpec | None = None
    log_level: str = "INFO"
    quantization: Quantization | None = None
    weight_cache: WeightCache | None = None
    parking_fds: tuple[int, ...] = ()  # memory for the weights of each rank (`ipc.parked`), if any
    kv_cache_dtype: KVCacheDtype | None = None
    speculation: Speculation | None = None


@dataclass(slots=True, eq=False)
class Rank:
    """One process in the place that it has in a group."""

    index: int
    device: str
    worker: Worker
    reports: Ring
    ready: Ready | None = None
    fatal: Fatal | None = None
    loading: str = "starting"  # what it said last while it loaded

    def __str__(self) -> str:
        return f"rank {self.index} (pid {self.pid}, {self.device})"

    @property
    def pid(self) -> int:
        return self.worker.process.pid

    @property
    def last_words(self) -> str:
        """How it ended, as far as is known."""
        code = self.worker.exit_code
        if self.fatal is not None:
            return f"failed: {self.fatal.message}"
        if code is None:
            return "is still there"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def spawn(
    spec: GroupSpec, epoch: int, resources: ExitStack, take: Callable[[str], Worker | None]
) -> tuple[list[Rank], Ring, HeartbeatPage]:
    """Start all ranks.

    Args:
        take: gives a waiting process for a device, where there is one; the other ranks get new processes.
        resources: closes what this process keeps of rings and pages. The workers are the caller's to reap.

    Returns:
        The ranks, the command ring of rank 0, and their heartbeat page.

    Raises:
        OSError: a process or a descriptor cannot be had; no process is left, and `resources` can be closed.
    """
    size = len(spec.devices)
    capacity = ring_capacity(spec.context_length)
    ranks: list[Rank] = []
    with ExitStack() as passed_on:  # what only the ranks keep
        heartbeat = HeartbeatPage.create(size)
        resources.callback(heartbeat.close)
        commands = Ring.create(capacity)
        resources.callback(commands.close)
        plans = store = card_fd = sums = None
        if spec.card is not None:
            card_fd = seal("model card", msgspec.msgpack.encode((spec.card, spec.adapters)))
            passed_on.callback(os.close, card_fd)
        if size > 1:
            plans = BroadcastRing.create(size - 1, capacity)
            passed_on.callback(plans.close)
            store = passed_on.enter_context(socket.create_server(("127.0.0.1", 0)))
            if spec.devices[0] != "cpu":
                sums = SharedMemory.create("cortex-sums", SUM_BYTES)
                passed_on.callback(sums.close)
        try:
            for index in range(size):
                reports = Ring.create()
                resources.callback(reports.close)
                order = WorkerSpec(
                    model=spec.model,
                    engine=spec.engine,
                    epoch=epoch,
                    rank=index,
                    world_size=size,
                    parts=[*spec.parts],
                    device=spec.devices[index],
                    threads=spec.threads,
                    dtype=spec.dtype,
                    exact=spec.exact,
                    context_length=spec.context_length,
                    max_sequences=spec.max_sequences,
                    max_step_tokens=spec.max_step_tokens,
                    kv_pages=spec.kv_pages,
                    states=spec.states,
                    host_states=spec.host_states,
                    resizable=spec.resizable,
                    memory_budget=spec.rank_budgets[index] if spec.rank_budgets is not None else None,
                    simulated=spec.simulated,
                    reports=reports.handle,
                    commands=commands.handle if index == 0 else None,
                    plans=plans.handle if plans is not None else None,
                    heartbeat_fd=heartbeat.fd,
                    card_fd=card_fd,
                    sum_fd=sums.fd if sums is not None else None,
                    store_fd=store.fileno() if store is not None and index == 0 else None,
                    store_port=store.getsockname()[1] if store is not None else 0,
                    log_level=spec.log_level,
                    quantization=spec.quantization,
                    weight_cache=spec.weight_cache,
                    parking_fd=spec.parking_fds[index] if spec.parking_fds else None,
                    kv_cache_dtype=spec.kv_cache_dtype,
                    speculation=spec.speculation,
                )
                ranks.append(Rank(index, order.device, _hire(order, take), reports))
        except OSError:
            for rank in ranks:
                rank.worker.kill()
            raise
    return ranks, commands, heartbeat


def ring_capacity(context_length: int) -> int:
    """Bytes of a ring, a power of two, that holds several prompts of a whole context, 4 bytes a token."""
    return max(1 << 20, 1 << (16 * context_length).bit_length())


def _hire(order: WorkerSpec, take: Callable[[str], Worker | None]) -> Worker:
    """A process that has its order: one that waited, or a new one.

    Raises:
        OSError: there is no process to be had.
    """
    worker = take(order.device)
    if worker is not None:
        try:
            worker.order(order)
            return worker
        except OSError:  # it died in this moment
            worker.kill()
    worker = Worker.start()
    try:
        worker.order(order)
    except OSError:
        worker.kill()
        raise
    return worker
