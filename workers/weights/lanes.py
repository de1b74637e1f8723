"""The ways of weights to a device: threads, each with memory that it uses again.

On a CPU a block is read into its place. To a GPU it goes by way of pinned memory: a thread has two such
buffers, and reads into one while the other is copied, on a stream of the thread's own. What becomes of a
tensor then (`arrived`) is done when its bytes are there, which the thread sees to after its next block.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Protocol

import torch
from torch import Tensor

BLOCK = 16 << 20  # bytes that one job brings, at most: progress moves, and buffers stay small
THREADS = 4  # on a CPU, whose memory they keep busy
MOST_THREADS = 12  # to a GPU: 8 and 12 took three and two quarters of the time that 4 took, to an H200


class Event(Protocol):
    def synchronize(self) -> None: ...


class Transfers(Protocol):
    """What a lane needs of a device that is not the CPU."""

    def memory(self, size: int) -> Tensor:  # [size] uint8
        """Memory on the CPU that copies may start from and go on by themselves."""
        ...

    def copy(self, source: Tensor, into: Tensor) -> Event:
        """Begin a copy; the event is its end."""
        ...


class CudaTransfers:
    """Those of a GPU; for the thread that makes it."""

    def __init__(self, device: torch.device) -> None:
        torch.cuda.set_device(device)
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))  # who had this memory before is done

    def memory(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def copy(self, source: Tensor, into: Tensor) -> torch.cuda.Event:
        with torch.cuda.stream(self._stream):
            into.copy_(source, non_blocking=True)
            event = torch.cuda.Event(blocking=True)  # a thread that waits uses no core
            event.record()
        return event


def release_pinned() -> None:
    """Give pinned memory that nobody uses back to the system: torch keeps it for whoever wants some next, and
    that of all lanes is 400 MB."""
    if hasattr(torch.accelerator, "empty_host_cache"):
        torch.accelerator.empty_host_cache()
    else:  # before 2.12
        torch._C._host_emptyCache()


class Lane:
    """Brings blocks to tensors, one after the other. One thread's.

    Args:
        transfers: None: the tensors are on the CPU.
    """

    def __init__(self, transfers: Transfers | None = None) -> None:
        self._transfers = transfers
        self._scratch = torch.empty(0, dtype=torch.uint8)
        self._buffers = [self._scratch, self._scratch]  # to copy from, in turn
        self._sent: deque[tuple[Event | None, Callable[[], None]]] = deque()

    def scratch(self, size: int) -> Tensor:  # [size] uint8
        """Memory on the CPU, until it is asked for again."""
        if self._scratch.nbytes < size:
            self._scratch = torch.empty(size, dtype=torch.uint8)
        return self._scratch[:size]

    def place(self, into: Tensor) -> Tensor:
        """Where to make what is then sent to `into`: like it, contiguous and on the CPU; itself, if that is.

        Nothing else is placed before it is sent.
        """
        if self._transfers is None:
            return into if into.is_contiguous() else torch.empty(into.shape, dtype=into.dtype)
        if self._buffers[0].nbytes < into.nbytes:
            self._buffers[0] = self._transfers.memory(max(into.nbytes, BLOCK))
        return self._buffers[0][: into.nbytes].view(into.dtype).view(into.shape)

    def send(self, place: Tensor, into: Tensor, arrived: Callable[[], None]) -> None:
        """Copy what was made in `place`; `arrived` is called by `land`."""
        event = None
        if self._transfers is not None:
            event = self._transfers.copy(place, into)
            self._buffers.reverse()
        elif place is not into:
            into.copy_(place)
        self._sent.append((event, arrived))

    def land(self, *, last: bool = False) -> None:
        """Wait for what was sent, but for the newest that may still travel; with `last`, for that as well."""
        may_travel = 0 if last or self._transfers is None else 1
        while len(self._sent) > may_travel:
            event, arrived = self._sent.popleft()
            if event is not None:
                event.synchronize()
            arrived()

    def stop(self) -> None:
        """Wait for all that was sent, of which nobody makes anything: its memory is about to be another's."""
        for event, _ in self._sent:
            if event is not None:
                event.synchronize()
        self._sent.clear()


def threads_for(device: torch.device) -> int:
    """How many lanes there are: a core alone copies slower than a bus."""
    if device.type == "cpu":
        return THREADS
    return max(THREADS, min(MOST_THREADS, 3 * len(os.sched_getaffinity(0)) // 4))


Job = Callable[[Lane], int]
"""Sends one block by a lane; returns the bytes of it."""


def run(
    jobs: deque[Any],  # each of them a `Job`
    device: torch.device,
    total: int,
    progress: Callable[[float], None],
    transfers: Callable[[torch.device], Transfers] = CudaTransfers,
    release: Callable[[], None] = release_pinned,
) -> None:
    """Do all jobs, of which none is kept once it is done.

    Args:
        total: bytes of all of them.
        progress: told the fraction of these that is there, after each job, in this thread.
        transfers: to a device that is not the CPU, of each lane.
        release: called when no lane has memory of these any more.

    Raises:
        BaseException: one of a job, or of `progress`; no other job is begun then.
    """
    sizes: SimpleQueue[int | None] = SimpleQueue()  # of what jobs have brought; None: a lane has ended

    def work() -> None:
        lane = None
        try:
            lane = Lane(None if device.type == "cpu" else transfers(device))
            while (job := _next(jobs)) is not None:
                size = job(lane)
                del job  # what has arrived may let go of what it fills
                lane.land()
                sizes.put(size)
            lane.land(last=True)
        except BaseException:
            jobs.clear()
            if lane is not None:
                lane.stop()
            raise
        finally:
            sizes.put(None)

    number = max(1, min(threads_for(device), len(jobs)))
    with ThreadPoolExecutor(number, thread_name_prefix="weights") as threads:
        try:
            running = [threads.submit(work) for _ in range(number)]
            left, done = len(running), 0
            while left:
                if (size := sizes.get()) is None:
                    left -= 1
                else:
                    done += size
                    progress(done / total)
        finally:
            jobs.clear()
    if device.type != "cpu":
        release()
    for each in running:
        each.result()


def _next(jobs: deque[Job]) -> Job | None:
    try:
        return jobs.popleft()
    except IndexError:  # done, or given up
        return None
