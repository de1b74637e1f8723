"""By what a model is served now, and by what from its next load on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

import msgspec

from ipc.model_settings import LIVE, changed_keys
from neuron.config import ModelSettings
from neuron.description import ModelDescription

log = logging.getLogger("neuron.tenancy.renewal")

OUTDATED_SECONDS = 60.0  # that a model with other settings waits for a moment without requests


class Renewal:
    """That of one model; whichever of its parts goes by these reads them here.

    Args:
        settings: what the user said about it.
        description: what it is, from its files.
        overdue: called each minute while other settings wait for a load.

    Attributes:
        settings: that count now.
        description: the same.
        retired: it leaves for good, once nobody has to do with it.
    """

    def __init__(
        self, settings: ModelSettings, description: ModelDescription, overdue: Callable[[], None]
    ) -> None:
        self.settings = settings
        self.description = description
        self.retired = False
        self._overdue = overdue
        self._next: tuple[ModelSettings, ModelDescription] | None = None  # what counts from its next load on
        self._timer: asyncio.TimerHandle | None = None  # until it leaves for that, though it is busy

    @property
    def wanted(self) -> ModelSettings:
        """The settings that it has, or will have from its next load on."""
        return self.settings if self._next is None else self._next[0]

    @property
    def is_due(self) -> bool:
        """Whether it is to leave as soon as it has no requests."""
        return self._next is not None or self.retired

    def renew(self, settings: ModelSettings, description: ModelDescription) -> None:
        """Follow these: at once in what needs no other load, and in the rest from `adopt` on."""
        self.retired = False
        fixed = [key for key in changed_keys(self.settings, settings) if key not in LIVE]
        log.info("model has other settings model=%s reload=%s", settings.id, ",".join(fixed) or "no")
        self.stop()
        self._next = (settings, description) if fixed else None
        live = {key: getattr(settings, key) for key in LIVE}
        self.settings = msgspec.structs.replace(self.settings, **live)
        self.description = replace(
            self.description, defaults=description.defaults, max_output=description.max_output
        )
        if self._next is not None:
            self._wait()

    def pin(self, pinned: bool) -> None:
        """Stay loaded, or no longer, now and later."""
        log.info("model is %s model=%s", "pinned" if pinned else "pinned no longer", self.settings.id)
        self.settings = msgspec.structs.replace(self.settings, pin=pinned)
        if self._next is not None:
            settings, description = self._next
            self._next = msgspec.structs.replace(settings, pin=pinned), description

    def retire(self) -> None:
        """Leave for good, once what runs and what waits is done."""
        self.retired = True
        self.stop()
        self._next = None

    def adopt(self) -> bool:
        """Nothing of it is loaded: other settings count from now on. Whether there were any."""
        if self._next is None:
            return False
        (self.settings, self.description), self._next = self._next, None
        self.stop()
        return True

    def stop(self) -> None:
        """Call nobody any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(OUTDATED_SECONDS, self._on_time)

    def _on_time(self) -> None:
        self._wait()
        self._overdue()
