"""What text processes hold of the host's memory: it is in the ledger, and idle ones make way for a model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

from ipc.sizes import gib
from neuron.memory.ledger import Ledger
from neuron.memory.parking import HOST

log = logging.getLogger("neuron.memory.text_memory")

NAME = "text processes"  # under which they are booked, all together; no model has such an id


class TextProcesses(Protocol):
    """Those that prepare requests (`neuron.preparation.preparation`)."""

    @property
    def memory(self) -> int:
        """Bytes that they hold now."""
        ...

    @property
    def spare_memory(self) -> int:
        """Bytes of those that have nothing to do."""
        ...

    async def end_idle(self, size: int) -> int:
        """End idle ones until `size` bytes come free; how many do."""
        ...


class TextMemory:
    """Their booking: they ask nobody, so it is what was measured last.

    Args:
        ledger: where it is, if the host's memory is one of its devices.
    """

    def __init__(self, ledger: Ledger, processes: TextProcesses) -> None:
        self._ledger = ledger
        self._processes = processes

    def measure(self) -> None:
        """Book what they hold now."""
        self._ledger.account(NAME, HOST, self._processes.memory)

    def booked(self, device: str) -> int:
        """Bytes on `device` that a model may have, because processes without work make way."""
        if device != HOST:
            return 0
        return min(self._processes.spare_memory, self._ledger.held_by(NAME).get(HOST, 0))

    @property
    def at_work(self) -> dict[str, int]:
        """Bytes by device of those that have something to do, which nobody ends for a model."""
        held = self._ledger.held_by(NAME).get(HOST, 0) - self.booked(HOST)
        return {HOST: held} if held else {}

    async def make_way(self, amounts: Mapping[str, int]) -> None:
        """See that `amounts` (bytes by device) can be booked, as far as idle processes are in the way."""
        if HOST not in amounts or HOST not in self._ledger.devices:
            return
        short = amounts[HOST] - self._ledger.free(HOST)
        if short > 0 and self._processes.spare_memory:
            log.info("idle text processes make way bytes=%s", gib(short))
            await self._processes.end_idle(short)
            self.measure()
