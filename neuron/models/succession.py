"""Which gateway's catalogue counts, where several have one."""

from __future__ import annotations

import logging

from ipc.messages import FleetCatalogue

log = logging.getLogger("neuron.models.succession")


class Succession:
    """The catalogue that counts.

    All processes of a gateway, and all gateways that have the same file, say the same. Where they do not, the
    file that was written last counts: so it is the same one whoever speaks last, and does not change back and
    forth. A gateway always replaces what it said itself.

    Attributes:
        current: the one that counts; None before any gateway had one.
    """

    def __init__(self) -> None:
        self.current: FleetCatalogue | None = None
        self._told: dict[str, str] = {}  # the version that was passed over last, by its origin

    def take(self, said: FleetCatalogue) -> bool:
        """A gateway says its own; whether another content counts now."""
        now = self.current
        if now is None or said.origin == now.origin:
            self.current = said
            return now is None or said.version != now.version
        newer = (said.modified, said.version) > (now.modified, now.version)
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
                "passed_over=%s counts=%s",
                said.origin,
                now.origin,
            )
        return newer
