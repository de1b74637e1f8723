"""How long to wait before what failed is tried again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds to wait before a restart, doubling with each bad start."""

    first: float = 0.5
    longest: float = 30.0

    def seconds(self, bad_starts: int) -> float:
        return min(self.first * 2.0 ** min(bad_starts, 60), self.longest)
