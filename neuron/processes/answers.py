"""What the ranks of a group were told to do between two steps, until each has answered."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

from ipc.errors import CortexError

Answer = TypeVar("Answer")


class Answers(Generic[Answer]):
    """Orders of one kind, at most one at a time about each subject.

    Args:
        ranks: how many answer.
        kind: what the subjects are, for errors.
    """

    def __init__(self, ranks: int, kind: str) -> None:
        self._ranks, self._kind = ranks, kind
        self._answers: dict[int, dict[int, Answer]] = {}  # by subject and rank
        self._done: dict[int, asyncio.Future[list[Answer]]] = {}  # by subject

    def begin(self, subject: int) -> asyncio.Future[list[Answer]]:
        """An order was given. Its future has the answers by rank, or why the group ended before they came."""
        if subject in self._done:
            raise ValueError(f"not every rank has answered yet what it was told of {self._kind} {subject}")
        self._answers[subject] = {}
        self._done[subject] = done = asyncio.get_running_loop().create_future()
        return done

    def take(self, subject: int, rank: int, answer: Answer) -> None:
        """A rank has answered."""
        answers = self._answers[subject]
        answers[rank] = answer
        if len(answers) == self._ranks:
            done = self._done.pop(subject)
            if not done.done():  # it may have been cancelled
                done.set_result([answers[rank] for rank in sorted(answers)])

    def end(self, error: CortexError) -> None:
        """No rank will answer any more."""
        while self._done:
            _, done = self._done.popitem()
            if not done.done():
                done.set_exception(error)
                done.exception()  # nobody has to ask
