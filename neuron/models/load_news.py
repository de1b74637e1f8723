"""How the load of a model goes, and who is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from neuron.memory.wish import Place
from neuron.requests.progress import LoadProgress

INTERVAL = 0.25  # seconds between two `Progress` of one load


class LoadNews:
    """Of one model, for whoever waits for it; told not too often.

    Args:
        changed: called when it goes otherwise, each time.
        tell_requests: tells those who wait with a request.

    Attributes:
        progress: how it goes; of no load, where there is none.
    """

    def __init__(self, changed: Callable[[], None], tell_requests: Callable[[LoadProgress], None]) -> None:
        self.progress = LoadProgress()
        self._changed = changed
        self._tell_requests = tell_requests
        self._listeners: set[Callable[[LoadProgress], None]] = set()
        self._told = 0.0  # monotonic

    @property
    def has_listeners(self) -> bool:
        """Whether somebody follows it without a request."""
        return bool(self._listeners)

    @contextmanager
    def telling(self, listener: Callable[[LoadProgress], None]) -> Iterator[None]:
        """Tell `listener`, too, meanwhile."""
        self._listeners.add(listener)
        try:
            yield
        finally:
            self._listeners.discard(listener)

    def say(self, message: str) -> None:
        """What is done before anything is read."""
        self._tell(LoadProgress(message))

    def on_loading(self, fraction: float, message: str) -> None:
        """So much of the weights is there."""
        self._tell(self.progress.then(message, fraction, time.monotonic()))

    def on_place(self, place: Place) -> None:
        """The wish for memory has to wait."""
        holders = ", ".join(place.holders)
        what = f" that {holders} {'holds' if len(place.holders) == 1 else 'hold'}" if holders else ""
        message = f"number {place.position} in the line for memory{what}"
        self._told = 0.0
        self._tell(LoadProgress(message, stage="queued", position=place.position))

    def end(self) -> None:
        """Nothing is loaded any more."""
        self.progress = LoadProgress()

    def _tell(self, progress: LoadProgress) -> None:
        now = time.monotonic()
        self.progress = progress
        self._changed()
        if now - self._told < INTERVAL:
            return
        self._told = now
        for listener in list(self._listeners):
            listener(progress)
        self._tell_requests(progress)
