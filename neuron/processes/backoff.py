"""How long to wait before what failed is tried again."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ipc.errors import Code, CortexError


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds to wait before a restart, doubling with each bad start."""

    first: float = 0.5
    longest: float = 30.0

    def seconds(self, bad_starts: int) -> float:
        return min(self.first * 2.0 ** min(bad_starts, 60), self.longest)


class Pause:
    """In which requests are refused for what failed though it had memory: others had to leave for each try.

    Args:
        backoff: how long it is, after so many failures in a row.
    """

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._failures = 0
        self._reason = ""
        self._until = 0.0  # monotonic

    def begin(self, error: CortexError) -> None:
        """It failed again."""
        self._failures += 1
        self._reason = error.message
        self._until = time.monotonic() + self._backoff.seconds(self._failures)

    def end(self) -> None:
        """It did not fail, or is not what it was: the next failure is the first."""
        self._failures, self._until = 0, 0.0

    @property
    def refusal(self) -> CortexError | None:
        """What a request hears now."""
        if (left := self._until - time.monotonic()) <= 0:
            return None
        text = f"{self._reason}; a request has it tried again in {left:.1f} s"
        return CortexError(Code.MODEL_LOAD_FAILED, text, retry_after=left)
