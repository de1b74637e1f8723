"""What the ranks of a group were told about adapters, until each has answered."""

from __future__ import annotations

import asyncio

from ipc.errors import CortexError
from ipc.worker_messages import AdapterReport


class Adapting:
    """Orders about adapters, at most one at a time about each.

    Args:
        ranks: how many answer.
    """

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._answers: dict[int, dict[int, AdapterReport]] = {}  # by adapter and rank
        self._done: dict[int, asyncio.Future[list[AdapterReport]]] = {}  # by adapter

    def begin(self, number: int) -> asyncio.Future[list[AdapterReport]]:
        """An order was given. Its future has the answers by rank, or why the group ended before they came."""
        if number in self._done:
            raise ValueError(f"not every rank has answered yet what it was told of adapter {number}")
        self._answers[number] = {}
        self._done[number] = done = asyncio.get_running_loop().create_future()
        return done

    def take(self, rank: int, report: AdapterReport) -> None:
        """A rank has answered."""
        answers = self._answers[report.number]
        answers[rank] = report
        if len(answers) == self._ranks:
            done = self._done.pop(report.number)
            if not done.done():  # it may have been cancelled
                done.set_result([answers[rank] for rank in sorted(answers)])

    def end(self, error: CortexError) -> None:
        """No rank will answer any more."""
        while self._done:
            _, done = self._done.popitem()
            if not done.done():
                done.set_exception(error)
                done.exception()  # nobody has to ask
