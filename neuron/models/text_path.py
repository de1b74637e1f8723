"""The text path of a model: its tokenizer and template, read once for all who ask."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from neuron.text.answers import AnswerText
from neuron.text.frontend import TextFiles


class TextPath:
    """That of one model, whether it is loaded or not.

    Args:
        read: makes it.
        forget: told of one that the model has no more.
    """

    def __init__(
        self, read: Callable[[TextFiles], Awaitable[AnswerText]], forget: Callable[[AnswerText], None]
    ) -> None:
        self._read = read
        self._forget = forget
        self._reading: asyncio.Future[AnswerText] | None = None

    async def get(self, files: TextFiles) -> AnswerText:
        """It, made of `files` where it is not there; one that could not be read is tried again.

        Raises:
            CortexError: MODEL_LOAD_FAILED naming the file.
        """
        reading = self._reading
        if reading is None or (reading.done() and reading.exception() is not None):
            reading = self._reading = asyncio.ensure_future(self._read(files))
        return await asyncio.shield(reading)

    @property
    def now(self) -> AnswerText | None:
        """It, if it is there already."""
        done = self._reading is not None and self._reading.done() and self._reading.exception() is None
        return self._reading.result() if done else None

    def drop(self) -> None:
        """Nobody will read or write by it any more."""
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.add_done_callback(self._on_dropped)  # it may be read just now

    def _on_dropped(self, reading: asyncio.Future[AnswerText]) -> None:
        if not reading.cancelled() and reading.exception() is None:
            self._forget(reading.result())
