"""A device that has no memory left, at one call of a step or another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.workers.engines import Answer, Session
from workers.execution.model_runner import ModelRunner

WORDS = "CUDA out of memory, as a test wants it"


class Shortage(TorchDispatchMode):
    """Lets one in `every` calls of torch fail that engines make from the plan of a step to its result.

    Args:
        first: number of the first that fails.

    Attributes:
        calls: so far.
        failed: which of these did.
    """

    def __init__(self, first: int, every: int) -> None:
        super().__init__()
        self._next, self._every = first, every
        self.calls, self.failed = 0, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        if self.calls == self._next:
            self._next += self._every
            self.failed.append(f"{self.calls}: {func}")
            raise torch.OutOfMemoryError(WORDS)
        return func(*args, **kwargs or {})


@contextmanager
def short_of_memory(runner: ModelRunner, first: int, every: int = 1 << 60) -> Iterator[Shortage]:
    """Let steps of that engine meet one; see `Shortage`."""
    shortage, send = Shortage(first, every), runner.send

    def watched(plan: Any) -> Any:
        with shortage:
            outcome = send(plan)
        result = outcome.result

        def within() -> Any:
            with shortage:
                return result()

        return _Sent(outcome, within)

    runner.send = watched
    try:
        yield shortage
    finally:
        del runner.send


class _Sent:
    """Implements `workers.step.engine.Sent`."""

    def __init__(self, outcome: Any, result: Any) -> None:
        self.ahead, self.result = outcome.ahead, result


def assert_right(answers: list[Answer], expected: list[Answer]) -> int:
    """All are as they were without a shortage, but for those that it ended, of which there is a beginning.

    Returns:
        How many these are.
    """
    refused = 0
    for found, whole in zip(answers, expected, strict=True):
        if found.finish == "error" and whole.finish != "error":
            assert "as a test wants it" in found.message
            assert found.token_ids == whole.token_ids[: len(found.token_ids)]
            refused += 1
            continue
        assert (found.token_ids, found.finish) == (whole.token_ids, whole.finish)
        for told in ("logprobs", "prompt_logprobs"):
            pairs = zip(getattr(found, told), getattr(whole, told), strict=True)
            assert all(one.token == other.token for one, other in pairs)
        assert bool(found.embedding) == bool(whole.embedding)
    return refused


def assert_nothing_is_held(session: Session) -> None:
    cache = session.scheduler.cache
    for pool in (cache.pages, cache.states):
        assert pool.num_free == pool.total
        assert not any(pool._users)
