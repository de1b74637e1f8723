"""An all-reduce of a few tokens by two ranks, as they add small tensors and as the library does: a part of
`benchmarks.gpu`.

Calls are recorded, as those of a decode step are, so that what the host takes to launch them does not count.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ipc.memory import SharedMemory
from ipc.worker_messages import SUM_BYTES
from tests.workers.engines import make_spec
from tests.workers.ranks import in_processes
from workers.execution.small_sums import small_sums
from workers.parallel import RankGroup

RANKS = 2
SIZES = (8 << 10, 64 << 10)  # bytes in bfloat16: of a token of 4,096 numbers, and of eight
CALLS = {"cpu": 4, "cuda": 64}  # in a row
TURNS = {"cpu": 3, "cuda": 30}  # of both, one after the other
SUMS = 120  # of all sorts, each compared

Seconds = dict[str, dict[int, float]]  # by name and bytes


def rows(kind: str) -> Seconds:
    """Of one all-reduce in a row of them, the least of some turns, on the rank that took longer.

    There is nothing of "ours" where the ranks do not add small tensors themselves.

    Args:
        kind: of the devices, "cpu" or "cuda".
    """
    memory = SharedMemory.create("sums", SUM_BYTES)
    with socket.create_server(("127.0.0.1", 0)) as store:
        port = store.getsockname()[1]

        def given(rank: int) -> tuple[Any, ...]:
            return kind, rank, port, store if rank == 0 else None, DupFd(memory.fd)

        found = in_processes(RANKS, measure, given)
    memory.close()
    names = {name for name in found[0] if all(name in each for each in found)}
    return {name: {size: max(each[name][size] for each in found) for size in SIZES} for name in sorted(names)}


def measure(
    end: Connection, kind: str, rank: int, port: int, store: socket.socket | None, memory: Any
) -> None:
    """In a process of its own: be a rank, and send what it found."""
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    place = {"store_fd": store.detach() if store is not None else None, "store_port": port}
    place |= {"rank": rank, "world_size": RANKS, "device": str(device), "dtype": "bfloat16"}
    if kind == "cuda":
        torch.cuda.set_device(device)
        place["sum_fd"] = memory.detach()
    spec = make_spec(**place)
    group = RankGroup.join(spec)
    group.small = small_sums(spec, group)
    adders = {"library": dist.all_reduce} | ({"ours": group.small.add} if group.small is not None else {})
    took: Seconds = {name: {} for name in adders}
    for size in SIZES:
        x = torch.zeros(size // 2, dtype=torch.bfloat16, device=device)
        runs = {name: recorded(partial(add, x), kind) for name, add in adders.items()}
        for _ in range(TURNS[kind]):
            for name, run in runs.items():
                seconds = timed(run, kind, x) / CALLS[kind]
                took[name][size] = min(seconds, took[name].get(size, seconds))
    end.send(took)
    group.leave()


def recorded(call: Callable[[], object], kind: str) -> Callable[[], object]:
    """What makes so many calls."""

    def calls() -> None:
        for _ in range(CALLS[kind]):
            call()

    calls()
    if kind == "cpu":
        return calls
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        calls()
    return graph.replay


def timed(run: Callable[[], object], kind: str, x: Tensor) -> float:
    """Seconds, once the ranks have met."""
    dist.all_reduce(x)
    if kind == "cpu":
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def wrong(cards: int) -> list[list[int]]:
    """Sums of all sorts that came out wrong on each of two ranks, on so many cards."""
    from tests.workers.one_shot_sums import be  # which wants Triton

    memory = SharedMemory.create("sums", SUM_BYTES)
    try:
        devices = [f"cuda:{rank % cards}" for rank in range(RANKS)]
        return in_processes(RANKS, be, lambda rank: (DupFd(memory.fd), rank, RANKS, devices[rank], SUMS))
    finally:
        memory.close()
