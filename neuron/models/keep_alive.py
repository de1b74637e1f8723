"""How long a model stays loaded that nobody uses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class KeepAlive:
    """A timer that runs while a model is loaded and idle.

    Args:
        default: seconds, as its settings have it now; below 0: for ever.
        expire: called when that time is over.
    """

    def __init__(self, default: Callable[[], float], expire: Callable[[], None]) -> None:
        self._default = default
        self._asked: float | None = None  # by the last request
        self._expire = expire
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, seconds: float | None) -> None:
        """A request: the last one decides, with what it says or else with what the settings do."""
        self._asked = seconds

    @property
    def _seconds(self) -> float:
        return self._default() if self._asked is None else self._asked

    @property
    def told(self) -> float | None:
        """Seconds, as the neuron tells them; None: for ever."""
        return self._seconds if self._seconds >= 0 else None

    def start(self) -> None:
        """Nobody uses it any more, from now on."""
        self.stop()
        if self._seconds >= 0:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._expire)

    def stop(self) -> None:
        """Somebody uses it, or it is not loaded."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
