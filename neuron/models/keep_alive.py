"""How long a model stays loaded that nobody uses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class KeepAlive:
    """A timer that counts while a model is loaded and idle. Between requests it is let run, and not set anew:
    under load they come and go a thousand times a second.

    Args:
        default: seconds, as its settings have it now; below 0: for ever.
        expire: called when that time is over.
    """

    def __init__(self, default: Callable[[], float], expire: Callable[[], None]) -> None:
        self._default = default
        self._asked: float | None = None  # by the last request
        self._expire = expire
        self._ends: float | None = None  # when it is over, by the loop's clock; None: somebody uses it
        self._timer: asyncio.TimerHandle | None = None
        self._looks = 0.0  # when that timer looks whether it is over

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
        if (seconds := self._seconds) < 0:
            self._ends = None
            return
        self._ends = asyncio.get_running_loop().time() + seconds
        if self._timer is None or self._looks > self._ends:
            self._set_timer()

    def stop(self) -> None:
        """Somebody uses it, or it is not loaded."""
        self._ends = None

    def close(self) -> None:
        """Call nobody any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        self.close()
        self._timer = asyncio.get_running_loop().call_at(self._ends, self._look)
        self._looks = self._ends

    def _look(self) -> None:
        self._timer = None
        if self._ends is None:
            return
        if self._ends > self._looks:  # somebody used it meanwhile
            self._set_timer()
        else:
            self._expire()
