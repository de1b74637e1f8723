"""All ranks of a model in threads of this process: they meet as processes do, and start in no time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ipc.worker_messages import MemoryUse
from tests.workers.engines import make_runner
from tests.workers.recorded import launch
from workers.checkpoints.shares import Split
from workers.execution.model_runner import ModelRunner
from workers.execution.outcome import Outcome
from workers.parallel import RankGroup, split_of
from workers.step.engine import StepResult
from workers.step.plan import StepPlan

PATIENCE = 150.0  # seconds that a rank waits for another

T = TypeVar("T")


class Meeting:
    """Where the ranks meet: each brings something, and sees what all have brought."""

    def __init__(self, size: int) -> None:
        self.brought: list[Any] = [None] * size
        self.barrier = Barrier(size, timeout=PATIENCE)

    def __call__(self, rank: int, what: Any) -> list[Any]:
        self.brought[rank] = what
        self.barrier.wait()
        seen = list(self.brought)
        self.barrier.wait()  # until all have looked
        return seen


class ThreadGroup(RankGroup):
    """A rank whose collectives are meetings; a step that is recorded has them in it."""

    def __init__(
        self,
        rank: int,
        size: int,
        meeting: Meeting,
        device: str = "cpu",
        exact: bool = False,
        split: Split | None = None,
    ) -> None:
        super().__init__(rank, size, device, exact, split)
        self.meet = meeting

    def _run(self, collective: Callable[..., object], *tensors: Tensor | list[Tensor] | None) -> None:
        self.collectives += 1
        launch(self._meet, collective, *tensors)

    def _meet(self, collective: Callable[..., object], *tensors: Tensor | list[Tensor] | None) -> None:
        """What such a collective does."""
        given = getattr(collective, "keywords", {})
        match getattr(collective, "func", collective):
            case dist.all_reduce:
                parts = self.meet(self.rank, tensors[0].clone())
                least = given.get("op") == dist.ReduceOp.MIN
                tensors[0].copy_(torch.stack(parts).amin(0) if least else sum(parts[1:], parts[0]))
            case dist.broadcast:
                tensors[0].copy_(self.meet(self.rank, tensors[0].clone())[given["src"]])
            case dist.all_gather | dist.gather:
                x, into = tensors if collective is dist.gather else reversed(tensors)
                for part, each in zip(into or (), self.meet(self.rank, x.clone()), strict=False):
                    part.copy_(each)
            case other:
                raise NotImplementedError(other)


class Ranks:
    """An engine of several ranks, for one scheduler: what `tests.workers.engines.Session` drives.

    Attributes:
        in_flight: steps, when the next is sent.
    """

    def __init__(self, folder: str | Path, size: int, monkeypatch: Any, **changes: Any) -> None:
        self.meeting = Meeting(size)
        self.threads = ThreadPoolExecutor(size)
        monkeypatch.setattr(
            RankGroup,
            "join",
            lambda spec: ThreadGroup(spec.rank, size, self.meeting, spec.device, spec.exact, split_of(spec)),
        )
        self.ranks = [make_runner(folder, rank=rank, world_size=size, **changes) for rank in range(size)]
        for each in self.ranks:  # what a thread holds nobody can tell from what the others do
            each._measure = lambda weights: MemoryUse(weights=weights)
        self.all(lambda rank: rank.load(lambda fraction, message: None))
        self.cache, self.groups = self.ranks[0].cache, self.ranks[0].groups
        self.sight, self.in_flight = self.ranks[0].sight, 0

    def all(self, what: Callable[[ModelRunner], T]) -> list[T]:
        """What each rank makes of it; a rank that fails is none that the others wait for."""

        def guarded(rank: ModelRunner) -> T:
            try:
                return what(rank)
            except BaseException:
                self.meeting.barrier.abort()
                raise

        return [each.result() for each in [self.threads.submit(guarded, rank) for rank in self.ranks]]

    def execute(self, plan: StepPlan) -> StepResult:
        return self.all(lambda rank: rank.execute(plan))[0]

    def send(self, plan: StepPlan) -> Outcome:
        return self.all(lambda rank: rank.send(plan))[0]

    def empty(self) -> None:
        for rank in self.ranks:
            rank.empty()

    def close(self) -> None:
        self.threads.shutdown()
