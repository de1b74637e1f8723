"""Decode steps as CUDA graphs: what one of them launches, recorded once for each of a few numbers of rows.

A decode step of a small model is hundreds of kernels of a few microseconds, and the host takes longer to
launch one than the device to run it. Replayed as a graph they are one launch.

A graph does the same again to the same addresses. So its inputs lie where they always lie
(`workers.execution.input_buffers`), and a step is padded to the next of a few numbers of rows, whether it is
replayed or not: then the same kernels see the same shapes, and who is captured when changes no bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch

from ipc.worker_messages import GRAPH_BYTES

MOST_GRAPHS = 64  # each holds some MB of the driver's besides its pool

logger = logging.getLogger("workers.execution.graphs")
T = TypeVar("T")


class Kind(NamedTuple):
    """Steps that are one graph."""

    rows: int
    ways: int | None  # that tokens are drawn in (`workers.sampling.draws.choose`); None: not in the graph

    def covers(self, other: Kind) -> bool:
        """Whether a step of this kind takes as much memory as one of `other`."""
        return self.rows >= other.rows and not (other.ways or 0) & ~(self.ways or 0)


class GraphDevice(Protocol):
    """What can record launches."""

    def capture(self, launches: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Record what `launches` sends to the device, which does not run it now.

        Returns:
            What runs it, as often as it is called, and what `launches` returned: tensors to which it is
            written each time.

        Raises:
            RuntimeError: something in it cannot be recorded, a wait for the device for example.
        """
        ...

    def held(self) -> int:
        """Bytes of the device that the recordings hold."""
        ...

    def release(self) -> None:
        """Let go of all of them."""
        ...


class CudaGraphs:
    """A GPU: one pool of memory for all graphs, which never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._pool = torch.cuda.graph_pool_handle()
        self._held = 0

    def capture(self, launches: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """See `GraphDevice`. Other threads may use the device meanwhile."""
        before = torch.cuda.memory_reserved(self._device)
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                result = launches()
            except BaseException:
                with suppress(RuntimeError):  # that the capture is invalid is known
                    graph.capture_end()
                with suppress(RuntimeError):  # which an invalid one leaves undone
                    torch._C._cuda_endAllocateToPool(self._stream.device_index, self._pool)
                raise
            graph.capture_end()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        self._graphs.append(graph)
        self._held += max(0, torch.cuda.memory_reserved(self._device) - before)
        return graph.replay, result

    def held(self) -> int:
        """What the pool grew by; what the driver keeps for each node is not known."""
        return self._held

    def release(self) -> None:
        """The driver keeps what still runs until it is done."""
        for graph in self._graphs:
            graph.reset()
        self._graphs.clear()
        self._held = 0


@dataclass(slots=True)
class Recording(Generic[T]):
    replay: Callable[[], None]
    result: T


class Graphs(Generic[T]):
    """Steps that are computed as they come when their kind is met first, and replayed from the second on.

    Args:
        device: that records them.
        most: rows of a step.
        limit: bytes that the recordings may hold; once they do, no further kind is recorded but such as find
            room in what another took: all share one pool, which large steps may fill before small ones come.

    Attributes:
        paused: nothing is recorded or replayed.
    """

    def __init__(self, device: GraphDevice, most: int, limit: int = GRAPH_BYTES) -> None:
        self.paused = False
        self._device, self._limit = device, limit
        self._sizes = sizes(most)
        self._met: set[Kind] = set()
        self._refused: set[Kind] = set()
        self._recordings: dict[Kind, Recording[T]] = {}

    def rows(self, count: int) -> int:
        """The number of rows that a step of `count` is padded to."""
        return next(size for size in self._sizes if size >= count)

    def takes(self, kind: Kind) -> bool:
        """Whether steps of this kind can be recorded, as far as is known."""
        return kind not in self._refused

    def run(self, kind: Kind, launches: Callable[[], T]) -> T:
        """What `launches` returns, computed by it or by a recording of another step of this kind.

        Steps of a kind whose capture failed are computed as they come.
        """
        if self.paused or kind in self._refused:
            return launches()
        if (result := self.replay(kind)) is not None:
            return result
        if kind not in self._met or self._is_full(kind):
            self._met.add(kind)
            return launches()
        try:
            recording = Recording(*self._device.capture(launches))
        except RuntimeError as error:
            if not self._refused:  # of others the reason will be the same
                reason = str(error).partition("\n")[0]
                logger.warning("a step cannot be recorded kind=%s reason=%s", kind, reason)
            self._refused.add(kind)
            return launches()
        self._recordings[kind] = recording
        return self.replay(kind)

    def _is_full(self, kind: Kind) -> bool:
        if len(self._recordings) == MOST_GRAPHS:
            return True
        return self._device.held() >= self._limit and not any(each.covers(kind) for each in self._recordings)

    def replay(self, kind: Kind) -> T | None:
        """Once more what was recorded of this kind, with what stands in the inputs now; None: nothing was."""
        if (recording := self._recordings.get(kind)) is None:
            return None
        recording.replay()
        return recording.result

    def release(self) -> None:
        """Forget all recordings, whose memory is free then."""
        self._recordings.clear()
        self._met.clear()
        self._refused.clear()
        self._device.release()


def graph_device(device: torch.device) -> GraphDevice | None:
    """What records decode steps there; None: a CPU has nothing to gain by that."""
    return CudaGraphs(device) if device.type == "cuda" else None


def sizes(most: int) -> list[int]:
    """1, 2, 4, 8, 16, 24 and so on up to `most`: no more than an eighth is padding in a large step."""
    found, size = [], 1
    while size < most:
        found.append(size)
        size += size if size < 8 else max(8, size // 64 * 8)
    return [*found, most]
