"""Keeps requests away from what fails them, as long as they can go elsewhere."""

from __future__ import annotations

from ipc.errors import Code

FAILURES = 3  # in a row, after which it is left alone
SECONDS = 5.0  # for so long at first, and twice as long after each trial that fails,
MAX_SECONDS = 60.0  # and at most so long
TRIAL_SECONDS = 30.0  # until which a trial has succeeded, or another one begins

# Of a request that did nothing wrong. Refusals, such as by a full queue, are none.
FAULTS = frozenset((Code.NEURON_LOST, Code.WORKER_DIED, Code.STEP_DEADLINE, Code.INTERNAL))


class Breaker:
    """A circuit breaker for one model on one host. Times are those of one clock, in seconds.

    It opens after `FAILURES` in a row. When its time is over one request is let through as a trial, which
    closes it, or opens it for longer.
    """

    __slots__ = ("_failures", "_is_tried", "_seconds", "_until")

    def __init__(self) -> None:
        self._failures = 0
        self._seconds = SECONDS
        self._until: float | None = None  # once it was opened
        self._is_tried = False  # a trial is on its way

    def is_open(self, now: float) -> bool:
        """Whether requests had better go elsewhere."""
        return self._until is not None and now < self._until

    def began(self, now: float) -> None:
        """A request was let through; where the time was over, it is the trial."""
        if self._until is not None and now >= self._until:
            self._until, self._is_tried = now + TRIAL_SECONDS, True

    def failed(self, now: float) -> float | None:
        """A request ended with one of `FAULTS`. Those that were open when it opened change nothing more.

        Returns:
            The seconds for which it opens; None where it does not, or is open as it was.
        """
        if self._is_tried:
            self._seconds = min(2 * self._seconds, MAX_SECONDS)
            self._is_tried = False
        elif self.is_open(now):
            return None
        else:
            self._failures += 1
            if self._failures < FAILURES:
                return None
        self._until = now + self._seconds
        return self._seconds

    @property
    def has_opened(self) -> bool:
        """Whether it did since it was made."""
        return self._until is not None
