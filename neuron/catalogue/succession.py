"""Which gateway's catalogue counts, where several have one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from ipc.messages.catalogue import FleetCatalogue

log = logging.getLogger("neuron.catalogue.succession")

SKEW_SECONDS = 300.0  # that clocks of hosts may differ by


class Succession:
    """The catalogue that counts.

    All processes of a gateway, and all gateways that have the same file, say the same. Where they do not, the
    file that was written last counts: so it is the same one whoever speaks last, and does not change back and
    forth. A gateway always replaces what it said itself. A file that is dated in the future, by a wrong
    clock, counts as older than all others, or nobody could replace it for as long.

    Args:
        now: the clock, Unix seconds.

    Attributes:
        current: the one that counts; None before any gateway had one.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.current: FleetCatalogue | None = None
        self._now = now
        self._told: dict[str, str] = {}  # the version that was passed over last, by its origin

    def take(self, said: FleetCatalogue) -> bool:
        """A gateway says its own; whether another content counts now."""
        now = self.current
        if now is None or said.origin == now.origin:
            self.current = said
            return now is None or said.version != now.version
        newer = (self._written(said), said.version) > (self._written(now), now.version)
        if newer:
            self.current = said
        if said.version == now.version:
            return False
        if newer:
            log.warning(
                "catalogue is replaced by a newer one of another gateway old=%s new=%s",
                now.origin,
                said.origin,
            )
        elif self._told.get(said.origin) != said.version:
            self._told[said.origin] = said.version
            log.warning(
                "catalogue is passed over: two gateways have different ones, and the newer file counts "
                "passed_over=%s counts=%s%s",
                said.origin,
                now.origin,
                "" if self._written(said) else " (its file is dated in the future: touch it)",
            )
        return newer

    def _written(self, said: FleetCatalogue) -> float:
        """When its file was written; 0.0 where that is still to come."""
        return said.modified if said.modified <= self._now() + SKEW_SECONDS else 0.0
