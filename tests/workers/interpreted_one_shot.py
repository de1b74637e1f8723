"""In a process that interprets: sums over ranks, each of them a fork of it, in memory that all have."""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from triton.runtime import interpreter

from ipc.memory import SharedMemory
from ipc.worker_messages import SUM_BYTES
from tests.workers import one_shot_sums
from tests.workers.engines import make_spec
from tests.workers.ranks import in_processes
from workers.execution import small_sums
from workers.kernels import one_shot_triton
from workers.kernels.one_shot_triton import BLOCK, OneShot
from workers.parallel import RankGroup, in_order

FORKS = multiprocessing.get_context("fork")


def in_ranks(size: int, what: Callable[..., Any], *given: Any) -> list[Any]:
    """What `what(fd, rank, size, *given)` returns in each rank."""
    memory = SharedMemory.create("sums", SUM_BYTES)
    try:
        return in_processes(size, be, lambda rank: (what, memory.fd, rank, size, given), FORKS)
    finally:
        memory.close()


def be(end: Connection, what: Callable[..., Any], fd: int, rank: int, size: int, given: tuple) -> None:
    builder = interpreter.interpreter_builder
    load = builder.create_masked_load

    def kind_load(*given: Any) -> Any:
        """There are fewer cores than ranks, and who polls is in the way of those that he waits for."""
        if given[-1]:  # is volatile
            os.sched_yield()
        return load(*given)

    builder.create_masked_load = kind_load
    end.send(what(fd, rank, size, *given))


def wrong_sums(size: int, rounds: int, launches: int = 0) -> list[list[int]]:
    """Of each rank, as `tests.workers.one_shot_sums.wrong_sums` has them."""
    return in_ranks(size, one_shot_sums.wrong_sums, "cpu", rounds, launches)


def without_the_last(fd: int, rank: int, size: int) -> list[list[float]]:
    """A sum with all ranks, and two that the last one has no part in."""
    one_shot = OneShot(fd, rank, size, torch.device("cpu"))
    found = []
    for turn in range(1 if rank == size - 1 else 3):
        x = torch.full((2 * BLOCK,), 2.0**rank)
        one_shot.add(x, one_shot_triton.PATIENCE if turn == 0 else 3)
        found.append(x.unique().tolist())
    return found


def lost() -> list[list[list[float]]]:
    return in_ranks(3, without_the_last)


class Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def met(fd: int, rank: int, size: int, store: socket.socket, case: str) -> dict[str, Any]:
    """A group over gloo, in which each rank is told of memory as if it had a GPU."""
    kept = Kept()
    small_sums.logger.addHandler(kept)
    small_sums.logger.setLevel("INFO")
    one_shot_triton.SUM_BYTES >>= 5  # or the trial takes long here
    if case == "own" and rank == 1:
        fd = SharedMemory.create("sums", SUM_BYTES).fd
    if case == "none" and rank == 1:
        fd = SharedMemory.create("sums", 8).fd
    if case == "own":
        small_sums.POLLS = 3
    place = {"store_fd": store.fileno() if rank == 0 else None, "store_port": store.getsockname()[1]}
    kind = {"sum_fd": fd, "exact": case == "exact", "dtype": "float16"}
    spec = make_spec(rank=rank, world_size=size, **place, **kind)
    group = RankGroup.join(spec)
    store.detach()
    group.small = small_sums.small_sums(spec, group)
    found = {"small": group.small is not None, "lines": kept.lines, "right": [], "library": []}
    library = dist.all_gather if case == "exact" else dist.all_reduce
    calls, run = [], group._run
    group._run = lambda what, *tensors: calls.append(what) or run(what, *tensors)
    for count in (2, 3, 1000, 20_000):
        parts = [(torch.arange(count) % 7 + each).to(torch.float16) for each in range(size)]
        x = parts[rank].clone()
        found["right"].append(torch.equal(group.all_reduce(x), in_order(parts).to(x.dtype)))
        found["library"].append(calls[-1] is library)
    found["collectives"] = len(calls)
    group.leave()
    return found


def meeting(case: str) -> list[dict[str, Any]]:
    """What two ranks found.

    Args:
        case: "shared", "exact"; "own": one of them was given other memory; "none": or too little.
    """
    with socket.create_server(("127.0.0.1", 0)) as store:
        return in_ranks(2, met, store, case)
