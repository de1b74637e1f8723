"""Something about a model that several wait for, and that comes once for all of them."""

from __future__ import annotations

import asyncio
from typing import Any


class Awaited:
    """It comes, or cannot; whoever asks after that waits for the next time."""

    def __init__(self) -> None:
        self._coming: asyncio.Future[None] | None = None

    @property
    def is_awaited(self) -> bool:
        """Whether somebody asked, and has had no answer."""
        return self._coming is not None

    def ask(self) -> asyncio.Future[None]:
        """What ends when it has come, or with why it cannot. It is everybody's: nobody may cancel it."""
        if self._coming is None:
            self._coming = asyncio.get_running_loop().create_future()
            self._coming.add_done_callback(nobody_has_to_ask)
        return self._coming

    def come(self) -> None:
        """Here it is, for whoever waits."""
        coming, self._coming = self._coming, None
        if coming is not None:
            coming.set_result(None)

    def fail(self, error: Exception) -> None:
        """It cannot come, for whoever waits."""
        coming, self._coming = self._coming, None
        if coming is not None:
            coming.set_exception(error)


def nobody_has_to_ask(outcome: asyncio.Future[Any]) -> None:
    """An exception that nobody waits for is no fault."""
    if not outcome.cancelled():
        outcome.exception()
