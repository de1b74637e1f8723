"""Starting the rank processes of a group: their descriptors, their specs, their environment."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass

import msgspec

from ipc.broadcast import BroadcastRing
from ipc.heartbeat import HeartbeatPage
from ipc.ring import Ring
from ipc.worker_messages import Fatal, Ready, SimulatedSpec, WorkerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSpec:
    """What all ranks of one model have in common. `devices` has one entry a rank."""

    model: str
    engine: str
    devices: tuple[str, ...]
    threads: int
    context_length: int
    max_sequences: int
    max_step_tokens: int
    kv_pages: int
    folder: str = ""
    dtype: str = "bfloat16"
    simulated: SimulatedSpec | None = None
    log_level: str = "INFO"


@dataclass(slots=True, eq=False)
class Rank:
    """One process, as its supervisor sees it."""

    index: int
    device: str
    process: subprocess.Popen
    pidfd: int
    reports: Ring
    ready: Ready | None = None
    fatal: Fatal | None = None
    loading: str = "starting"  # what it said last while it loaded
    progress: tuple[int, int] | None = None  # its step, and for rank 0 its unread command bytes
    progress_at: float = 0.0  # when `progress` changed, monotonic

    def __str__(self) -> str:
        return f"rank {self.index} (pid {self.process.pid}, {self.device})"

    @property
    def exit_code(self) -> int | None:
        """As `subprocess` has it, a signal being negative; None while it runs.

        A process that ended is not reaped by asking: until then its number belongs to nobody else.
        """
        if self.process.returncode is not None:
            return self.process.returncode
        ended = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    @property
    def last_words(self) -> str:
        """How it ended, as far as is known."""
        code = self.exit_code
        if self.fatal is not None:
            return f"failed: {self.fatal.message}"
        if code is None:
            return "is still there"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def spawn(spec: GroupSpec, epoch: int, resources: ExitStack) -> tuple[list[Rank], Ring, HeartbeatPage]:
    """Start all ranks.

    Args:
        resources: closes what this process keeps of rings and pages. A rank's pidfd is the caller's to close.

    Returns:
        The ranks, the command ring of rank 0, and their heartbeat page.

    Raises:
        OSError: a process or a descriptor cannot be had; no process is left, and `resources` can be closed.
    """
    size = len(spec.devices)
    capacity = ring_capacity(spec.context_length)
    ranks: list[Rank] = []
    with ExitStack() as inherited:  # descriptors that only the children keep
        heartbeat = HeartbeatPage.create(size)
        resources.callback(heartbeat.close)
        commands = Ring.create(capacity)
        resources.callback(commands.close)
        plans = store = None
        if size > 1:
            plans = BroadcastRing.create(size - 1, capacity)
            inherited.callback(plans.close)
            store = inherited.enter_context(socket.create_server(("127.0.0.1", 0)))
        try:
            for index in range(size):
                reports = Ring.create()
                resources.callback(reports.close)
                worker = WorkerSpec(
                    model=spec.model,
                    engine=spec.engine,
                    epoch=epoch,
                    rank=index,
                    world_size=size,
                    device=spec.devices[index],
                    threads=spec.threads,
                    folder=spec.folder,
                    dtype=spec.dtype,
                    context_length=spec.context_length,
                    max_sequences=spec.max_sequences,
                    max_step_tokens=spec.max_step_tokens,
                    kv_pages=spec.kv_pages,
                    simulated=spec.simulated,
                    supervisor_pid=os.getpid(),
                    reports=reports.handle,
                    commands=commands.handle if index == 0 else None,
                    plans=plans.handle if plans is not None else None,
                    heartbeat_fd=heartbeat.fd,
                    store_fd=store.fileno() if store is not None and index == 0 else None,
                    store_port=store.getsockname()[1] if store is not None else 0,
                    log_level=spec.log_level,
                )
                fds = [*reports.fds, heartbeat.fd]
                if plans is not None:
                    fds += plans.fds
                if index == 0:
                    fds += commands.fds
                    fds += [store.fileno()] if store is not None else []
                process, pidfd = _start(worker, fds)
                ranks.append(Rank(index, spec.devices[index], process, pidfd, reports))
        except OSError:
            for rank in ranks:
                rank.process.kill()
                rank.process.wait()
                os.close(rank.pidfd)
            raise
    return ranks, commands, heartbeat


def ring_capacity(context_length: int) -> int:
    """Bytes of a ring, a power of two, that holds several prompts of a whole context, 4 bytes a token."""
    return max(1 << 20, 1 << (16 * context_length).bit_length())


def _start(worker: WorkerSpec, fds: list[int]) -> tuple[subprocess.Popen, int]:
    """Start one process, and get its pidfd."""
    threads = str(worker.threads)
    spec_fd = os.memfd_create("cortex-spec")
    try:
        os.pwrite(spec_fd, msgspec.json.encode(worker), 0)
        process = subprocess.Popen(
            [sys.executable, "-m", "workers", "--spec-fd", str(spec_fd)],
            pass_fds=[spec_fd, *fds],
            process_group=0,  # Ctrl-C reaches the supervisor alone, which ends its ranks in order
            stdin=subprocess.DEVNULL,
            stdout=2,  # whatever a library prints is a log line
            env=os.environ
            | {
                "OMP_NUM_THREADS": threads,
                "MKL_NUM_THREADS": threads,
                "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the order in which NVML counts
            },
        )
    finally:
        os.close(spec_fd)
    try:
        return process, os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.wait()
        raise
