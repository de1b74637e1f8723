"""All ranks of a group, over several checkpoints: `run` starts a process for each rank.

They are forks of one process that has imported torch, which takes longer than most of what they do. Every
rank drives its own scheduler with the same seed, so that they make the same plans and need no rings; what a
step brought is told to all by rank 0, which alone samples.
"""

from __future__ import annotations

import gc
import multiprocessing
import socket
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd
from typing import Any, Literal

import msgspec
import torch
import torch.distributed as dist

from ipc.memory import SharedMemory
from ipc.worker_messages import SUM_BYTES
from tests.workers import equalities
from tests.workers.engines import Answer, make_runner, prompt_of, serve, some_requests
from tests.workers.equalities import Observed
from workers.step.engine import StepResult
from workers.step.plan import StepPlan

PATIENCE = 180.0  # seconds

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.workers.ranks"])


class Job(msgspec.Struct):
    """What to do with an engine, and how its ranks meet."""

    folder: str
    what: Literal["answer", "observe", "resume"]
    device: str = "cpu"
    stopped: list[Answer] = []  # what "resume" resumes
    dtype: str = "float32"
    exact: bool = False
    every: int = 1  # of the requests, one of so many is answered
    fd: int = -1  # of the rendezvous
    port: int = 0
    sum_fd: int | None = None  # on GPUs


class Result(msgspec.Struct):
    all_reduce: int  # the sum of ones over the ranks
    prompts: list[list[int]] = []  # of "answer": some random requests
    outputs: list[list[int]] = []  # of "answer", and of "resume"
    observed: Observed | None = None


def run(jobs: list[Job], world_size: int) -> list[Result]:
    """Do the jobs with `world_size` processes, which load and close an engine for each.

    Returns:
        One result a job; all ranks found the same one.
    """
    with ExitStack() as stack:
        stores = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in jobs]
        memories = [SharedMemory.create("sums", SUM_BYTES) for job in jobs if job.device != "cpu"]
        for job, store in zip(jobs, stores, strict=True):
            job.port = store.getsockname()[1]
        for memory in memories:
            stack.callback(memory.close)

        def given(rank: int) -> tuple[Any, ...]:
            sums = [DupFd(memory.fd) for memory in memories]
            return jobs, stores if rank == 0 else [], sums, rank, world_size

        by_rank = in_processes(world_size, be, given)
    for results in by_rank:
        for result in filter(lambda result: result.observed is not None, results):
            assert (result.observed.collective_seconds > 0) == (world_size > 1)
            result.observed.collective_seconds = 0.0
    assert all(results == by_rank[0] for results in by_rank), "the ranks chose different tokens"
    return by_rank[0]


def in_processes(
    count: int,
    what: Callable[..., None],
    given: Callable[[int], tuple[Any, ...]],
    start: multiprocessing.context.BaseContext = FORKS,
) -> list[Any]:
    """What `what(end, *given(number))` sends of each of so many processes."""
    with ExitStack() as stack:
        ends = []
        for number in range(count):
            ours, theirs = start.Pipe(duplex=False)
            stack.enter_context(ours)
            process = start.Process(target=what, args=(theirs, *given(number)), daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.kill)
            theirs.close()
            ends.append(ours)
        return [result_of(end) for end in ends]


def result_of(end: Connection) -> Any:
    assert end.poll(PATIENCE), f"no result within {PATIENCE} s"
    return end.recv()  # EOFError: that rank died, and its output says of what


def be(
    end: Connection,
    jobs: list[Job],
    stores: list[socket.socket],
    sums: list[Any],
    rank: int,
    world_size: int,
) -> None:
    """The whole life of a rank; number 0 has the sockets at which the others meet it.

    Args:
        sums: have the descriptors of memory for them, of each job on GPUs.
    """
    gc.freeze()  # what was imported is no garbage; a load and an end collect what is
    for job, store in zip(jobs, stores, strict=False):
        job.fd = store.detach()
    for job, memory in zip([job for job in jobs if job.device != "cpu"], sums, strict=True):
        job.sum_fd = memory.detach()
    end.send([do(job, rank, world_size) for job in jobs])


def do(job: Job, rank: int, world_size: int) -> Result:
    store = {"store_fd": job.fd if rank == 0 else None, "store_port": job.port, "sum_fd": job.sum_fd}
    device = job.device if job.device == "cpu" else f"cuda:{rank}"
    kind = {"device": device, "dtype": job.dtype, "exact": job.exact}
    if job.what != "answer":
        kind["max_step_tokens"] = equalities.largest_step(job.every)
    runner = make_runner(job.folder, rank=rank, world_size=world_size, **kind, **store)
    runner.load(lambda fraction, message: None)
    if world_size > 1:
        runner.execute = partial(execute, runner.execute)
    result = Result(runner.prove())
    match job.what:
        case "answer":
            requests = some_requests(8, runner.card.config.vocab_size, seed=world_size, longest=16)
            result.prompts = [*map(prompt_of, requests)]
            result.outputs = serve(runner, requests, seed=world_size)
        case "observe":
            result.observed = equalities.observe(runner, job.every)
        case "resume":
            result.outputs = equalities.resume(runner, job.stopped, job.every)
    runner.close()
    return result


def execute(step: Callable[[StepPlan], StepResult], plan: StepPlan) -> StepResult:
    """Run a step; what rank 0 made of it comes back on all ranks."""
    record = msgspec.msgpack.encode(step(plan))
    size = torch.tensor(len(record))
    dist.broadcast(size, 0)
    told = torch.zeros(int(size), dtype=torch.uint8)
    told[: len(record)] = torch.frombuffer(bytearray(record), dtype=torch.uint8)[: int(size)]
    dist.broadcast(told, 0)
    return msgspec.msgpack.decode(told.numpy().tobytes(), type=StepResult)
