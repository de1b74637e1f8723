"""Processes that wait, warm, for a model to serve: at most one on each device.

What takes long before a load can begin (starting Python, importing torch, making the context of a GPU) is
done before anybody asks for one. The process comes from a fresh start, at a moment when nothing loads, or
from a model that was unloaded and gave everything back. It is in the ledger, and makes way for what needs its
memory.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ipc.errors import CortexError
from ipc.worker_messages import CONTEXT_BYTES, Footprint, Waiting, WarmUp
from neuron.memory.ledger import Ledger
from neuron.memory.step_bytes import UNMEASURED_BYTES
from neuron.processes.backoff import Backoff
from neuron.processes.worker import Worker

QUIET_SECONDS = 1.0  # without a load or its end, before a process is started
PATIENCE_SECONDS = 30.0  # that a start waits for running requests, which it would slow down
WARM_SECONDS = 300.0  # from the start of a process until it is warm: drivers of many GPUs take their time
KILL_SECONDS = 10.0  # from SIGKILL to giving up on a process that the kernel holds

# What a process may hold after a load over what it held before its first one, and be used again. Libraries
# keep some of what they once needed (compiled kernels, thread stacks, allocator arenas); a model that did not
# leave would be far above.
HOST_TOLERANCE = 64 << 20  # bytes
DEVICE_TOLERANCE = 32 << 20

log = logging.getLogger("neuron.processes.standby")


@dataclass(slots=True, eq=False)
class Waiter:
    """A process that waits, or gets warm."""

    worker: Worker
    device: str
    holds: int  # bytes on its device
    gone: asyncio.Future[None]
    warm: asyncio.Future[None]  # what it holds is measured; cancelled where it left before that
    deadline: asyncio.TimerHandle | None = None  # for getting warm
    ending: bool = False  # somebody made it end


class Standby:
    """Keeps the waiting processes, gives them to worker groups, and takes them back.

    Args:
        ledger: where their memory is booked.
        enabled: whether there shall be any.
        wanted: the devices that shall have one.
        loading: whether some model is on its way up or down. Whoever ends that calls `tend`.
        working: whether requests run.
        cycles: loads that one process may serve.
        backoff: waits after processes that died.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        enabled: bool,
        wanted: Callable[[], Iterable[str]],
        loading: Callable[[], bool],
        working: Callable[[], bool],
        cycles: Callable[[], int],
        backoff: Backoff,
    ) -> None:
        self._ledger = ledger
        self._open = enabled
        self._closed = False
        self._wanted = wanted
        self._loading = loading
        self._working = working
        self._cycles = cycles
        self._backoff = backoff
        self._waiters: dict[str, Waiter] = {}
        self._deaths: Counter[str] = Counter()  # by device, in a row
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0  # when running requests are waited for no longer, monotonic

    # --- for worker groups ------------------------------------------------------------------------------

    def take(self, device: str) -> Worker | None:
        """A process for a rank on `device`, warm or about to be; it is the caller's from now on."""
        waiter = self._waiters.get(device)
        if waiter is None:
            return None
        if waiter.ending or waiter.worker.exit_code is not None:  # its end has not been noticed yet
            return None
        self._forget(waiter)
        log.info("standby taken device=%s pid=%d", device, waiter.worker.process.pid)
        return waiter.worker

    def wants(self, device: str) -> bool:
        """Whether a process that served on `device` could stay."""
        return self._open and device not in self._waiters

    def offer(self, device: str, worker: Worker, report: Waiting) -> bool:
        """Take a process back that has served; False when the caller shall end it.

        It is booked by the next `settle`: the memory of its model is still in the ledger.
        """
        if not self.wants(device):
            return False
        held, baseline = report.held, report.baseline
        worn = None
        if report.loads >= self._cycles():
            worn = f"it served {report.loads} loads"
        elif held.host - baseline.host > HOST_TOLERANCE or held.device - baseline.device > DEVICE_TOLERANCE:
            worn = "its memory is not back"
        pid = worker.process.pid
        log.info(
            "standby %s device=%s pid=%d loads=%d host=%d host_baseline=%d gpu=%d gpu_baseline=%d reason=%s",
            "refused" if worn else "kept",
            device,
            pid,
            report.loads,
            held.host,
            baseline.host,
            held.device,
            baseline.device,
            worn,
        )
        if worn is None:
            self._adopt(device, worker, _size(device, held)).warm.set_result(None)
        return worn is None

    async def measure(self, device: str) -> int | None:
        """Bytes that a process holds on `device` before it has a model: builds of torch differ twofold.

        Returns:
            None where no process can be had, or it was taken or died before it was warm.
        """
        if device not in self._waiters and not self._closed:
            self._start(device)
        waiter = self._waiters.get(device)
        if waiter is None:
            return None
        await asyncio.wait([waiter.warm, waiter.gone], return_when=asyncio.FIRST_COMPLETED)
        measured = waiter.warm.done() and not waiter.warm.cancelled()
        if not self._open:
            await self.end(device)
        return waiter.holds if measured else None

    # --- for the ledger's owner -------------------------------------------------------------------------

    def booked(self, device: str) -> int:
        """Bytes on `device` that a model may have, because the process there becomes its own or makes way."""
        return self._ledger.held_by(_name(device)).get(device, 0)

    async def make_way(self, amounts: Mapping[str, int], *, reuse: bool) -> None:
        """See that `amounts` (bytes by device) can be booked, as far as waiting processes are in the way.

        Args:
            reuse: the model takes the processes on these devices, and their memory is part of `amounts`.
        """
        for device, amount in amounts.items():
            if reuse:
                self._ledger.release(_name(device))
            elif amount > self._ledger.free(device):
                await self.end(device)

    def settle(self) -> None:
        """Book every process that is not in the ledger: it was lent to a load that failed, or came back."""
        for waiter in list(self._waiters.values()):
            if self.booked(waiter.device) or waiter.ending:
                continue
            try:
                self._book(waiter.device, waiter.holds)
            except CortexError:
                log.info("standby makes way device=%s", waiter.device)
                self._kill(waiter)

    async def end(self, device: str) -> None:
        """End the process on `device`, if there is one, and wait until it is gone."""
        if (waiter := self._waiters.get(device)) is not None:
            self._kill(waiter)
            await asyncio.wait([waiter.gone], timeout=KILL_SECONDS)

    async def close(self) -> None:
        """End all processes, and take none from now on."""
        self._open, self._closed = False, True
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.gather(*(self.end(device) for device in list(self._waiters)))

    # --- starting ---------------------------------------------------------------------------------------

    def tend(self) -> None:
        """See soon, when nothing has happened for a moment, that every device has its process."""
        self._due = time.monotonic() + PATIENCE_SECONDS
        self._look_again(QUIET_SECONDS)

    def _look_again(self, seconds: float) -> None:
        if not self._open:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._refill)

    def _refill(self) -> None:
        self._timer = None
        if self._loading():
            return
        if self._working() and time.monotonic() < self._due:
            self._look_again(QUIET_SECONDS)
            return
        for device in self._wanted():
            if device not in self._waiters:
                self._start(device)

    def _start(self, device: str) -> None:
        try:
            self._book(device, UNMEASURED_BYTES[device.partition(":")[0]])
        except CortexError as error:
            log.debug("no standby device=%s reason=%s", device, error)
            return
        try:
            worker = Worker.start()
            worker.order(WarmUp(device=device))
        except OSError as error:
            self._ledger.release(_name(device))
            log.warning("standby did not start device=%s reason=%s", device, error)
            return
        log.info("standby started device=%s pid=%d", device, worker.process.pid)
        waiter = self._adopt(device, worker, self.booked(device))
        waiter.deadline = asyncio.get_running_loop().call_later(WARM_SECONDS, worker.signal, signal.SIGKILL)

    def _adopt(self, device: str, worker: Worker, holds: int) -> Waiter:
        loop = asyncio.get_running_loop()
        waiter = self._waiters[device] = Waiter(
            worker, device, holds, loop.create_future(), loop.create_future()
        )
        loop.add_reader(worker.pidfd, self._on_exit, waiter)
        loop.add_reader(worker.control.fileno(), self._on_message, waiter)
        return waiter

    def _on_message(self, waiter: Waiter) -> None:
        """It is warm. Nothing else is said by a process that waits."""
        report = waiter.worker.report()
        if report is None:  # it ended: its pidfd says so, too
            asyncio.get_running_loop().remove_reader(waiter.worker.control.fileno())
            waiter.worker.signal(signal.SIGKILL)
            return
        if waiter.deadline is not None:
            waiter.deadline.cancel()
        self._deaths[waiter.device] = 0
        waiter.warm.set_result(None)
        waiter.holds = _size(waiter.device, report.held)
        if self.booked(waiter.device):
            self._ledger.correct(_name(waiter.device), waiter.device, waiter.holds)
        log.info("standby ready device=%s bytes=%d", waiter.device, waiter.holds)

    # --- ending -----------------------------------------------------------------------------------------

    def _kill(self, waiter: Waiter) -> None:
        waiter.ending = True
        waiter.worker.signal(signal.SIGKILL)  # it has nothing to lose

    def _on_exit(self, waiter: Waiter) -> None:
        pid, device = waiter.worker.process.pid, waiter.device
        self._forget(waiter)
        waiter.worker.reap()
        waiter.gone.set_result(None)
        if waiter.ending:
            return
        seconds = self._backoff.seconds(self._deaths[device])
        self._deaths[device] += 1
        code = waiter.worker.exit_code
        log.warning("standby died device=%s pid=%d code=%d again_in=%g", device, pid, code, seconds)
        self._look_again(QUIET_SECONDS + seconds)

    def _forget(self, waiter: Waiter) -> None:
        """It is no business of this object any more."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(waiter.worker.pidfd)
        loop.remove_reader(waiter.worker.control.fileno())
        if waiter.deadline is not None:
            waiter.deadline.cancel()
        waiter.warm.cancel()
        del self._waiters[waiter.device]
        self._ledger.release(_name(waiter.device))

    def _book(self, device: str, size: int) -> None:
        self._ledger.reserve(_name(device), {device: size})


def _name(device: str) -> str:
    """Under which a process is booked; no model has such an id."""
    return f"standby on {device}"


def _size(device: str, held: Footprint) -> int:
    """Bytes on its device. A GPU's context cannot be seen from inside."""
    return held.host if device == "cpu" else CONTEXT_BYTES + held.device
