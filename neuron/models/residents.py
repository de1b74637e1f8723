"""Models that are loaded though nobody asks for them: the pinned, those to be preloaded, and the default."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from math import inf

from ipc.errors import CortexError
from neuron.config import NeuronConfig
from neuron.memory.outlook import Prospect
from neuron.memory.room import Room
from neuron.models.managed import ManagedModel

log = logging.getLogger("neuron.models.residents")

RETRY_SECONDS = 1.0  # between two tries to bring the default back, at least


class Residents:
    """Loads them at the start and when they come, and the default again when what it left for is idle.

    Args:
        config: the neuron's.
        room: says whether a model fits beside those that are there.
        models: all that are known, by id.
        open_model: gets to know one.
    """

    def __init__(
        self,
        config: NeuronConfig,
        room: Room,
        models: Mapping[str, ManagedModel],
        open_model: Callable[[str], Awaitable[ManagedModel]],
    ) -> None:
        self._default = config.default_model
        self._idle_seconds = config.default_after_seconds
        self._room = room
        self._models = models
        self._open = open_model
        self._started = False
        self._called: set[ManagedModel] = set()  # that shall be there
        self._to_preload: list[ManagedModel] = []
        self._preloading: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tried = -inf  # monotonic: when the default was called back last

    async def start(self) -> None:
        """Know the default, and from now on call the pinned and, one after the other, the others."""
        if self._default is not None and self._default not in self._models:
            try:
                await self._open(self._default)
            except CortexError as error:
                log.warning("default model cannot be used model=%s reason=%s", self._default, error)
        self._started = True
        self.call()

    def call(self) -> None:
        """Call whoever shall be there by now and was not called before; before the start it does nothing."""
        if not self._started:
            return
        wanted = [model for model in self._models.values() if self._shall_be_there(model)]
        new = [model for model in wanted if model not in self._called]
        self._called = set(wanted)
        for model in sorted(new, key=lambda model: model.id != self._default):
            if model.settings.pin:
                model.bring_up()
            else:
                self._to_preload.append(model)
        if self._to_preload and (self._preloading is None or self._preloading.done()):
            self._preloading = asyncio.create_task(self._preload())

    def _shall_be_there(self, model: ManagedModel) -> bool:
        return model.settings.pin or model.settings.preload or model.id == self._default

    def look(self) -> None:
        """Something is not what it was: see whether, and when, the default comes back."""
        model = self._models.get(self._default) if self._default is not None else None
        if self._timer is not None or model is None or not model.is_away:
            return
        self._timer = asyncio.get_running_loop().call_later(self._seconds_left(), self._return)

    def close(self) -> None:
        """Load nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._preloading is not None:
            self._preloading.cancel()

    async def _preload(self) -> None:
        while self._to_preload:
            model = self._to_preload.pop(0)
            try:
                prospect = await self._room.prospect(model.tenant)
                if model.status == "unloaded" and prospect.verdict != "fits":
                    log.warning("model is not preloaded model=%s reason=%s", model.id, _why_not(prospect))
                else:
                    await asyncio.shield(model.bring_up())
            except CortexError as error:
                log.warning("model was not preloaded model=%s reason=%s", model.id, error)

    def _return(self) -> None:
        """The default comes back, if it still is away and nobody uses another."""
        self._timer = None
        model = self._models.get(self._default)
        if model is None or not model.is_away:
            return
        if self._seconds_left() > 0:
            self.look()
            return
        self._tried = time.monotonic()
        log.info("default model comes back model=%s idle=%g", model.id, self._idle_seconds)
        model.come_back()

    def _seconds_left(self) -> float:
        """Until nobody has used any model for long enough, as it looks now; some, while one is in use."""
        if self._room.contested or any(not model.is_idle for model in self._models.values()):
            return max(self._idle_seconds, 0.1)
        last = max([0.0, *(model.tenant.last_used for model in self._models.values())])
        next_try = max(last + self._idle_seconds, self._tried + max(self._idle_seconds, RETRY_SECONDS))
        return max(0.0, next_try - time.monotonic())


def _why_not(prospect: Prospect) -> str:
    """Why a model does not fit beside those that are there."""
    if prospect.refusal is not None:
        return str(prospect.refusal)
    victims = ", ".join(prospect.fit.victims)
    return f"{victims} would have to leave" if victims else "others wait for the memory"
