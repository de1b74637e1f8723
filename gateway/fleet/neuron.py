"""One neuron, as a gateway process sees it: a client, and what it said last.

It is told the eviction policy (`hello`), then pushes its state as it changes (`watch`). One that falls
silent, or whose connection breaks, is lost until it answers again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections import Counter
from math import inf
from time import monotonic

from msgspec.structs import replace

from gateway import config, successors
from gateway.fleet.breaker import Breaker
from gateway.fleet.directory import Directory
from gateway.fleet.held_catalogue import CatalogueAtNeuron
from gateway.fleet.prefixes import Prefixes
from gateway.telemetry import metrics
from ipc.client import NeuronClient
from ipc.errors import Code, CortexError
from ipc.keys import load_public
from ipc.messages.replies import Failed, State
from ipc.messages.requests import Eviction, Hello, Watch
from ipc.messages.state import Device, ModelState

logger = logging.getLogger("gateway.fleet.neuron")

HELLO_SECONDS = 5.0
RETRY_SECONDS = 0.5  # between tries to watch a neuron again
# What a model has of a process that is gone.
_NOTHING = {"running": 0, "waiting": 0, "bytes_reserved": 0, "bytes_measured": 0, "bytes_parked": 0}
SILENT_SECONDS = 3.0  # three heartbeats that did not come: others are asked first


class Neuron:
    """One neuron as this process sees it: a `router.Host` with a client.

    Args:
        directory: is kept up to date with what it has, and
        prefixes: with which prompts it holds.
        lost_seconds: since it was lost, within which it may be back at once.

    Attributes:
        healthy: it has told its state, and has not been lost since.
        heard: it has told all its models since this process began, and no later process of it has answered
            since. Until then it may have others.
        reason: why it is not healthy.
        models: by id. Those of a lost neuron are kept: a model that is away is not one that never was.
        in_flight: our own open requests, by model.
        catalogue: what it makes of ours; None: we have none.
    """

    def __init__(
        self,
        entry: config.NeuronSettings,
        secret: str | None,
        directory: Directory[Neuron] | None = None,
        prefixes: Prefixes[Neuron] | None = None,
        lost_seconds: float = 0.0,
    ) -> None:
        self.name = entry.name
        public = load_public(entry.public_key) if entry.public_key is not None else None
        self.client = NeuronClient(
            entry.endpoint, secret=secret if public is not None else None, server_public=public
        )
        self.healthy = self.heard = False
        self.reason = "it has not answered yet"
        self.draining = False
        self.instance = ""
        self.version = ""
        self.models: dict[str, ModelState] = {}  # by id, and by that of each adapter
        self.devices: list[Device] = []
        self.text_memory = 0  # bytes that its text processes hold
        self.parked_memory = self.parking = 0  # bytes that weights are parked in, and may be
        self.in_flight: Counter[str] = Counter()
        self.catalogue: CatalogueAtNeuron | None = None
        self._directory = directory if directory is not None else Directory()
        self._prefixes = prefixes if prefixes is not None else Prefixes()
        self._lost_at, self._lost_seconds = -inf, lost_seconds
        self._is_back = asyncio.Event()
        self._overstates = False  # which prompts it holds, and the log says so
        self._eviction: Eviction | None = None  # as we said it
        self._other_eviction = ""  # that counts there, as was logged
        self._breakers: dict[str, Breaker] = {}  # of models that failed since they served somebody

    async def watch(self, eviction: Eviction) -> None:
        """Follow its state until this task is cancelled."""
        name = f"gateway {socket.gethostname()} {os.getpid()}"
        self._eviction = eviction
        while True:
            try:
                # one that is replaced has the settings of before
                said = None if successors.am_replaced() else eviction
                hello = await self.client.ask(Hello(id=0, client=name, eviction=said), HELLO_SECONDS)
                self.version = hello.version
                self._compare(hello.eviction)
                self.heard &= hello.instance == self.instance  # a new one may have other models
                if self.catalogue is not None:  # first, or it would say that it has not what stands there
                    await self.catalogue.greet(HELLO_SECONDS)
                async for reply in self.client.open(Watch(id=0)):
                    if isinstance(reply, State):
                        self._on_state(reply)
                    elif isinstance(reply, Failed):
                        raise reply.error()
            except CortexError as error:
                self._on_lost(error.message)
            await asyncio.sleep(RETRY_SECONDS)

    def _compare(self, counts: Eviction | None) -> None:
        """Say it once where the neuron makes room as another gateway wants it."""
        ours = self._eviction
        if counts is None or ours is None or counts.version == ours.version:
            self._other_eviction = ""
        elif counts.version != self._other_eviction:
            self._other_eviction = counts.version
            logger.warning(
                "eviction of another gateway counts, whose file is newer "
                "neuron=%s ours=%s counts=%s origin=%s",
                self.name,
                ours.version,
                counts.version,
                counts.origin,
            )

    async def back(self) -> None:
        """Return when it answers, or was lost so long ago that it is not to be expected at once."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self._lost_at + self._lost_seconds - monotonic())):
                await self._is_back.wait()

    def has_left(self, error: CortexError, instance: str) -> bool:
        """Whether a request failed because it was out of reach, or because that process of it ends."""
        if error.code == Code.NEURON_LOST:
            if self.healthy and not self.client.alive:
                self.lose(error.message)  # its watch will hear of it in a moment
            return True
        return error.code == Code.SHUTTING_DOWN and (not self.healthy or self.instance != instance)

    def is_shaky(self, model: str) -> bool:
        breaker = self._breakers.get(model)
        return self.client.silent_seconds > SILENT_SECONDS or (
            breaker is not None and breaker.is_open(monotonic())
        )

    def began(self, model: str) -> None:
        """It was handed a request of ours."""
        self.in_flight[model] += 1
        self._tell_of_own(model)
        if (breaker := self._breakers.get(model)) is not None:
            breaker.began(monotonic())

    def left(self, model: str) -> None:
        """That request is its no longer."""
        self.in_flight[model] -= 1
        if not self.in_flight[model]:
            del self.in_flight[model]  # names may come from clients
        self._tell_of_own(model)

    def _tell_of_own(self, model: str) -> None:
        state = self.models.get(model)
        if state is None or state.status != "ready":
            self._directory.update(self, [model])

    def failed(self, model: str) -> None:
        """It did not serve one, for no fault of that one's own."""
        if model not in self.models:
            return
        seconds = self._breakers.setdefault(model, Breaker()).failed(monotonic())
        if seconds is not None:
            metrics.avoided(model, self.name).inc(1)
            logger.warning(
                "model is avoided here, for it failed neuron=%s model=%s seconds=%g",
                self.name,
                model,
                seconds,
            )

    def served(self, model: str) -> None:
        """It served one to its end."""
        breaker = self._breakers.pop(model, None)
        if breaker is not None and breaker.has_opened:
            logger.info("model is avoided no longer neuron=%s model=%s", self.name, model)

    @property
    def avoided(self) -> list[str]:
        """Models that requests are kept away from here, as long as they can go elsewhere."""
        now = monotonic()
        return sorted(model for model, breaker in self._breakers.items() if breaker.is_open(now))

    def _on_state(self, state: State) -> None:
        takes = self.healthy and not self.draining
        if not self.healthy:
            logger.info("neuron answers name=%s endpoint=%s", self.name, self.client.endpoint)
        self.healthy, self.heard, self.reason = True, self.heard or not state.searching, ""
        self._is_back.set()
        self.instance, self.draining = state.instance, state.draining
        self.devices, self.text_memory = state.devices, state.text_memory
        self.parked_memory, self.parking = state.parked_memory, state.parking
        if state.eviction is not None:  # an older neuron does not say
            self._compare(state.eviction)
        if self.catalogue is not None:
            self.catalogue.counts(state.catalogue)
        before = self.models
        known = []
        if not state.whole:
            known = [model for model in self.own_models if model.id not in state.gone]
        elif state.searching:  # it started again, and has not found them yet
            known = [replace(model, status="unloaded", **_NOTHING) for model in self.own_models]
        own = {model.id: model for model in [*known, *state.models]}
        self.models = own | {f"{m.id}:{name}": m for m in own.values() for name in m.adapters}
        again = state.whole or takes == self.draining  # all of them come or go
        self._directory.update(
            self,
            [
                name
                for name in before.keys() | self.models.keys()
                if again or before.get(name) is not self.models.get(name)
            ],
        )
        self._prefixes.forget(
            self,
            [
                name
                for name, model in before.items()
                if state.whole or _epoch(model) != _epoch(self.models.get(name))
            ],
        )
        for name, news in state.prefixes.items():
            if _epoch(self.models.get(name)) is None:  # no worker holds any
                continue
            if not self._prefixes.learn(self, name, news) and not self._overstates:
                self._overstates = True
                logger.warning(
                    "neuron claims too many prefixes, none counts name=%s model=%s", self.name, name
                )

    @property
    def own_models(self) -> list[ModelState]:
        """Each model once, whatever adapters it has."""
        return [model for name, model in self.models.items() if name == model.id]

    def _on_lost(self, reason: str) -> None:
        if self.healthy or reason != self.reason:
            logger.warning("neuron lost name=%s reason=%s", self.name, reason)
        self.lose(reason)

    def lose(self, reason: str) -> None:
        """It takes nothing until it tells its state again."""
        if self.healthy:
            self._lost_at = monotonic()
        self.healthy, self.reason = False, reason
        self._is_back.clear()
        self._directory.update(self, self.models)
        self._prefixes.forget(self, self.models)


def _epoch(model: ModelState | None) -> int | None:
    """Of the workers that hold pages; None: there are none."""
    return model.epoch if model is not None and model.status in ("ready", "draining") else None
