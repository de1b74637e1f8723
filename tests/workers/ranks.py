"""All ranks of a group, over several checkpoints: `run` starts `python -m tests.workers.ranks` for each rank.

Every rank drives its own scheduler with the same seed, so that they make the same plans and need no rings;
what a step brought is told to all by rank 0, which alone samples.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Literal

import msgspec
import torch
import torch.distributed as dist

from tests.workers import equalities
from tests.workers.engines import Answer, make_runner, prompt_of, serve, some_requests
from tests.workers.equalities import Observed
from workers.step.engine import StepResult
from workers.step.plan import StepPlan

PATIENCE = 180.0  # seconds


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
        for job, store in zip(jobs, stores, strict=True):
            job.fd, job.port = store.fileno(), store.getsockname()[1]
        processes = []
        for rank in range(world_size):
            module = [sys.executable, "-m", "tests.workers.ranks"]
            process = subprocess.Popen(
                [*module, str(rank), str(world_size)],
                pass_fds=[store.fileno() for store in stores] if rank == 0 else [],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            process.stdin.write(msgspec.json.encode(jobs))
            process.stdin.close()
            process.stdin = None
            processes.append(process)
        outputs = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * world_size
    by_rank = [msgspec.json.decode(output, type=list[Result]) for output in outputs]
    for results in by_rank:
        for result in filter(lambda result: result.observed is not None, results):
            assert (result.observed.collective_seconds > 0) == (world_size > 1)
            result.observed.collective_seconds = 0.0
    assert all(results == by_rank[0] for results in by_rank), "the ranks chose different tokens"
    return by_rank[0]


def do(job: Job, rank: int, world_size: int) -> Result:
    store = {"store_fd": job.fd if rank == 0 else None, "store_port": job.port}
    device = job.device if job.device == "cpu" else f"cuda:{rank}"
    kind = {"device": device, "dtype": job.dtype, "exact": job.exact}
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
            result.outputs = equalities.resume(runner, job.stopped)
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


def main() -> None:
    rank, world_size = map(int, sys.argv[1:3])
    jobs = msgspec.json.decode(sys.stdin.buffer.read(), type=list[Job])
    results = [do(job, rank, world_size) for job in jobs]
    sys.stdout.buffer.write(msgspec.json.encode(results))


if __name__ == "__main__":
    main()
