"""How far a load is, and how long it may still take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ipc.messages.replies import Progress

WARY_SECONDS = 0.3  # of reading, before its rate says anything


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """What those who wait for a load are told.

    Attributes:
        fraction: of the weights that are there, from 0 to 1; None before they are read.
        seconds_left: until all are there, at the rate so far; None while there is none.
        began: when the first fraction was told, monotonic.
        position: of the request in the line for its model, or of the model in the line for memory.
        waiting: requests that stand in the former.
    """

    message: str = ""
    fraction: float | None = None
    seconds_left: float | None = None
    began: float | None = None
    position: int | None = None
    stage: Literal["queued", "loading"] = "loading"
    waiting: int | None = None

    def reply(self, request_id: int) -> Progress:
        """The same, for a client that waits."""
        return Progress(
            id=request_id,
            stage=self.stage,
            message=self.message,
            position=self.position,
            fraction=self.fraction,
            seconds_left=self.seconds_left,
            waiting=self.waiting,
        )

    def then(self, message: str, fraction: float | None, now: float) -> LoadProgress:
        """What follows it at the moment `now`. A fraction that falls is another load's."""
        if fraction is None:
            return LoadProgress(message)
        if self.began is None or fraction < (self.fraction or 0.0):
            return LoadProgress(message, fraction, began=now)
        elapsed = now - self.began
        if elapsed < WARY_SECONDS or not fraction:
            return LoadProgress(message, fraction, began=self.began)
        return LoadProgress(message, fraction, elapsed * (1 - fraction) / fraction, self.began)
