"""Which gateway's catalogue counts, and whose way to make room, where several have one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

log = logging.getLogger("neuron.catalogue.succession")

SKEW_SECONDS = 300.0  # that clocks of hosts may differ by


class Said(Protocol):
    """What a gateway's file says: `FleetCatalogue`, or `Eviction`."""

    @property
    def version(self) -> str: ...
    @property
    def origin(self) -> str: ...
    @property
    def modified(self) -> float: ...


S = TypeVar("S", bound=Said)


class Succession(Generic[S]):
    """The one that counts.

    All processes of a gateway, and all gateways that have the same file, say the same. Where they do not, the
    file that was written last counts: so it is the same one whoever speaks last, and does not change back and
    forth. A gateway always replaces what it said itself. A file that is dated in the future, by a wrong
    clock, counts as older than all others, or nobody could replace it for as long.

    Args:
        what: it is, for the log.
        now: the clock, Unix seconds.

    Attributes:
        current: the one that counts; None before any gateway had one.
    """

    def __init__(self, what: str, now: Callable[[], float] = time.time) -> None:
        self.current: S | None = None
        self._what = what
        self._now = now
        self._told: dict[str, str] = {}  # the version that was passed over last, by its origin

    def take(self, said: S) -> bool:
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
                "%s is replaced by a newer one of another gateway old=%s new=%s said=%s",
                self._what,
                now.origin,
                said.origin,
                said.version,
            )
        elif self._told.get(said.origin) != said.version:
            self._told[said.origin] = said.version
            log.warning(
                "%s is passed over: two gateways have different ones, and the newer file counts "
                "passed_over=%s counts=%s said=%s%s",
                self._what,
                said.origin,
                now.origin,
                now.version,
                "" if self._written(said) else " (its file is dated in the future: touch it)",
            )
        return newer

    def _written(self, said: S) -> float:
        """When its file was written; 0.0 where that is still to come."""
        return said.modified if said.modified <= self._now() + SKEW_SECONDS else 0.0
