"""The view of the fleet that one gateway process keeps: for each neuron a client, and what it said last.

It is a view and no more: memory, queues and model state belong to the neurons. Each is told the eviction
policy (`hello`), then pushes its state as it changes (`watch`). One that falls silent, or whose connection
breaks, is lost until it answers again.

A request goes where its model is loaded; where it is not, those that have it are asked for a quote first.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter
from collections.abc import Collection, Iterator
from functools import partial

import msgspec

from gateway import config
from gateway.aliases import Aliases
from gateway.fleet import router
from gateway.fleet.quotes import Quotes
from ipc.client import NeuronClient
from ipc.errors import Code, CortexError
from ipc.keys import load_public, load_secret
from ipc.messages import Device, Eviction, Failed, Hello, ModelState, Quoted, State, Watch

logger = logging.getLogger("gateway.fleet.view")

HELLO_SECONDS = 5.0
RETRY_SECONDS = 0.5  # between tries to watch a neuron again


class Neuron:
    """One neuron as this process sees it: a `router.Host` with a client.

    Attributes:
        healthy: it has told its state, and has not been lost since.
        heard: it has told its state since this process began.
        reason: why it is not healthy.
        models: by id. Those of a lost neuron are kept: a model that is away is not one that never was.
        in_flight: our own open requests, by model.
    """

    def __init__(self, entry: config.NeuronSettings, secret: str | None) -> None:
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
        self.in_flight: Counter[str] = Counter()

    async def watch(self, eviction: Eviction) -> None:
        """Follow its state until this task is cancelled."""
        name = f"gateway {socket.gethostname()} {os.getpid()}"
        while True:
            try:
                hello = await self.client.ask(Hello(id=0, client=name, eviction=eviction), HELLO_SECONDS)
                self.version = hello.version
                async for reply in self.client.open(Watch(id=0)):
                    if isinstance(reply, State):
                        self._on_state(reply)
                    elif isinstance(reply, Failed):
                        raise reply.error()
            except CortexError as error:
                self._on_lost(error.message)
            await asyncio.sleep(RETRY_SECONDS)

    def _on_state(self, state: State) -> None:
        if not self.healthy:
            logger.info("neuron answers name=%s endpoint=%s", self.name, self.client.endpoint)
        self.healthy, self.heard, self.reason = True, True, ""
        self.instance, self.draining = state.instance, state.draining
        self.devices = state.devices
        known = [] if state.whole else [model for model in self.own_models if model.id not in state.gone]
        own = {model.id: model for model in [*known, *state.models]}
        self.models = own | {f"{m.id}:{name}": m for m in own.values() for name in m.adapters}

    @property
    def own_models(self) -> list[ModelState]:
        """Each model once, whatever adapters it has."""
        return [model for name, model in self.models.items() if name == model.id]

    def _on_lost(self, reason: str) -> None:
        if self.healthy or reason != self.reason:
            logger.warning("neuron lost name=%s reason=%s", self.name, reason)
        self.healthy, self.reason = False, reason


class Fleet:
    """All neurons of a configuration, and the names that their models have.

    Raises:
        CortexError: a key of the configuration cannot be used.
    """

    def __init__(self, settings: config.GatewayConfig) -> None:
        key_file = settings.gateway.key_file
        secret = load_secret(key_file) if key_file is not None else None
        self.neurons = [Neuron(entry, secret) for entry in settings.neurons]
        self.aliases = Aliases(settings.aliases)
        self.load_wait_seconds = settings.gateway.load_wait_seconds
        self._eviction = msgspec.convert(settings.eviction, Eviction, from_attributes=True)
        self._quotes = Quotes()
        self._watches: list[asyncio.Task[None]] = []

    async def start(self, patience: float) -> None:
        """Connect to every neuron, and wait up to `patience` seconds until each has told its state.

        A gateway with a neuron away serves the others.
        """
        for neuron in self.neurons:
            neuron.client.start()
            watch = asyncio.create_task(neuron.watch(self._eviction), name=f"watch {neuron.name}")
            watch.add_done_callback(partial(_on_watch_ended, neuron))
            self._watches.append(watch)
        deadline = asyncio.get_running_loop().time() + patience
        while not all(neuron.healthy for neuron in self.neurons):
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.02)
        for name, model in self.aliases.targets().items():
            if not self.knows(model):
                logger.warning("alias leads to a model that no neuron has yet alias=%s model=%s", name, model)

    async def stop(self) -> None:
        """Cancel what is open, and disconnect."""
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        self._watches.clear()
        self._quotes.close()
        for neuron in self.neurons:
            neuron.client.close()

    def knows(self, model: str) -> bool:
        """Whether some neuron has, or had, that model: only then may its name become a label."""
        return any(model in neuron.models for neuron in self.neurons)

    def resolve(self, asked: str) -> str:
        """The model that is meant by what a client calls one."""
        return self.aliases.resolve(asked, self.knows)

    def states(self, model: str) -> Iterator[tuple[Neuron, ModelState]]:
        """Where that model is, on neurons that answer."""
        for neuron in self.neurons:
            if neuron.healthy and model in neuron.models:
                yield neuron, neuron.models[model]

    async def place(
        self, model: str, avoid: Collection[Neuron] = (), *, needs_load: bool = True
    ) -> tuple[Neuron, str]:
        """The neuron that suits a request to `model` best, and why.

        Args:
            avoid: neurons that have refused this request already.
            needs_load: whether the model must be loaded for it; if not, any neuron that has it will do.

        Raises:
            CortexError: no neuron can take it, and why.
        """
        neurons = [neuron for neuron in self.neurons if neuron not in avoid]
        having = router.able(neurons, model)
        if (neuron := router.ready(having, model)) is not None:
            return neuron, "it is loaded there"
        if len(having) == 1:
            return having[0], "no other neuron has it"
        if having and not needs_load:
            return min(having, key=lambda neuron: neuron.in_flight.total()), "it has the least to do"
        # A neuron may have found a model since it told its state last.
        asked = having or [neuron for neuron in neurons if neuron.healthy and not neuron.draining]
        quotes = await self._quotes.ask(asked, model) if asked else {}
        having = [neuron for neuron in asked if not _has_not(quotes.get(neuron.name))]
        if not having:
            raise router.absent(self.neurons, model)
        if (neuron := router.ready([each for each in having if model in each.models], model)) is not None:
            return neuron, "it is loaded there by now"
        neuron, reason = router.best(having, model, quotes)
        self._quotes.forget(neuron.name)
        return neuron, reason


def _has_not(quote: Quoted | CortexError | None) -> bool:
    return isinstance(quote, CortexError) and quote.code in (Code.MODEL_NOT_FOUND, Code.BAD_REQUEST)


def _on_watch_ended(neuron: Neuron, watch: asyncio.Task[None]) -> None:
    """Only the end of the process should end a watch; a bug that does must not look like a healthy neuron."""
    if not watch.cancelled() and (error := watch.exception()) is not None:
        neuron.healthy, neuron.reason = False, f"{Code.INTERNAL}: {error}"
        logger.error("watch failed name=%s", neuron.name, exc_info=error)
