"""All models of a neuron that are not on its host and may be pulled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path

from ipc.messages.state import Device, ModelState
from neuron.config import ModelSettings, NeuronConfig
from neuron.pulling.pull import Pull, Shared


class Pulls:
    """Those that the last look at the host's files found to be away, and those that come.

    Args:
        config: the neuron's.
        cache: where files go.
        devices: of this host.
        arrived: gets to know a model whose files are here.
        changed: called when the `ModelState` of one is not what it was.
    """

    def __init__(
        self,
        config: NeuronConfig,
        cache: Callable[[], Path],
        devices: Callable[[], Collection[Device]],
        arrived: Callable[[str], Awaitable[object]],
        changed: Callable[[], None],
    ) -> None:
        self._devices = devices
        self._pulls: dict[str, Pull] = {}
        self._changed = changed
        self._shared = Shared(
            config, lambda: str(cache()), self._memory, lambda: self._promised, arrived, changed
        )

    def get(self, model_id: str) -> Pull | None:
        """That model, where it comes just now or is not to be tried again yet."""
        pull = self._pulls.get(model_id)
        return pull if pull is not None and pull.is_busy else None

    def of(self, settings: ModelSettings) -> Pull:
        """A model that is away, served by these settings."""
        pull = self._pulls.get(settings.id)
        if pull is None or (pull.settings != settings and not pull.is_busy):
            pull = self._pulls[settings.id] = Pull(settings, self._shared)
        return pull

    def keep(self, away: Mapping[str, ModelSettings]) -> None:
        """These are away now, and others are not, or no longer wanted."""
        before = self.states()
        self._pulls = {
            model_id: pull for model_id, pull in self._pulls.items() if pull.is_busy or model_id in away
        }
        for settings in away.values():
            self.of(settings)
        if self.states() != before:
            self._changed()

    def states(self) -> list[ModelState]:
        """Of all of them."""
        return [pull.state() for pull in self._pulls.values()]

    async def close(self) -> None:
        """End all that goes on."""
        await asyncio.gather(*(pull.stop("this neuron is shutting down") for pull in self._pulls.values()))

    @property
    def _promised(self) -> int:
        return sum(pull.to_come for pull in self._pulls.values())

    def _memory(self, settings: ModelSettings) -> int:
        there = {device.id: device for device in self._devices()}
        usual = [device.id for device in there.values() if device.kind == "cuda"] or list(there)
        sizes = [there[name].memory_total for name in settings.devices or usual if name in there]
        return sum(sizes if usual == ["cpu"] else sorted(sizes)[-settings.ranks :])
