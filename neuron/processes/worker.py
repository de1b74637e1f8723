"""A worker process, as its supervisor sees it: started, told what to be, watched, ended, reaped."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass

from ipc.control import Control, ControlBroken
from ipc.worker_messages import KERNELS, Waiting, WarmUp, WorkerSpec

PROGRAM = (sys.executable, "-m", "workers")
READY_SECONDS = 300.0  # from the start of a process that is measured until it is ready
FAREWELL_SECONDS = 1.0  # for one that has hung up to end by itself

# A process that waits does not know how many CPU threads its next model wants: the engine sets that number.
# Without these, each library would begin with a thread a core.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # Threads that wait for each other spin for some 20 µs, and then sleep. By default (libgomp, Intel's)
    # they spin for milliseconds: on busy cores one burns what the other, for which it waits, could use.
    "GOMP_SPINCOUNT": "1000",
    "KMP_BLOCKTIME": "0",
    # Threads that read weights would each leave up to 64 MB behind: glibc trims no heap but the first one.
    "MALLOC_ARENA_MAX": "1",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(KERNELS),
    "LRU_CACHE_CAPACITY": str(KERNELS),  # the same, of what torch wraps around them
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the order in which NVML counts
}


@dataclass(slots=True, eq=False)
class Worker:
    """One process, from its start until it is reaped. Whoever holds it watches `pidfd`, and reaps it."""

    process: subprocess.Popen
    pidfd: int  # readable when the process ended
    control: Control
    orders: int = 0
    loads: int = 0  # orders to be a rank
    warm: bool = False  # it has said that it waits

    @classmethod
    def start(cls) -> Worker:
        """Start a process that waits for its orders. Call it on the main thread: it dies with its thread.

        Raises:
            OSError: a process or a descriptor cannot be had; nothing stays behind.
        """
        control, theirs = Control.pair()
        try:
            with theirs:
                fd = theirs.fileno()
                process = subprocess.Popen(
                    [*PROGRAM, "--control-fd", str(fd), "--supervisor-pid", str(os.getpid())],
                    pass_fds=[fd],
                    process_group=0,  # Ctrl-C reaches the supervisor alone, which ends its ranks in order
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # whatever a library prints is a log line
                    env=os.environ | ENVIRONMENT,
                )
            try:
                return cls(process, os.pidfd_open(process.pid), control)
            except OSError:
                process.kill()
                process.wait()
                raise
        except OSError:
            control.close()
            raise

    @classmethod
    def measure(cls, device: str) -> int:
        """Bytes of the host that a process takes which is ready for a model on `device`; some seconds.

        Raises:
            OSError: it cannot be had, died, or was not ready in time.
        """
        worker = cls.start()
        try:
            with suppress(OSError):  # it has ended already, and is told of below
                worker.order(WarmUp(device=device))
            if not select.select([worker.control.fileno()], [], [], READY_SECONDS)[0]:
                raise OSError(f"a worker for {device} was not ready within {READY_SECONDS:g} seconds")
            report = worker.control.receive()
            if isinstance(report, Waiting):
                return report.held.host
            select.select([worker.pidfd], [], [], FAREWELL_SECONDS)
        finally:
            worker.kill()
        raise OSError(f"a worker for {device} did not start: exit code {worker.process.returncode}")

    def order(self, order: WarmUp | WorkerSpec) -> None:
        """Tell it what to be next.

        Raises:
            OSError: it is gone, or reads nothing.
        """
        self.control.send(order)
        self.orders += 1
        self.loads += isinstance(order, WorkerSpec)

    @property
    def waited(self) -> bool:
        """Whether it was there before its last order was given."""
        return self.orders > 1

    def report(self) -> Waiting | None:
        """What it said since its last order, once it said something; None: not yet, or never again."""
        try:
            while isinstance(report := self.control.receive(wait=False), Waiting):
                if report.loads == self.loads:
                    self.warm = True
                    return report
        except (BlockingIOError, ControlBroken):
            pass
        return None

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

    def dismiss(self) -> None:
        """Let it end as soon as it waits for orders."""
        self.control.hang_up()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and to whatever it started."""
        with suppress(ProcessLookupError):  # it ended by itself in this moment
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End it at once, and wait for that."""
        self.signal(signal.SIGKILL)
        self.reap()

    def reap(self) -> None:
        """Take its exit code and close what is held of it. Returns at once when `pidfd` has spoken."""
        self.process.wait()
        os.close(self.pidfd)
        self.control.close()
