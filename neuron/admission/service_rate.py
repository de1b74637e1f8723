"""How fast a line moves, as measured, and so how long one in it will wait."""

from __future__ import annotations

from collections import deque

TURNS = 32  # the last ones, that a rate is of
SHORTEST, LONGEST = 1.0, 600.0  # seconds after which trying again may be advised


class ServiceRate:
    """Turns that were had while others waited for theirs: what comes when nobody waits says nothing."""

    def __init__(self) -> None:
        # of turns, after that from which they are counted
        self._times: deque[float] = deque(maxlen=TURNS + 1)
        self._seconds_each: float | None = None  # when somebody waited last

    def begin(self, now: float) -> None:
        """From now on somebody waits; nothing changes where somebody did."""
        if not self._times:
            self._times.append(now)

    def count(self, now: float) -> None:
        """Somebody who waited has a turn."""
        if self._times:
            self._times.append(now)

    def end(self, now: float) -> None:
        """Nobody waits any more."""
        if self._times:
            self._seconds_each = self.seconds_each(now)
            self._times.clear()

    def seconds_each(self, now: float) -> float | None:
        """From one turn to the next; None: it was never measured."""
        turns = len(self._times) - 1
        if turns < 1:
            return self._seconds_each
        # A line that stands still since its last turn moves no faster than that.
        return max((self._times[-1] - self._times[0]) / turns, (now - self._times[0]) / (turns + 1))

    def seconds(self, turns: int, now: float) -> float | None:
        """Until so many turns from now, at the rate so far; None: nothing is known."""
        each = self.seconds_each(now)
        return None if each is None else turns * each

    def retry_after(self, turns: int, now: float, guess: float) -> float:
        """Seconds after which trying again makes sense, when so many turns come before.

        Args:
            guess: from one turn to the next, where it was never measured.
        """
        seconds = self.seconds(turns, now)
        return min(max(SHORTEST, turns * guess if seconds is None else seconds), LONGEST)
