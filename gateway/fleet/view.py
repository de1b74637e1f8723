"""The view of the fleet that one gateway process keeps: for each neuron a client, and what it said last.

It is a view and no more: memory, queues and model state belong to the neurons. Each is told the eviction
policy (`hello`), then pushes its state as it changes (`watch`). One that falls silent, or whose connection
breaks, is lost until it answers again.

A request goes where its model is loaded and it begins soonest; where it is loaded nowhere, those that have it
are asked for a quote first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections import Counter
from collections.abc import Collection, Coroutine, Iterator
from functools import partial
from math import inf
from pathlib import Path
from time import monotonic

import msgspec

from gateway import config
from gateway.aliases import Aliases
from gateway.catalogue import Entry
from gateway.fleet import router, score
from gateway.fleet.breaker import Breaker
from gateway.fleet.directory import Directory
from gateway.fleet.held_catalogue import CatalogueAtNeuron, HeldCatalogue
from gateway.fleet.prefixes import Prefixes
from gateway.fleet.prompts import NOTHING, Prompt
from gateway.fleet.quotes import Quotes
from ipc.client import NeuronClient
from ipc.errors import Code, CortexError
from ipc.keys import load_public, load_secret
from ipc.logs import Gathered
from ipc.messages.replies import Failed, Quoted, State
from ipc.messages.requests import Eviction, Hello, Watch
from ipc.messages.state import Device, ModelState

logger = logging.getLogger("gateway.fleet.view")

HELLO_SECONDS = 5.0
RETRY_SECONDS = 0.5  # between tries to watch a neuron again
SILENT_SECONDS = 3.0  # three heartbeats that did not come: others are asked first
QUOTED = 16  # neurons that are asked for a quote for one request
SEARCHED = 64  # the same, for a model that none says that it has
FINISH_SECONDS = 1.0  # for what is to be done before the end
MEASURED = 0.1  # the weight of one prompt in how many bytes a token has


class Neuron:
    """One neuron as this process sees it: a `router.Host` with a client.

    Args:
        directory: is kept up to date with what it has, and
        prefixes: with which prompts it holds.
        lost_seconds: since it was lost, within which it may be back at once.

    Attributes:
        healthy: it has told its state, and has not been lost since.
        heard: it has told its state since this process began.
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
        self._breakers: dict[str, Breaker] = {}  # of models that failed since they served somebody

    async def watch(self, eviction: Eviction) -> None:
        """Follow its state until this task is cancelled."""
        name = f"gateway {socket.gethostname()} {os.getpid()}"
        while True:
            try:
                hello = await self.client.ask(Hello(id=0, client=name, eviction=eviction), HELLO_SECONDS)
                self.version = hello.version
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
        if model in self.models:
            self._breakers.setdefault(model, Breaker()).failed(monotonic())

    def served(self, model: str) -> None:
        """It served one to its end."""
        self._breakers.pop(model, None)

    def _on_state(self, state: State) -> None:
        takes = self.healthy and not self.draining
        if not self.healthy:
            logger.info("neuron answers name=%s endpoint=%s", self.name, self.client.endpoint)
        self.healthy, self.heard, self.reason = True, True, ""
        self._is_back.set()
        self.instance, self.draining = state.instance, state.draining
        self.devices, self.text_memory = state.devices, state.text_memory
        self.parked_memory, self.parking = state.parked_memory, state.parking
        before = self.models
        known = [] if state.whole else [model for model in self.own_models if model.id not in state.gone]
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
            if not self._prefixes.learn(self, name, news):
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


class Fleet:
    """All neurons of a configuration, and the names that their models have.

    Attributes:
        ended: the log of requests that ended.

    Raises:
        CortexError: a key of the configuration cannot be used.
    """

    def __init__(self, settings: config.GatewayConfig) -> None:
        key_file = settings.gateway.key_file
        secret = load_secret(key_file) if key_file is not None else None
        self.directory: Directory[Neuron] = Directory()
        self.prefixes: Prefixes[Neuron] = Prefixes()
        lost_seconds = settings.gateway.lost_wait_seconds
        self.neurons = [
            Neuron(entry, secret, self.directory, self.prefixes, lost_seconds) for entry in settings.neurons
        ]
        path = settings.models_config
        self.catalogue = HeldCatalogue(Path(path), settings) if path is not None else None
        if self.catalogue is not None:
            for neuron in self.neurons:
                neuron.catalogue = self.catalogue.at(neuron.client, neuron.name)
        self._own_aliases = settings.aliases
        self.aliases = self._all_aliases()
        self.load_wait_seconds = settings.gateway.load_wait_seconds
        self.ended = Gathered(logging.getLogger("gateway.requests"))
        self._eviction = msgspec.convert(settings.eviction, Eviction, from_attributes=True)
        self._quotes = Quotes()
        self._bytes_per_token: dict[str, float] = {}  # of text, by model
        self._watches: list[asyncio.Task[None]] = []
        self._finishing: set[asyncio.Task[None]] = set()

    async def start(self, patience: float) -> None:
        """Connect to every neuron, and wait up to `patience` seconds until each has told its state.

        A gateway with a neuron away serves the others.
        """
        for neuron in self.neurons:
            neuron.client.start()
            watch = asyncio.create_task(neuron.watch(self._eviction), name=f"watch {neuron.name}")
            watch.add_done_callback(partial(_on_watch_ended, neuron))
            self._watches.append(watch)
        if self.catalogue is not None:
            self._watches.append(asyncio.create_task(self.catalogue.follow(self._on_catalogue)))
        deadline = asyncio.get_running_loop().time() + patience
        while not all(neuron.healthy for neuron in self.neurons):
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.02)
        for name, model in self.aliases.targets().items():
            if not self.knows(model) and self.entry(model) is None:
                logger.warning("alias leads to a model that no neuron has yet alias=%s model=%s", name, model)

    def finish(self, work: Coroutine[None, None, None]) -> None:
        """Have something done that nobody waits for; it is short, and done before the end."""
        task = asyncio.create_task(work)
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)

    async def stop(self) -> None:
        """Cancel what is open, and disconnect."""
        if self._finishing:
            await asyncio.wait(self._finishing, timeout=FINISH_SECONDS)
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        self._watches.clear()
        self._quotes.close()
        for neuron in self.neurons:
            if neuron.catalogue is not None:
                neuron.catalogue.close()
            neuron.client.close()
        self.ended.close()  # last: what ends only now has a line as well

    def _on_catalogue(self) -> None:
        """Its file was read: names count at once, and neurons are told."""
        self.aliases = self._all_aliases()
        for neuron in self.neurons:
            neuron.catalogue.update()

    def _all_aliases(self) -> Aliases:
        """Ours, then the catalogue's: of several patterns the first one that fits counts."""
        more = self.catalogue.value.aliases if self.catalogue is not None else {}
        return Aliases({**self._own_aliases, **more})

    def entry(self, model: str) -> Entry | None:
        """What the catalogue has of that model."""
        return self.catalogue.value.entries.get(model) if self.catalogue is not None else None

    def knows(self, model: str) -> bool:
        """Whether some neuron has, or had, that model: only then may its name become a label."""
        return model in self.directory

    def resolve(self, asked: str) -> str:
        """The model that is meant by what a client calls one."""
        return self.aliases.resolve(asked, self.knows)

    def states(self, model: str) -> Iterator[tuple[Neuron, ModelState]]:
        """Where that model is, on neurons that answer."""
        for neuron in self.directory.of(model).known:
            if neuron.healthy:
                yield neuron, neuron.models[model]

    async def back(self, neurons: Collection[Neuron]) -> None:
        """Return when one of them answers again, or none is to be expected to do so at once."""
        waits = [asyncio.create_task(neuron.back()) for neuron in neurons]
        try:
            while waits and not any(neuron.healthy for neuron in neurons):
                _, waits = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def has_choice(self, model: str) -> bool:
        """Whether more than one neuron has that model."""
        return len(self.directory.of(model).known) > 1

    def has_replica(self, model: str, besides: Collection[Neuron]) -> bool:
        """Whether another neuron than those has that model loaded."""
        return any(neuron not in besides for neuron in self.directory.of(model).ready)

    async def place(
        self,
        model: str,
        avoid: Collection[Neuron] = (),
        *,
        needs_load: bool = True,
        prompt: Prompt = NOTHING,
        key: bytes = b"",
    ) -> tuple[Neuron, str]:
        """The neuron that suits a request to `model` best, and why.

        Args:
            avoid: neurons that have refused this request already.
            needs_load: whether the model must be loaded for it; if not, any neuron that has it will do.
            prompt: what can be told of its prompt.
            key: what it has in common with others that go to the same one of equal neurons.

        Raises:
            CortexError: no neuron can take it, and why.
        """
        copies = self.directory.of(model)
        ready = [neuron for neuron in copies.ready if neuron not in avoid] if avoid else copies.ready
        if ready and needs_load:
            asked = score.Asked(model, prompt, key, self.bytes_per_token(model))
            best = score.best(ready, asked, self.prefixes)
            if best.waits > router.SECOND_SECONDS and (found := await self._second(asked, best, avoid)):
                return found
            return best.host, best.reason(asked, len(ready))
        having = _without([*copies.ready, *copies.others], avoid)
        if not having and (away := _without(copies.known, avoid)):
            # A link that broke is whole again in a moment, and a neuron that was killed is started again.
            await self.back([neuron for neuron in away if not neuron.healthy])
            copies = self.directory.of(model)
            having = _without([*copies.ready, *copies.others], avoid) or router.able(away, model)
        if len(having) == 1:
            return having[0], "no other neuron has it"
        if having and not needs_load:
            least = min(
                having,
                key=lambda neuron: (neuron.in_flight.total(), score.order(neuron.name, model, key)),
            )
            return least, "it has the least to do"
        neurons = [neuron for neuron in self.neurons if neuron not in avoid]
        was_known = self.knows(model)
        # A neuron may have found a model since it told its state last.
        asked_for_quotes = _without(router.few(copies, model, QUOTED + len(avoid)), avoid) or score.some(
            [neuron for neuron in neurons if neuron.healthy and not neuron.draining], SEARCHED, model
        )
        quotes = await self._quotes.ask(asked_for_quotes, model) if asked_for_quotes else {}
        having = [neuron for neuron in asked_for_quotes if not _has_not(quotes.get(neuron.name))]
        if not having:
            if self.knows(model) and not was_known:  # one that has it was heard meanwhile
                return await self.place(model, avoid, needs_load=needs_load, prompt=prompt, key=key)
            raise router.absent(neurons, model)
        if ready := [neuron for neuron in self.directory.of(model).ready if neuron in having]:
            best = score.best(ready, score.Asked(model, prompt, key), self.prefixes)
            return best.host, f"by now {best.reason(score.Asked(model), len(ready))}"
        neuron, reason = router.best(having, model, quotes)
        self._quotes.forget(neuron.name)
        return neuron, reason

    async def _second(
        self, asked: score.Asked, best: score.Score[Neuron], avoid: Collection[Neuron]
    ) -> tuple[Neuron, str] | None:
        """Where a request begins much sooner with one more copy of its model; None: nowhere."""
        model = asked.model
        others = _without(router.few(self.directory.of(model), model, QUOTED + len(avoid)), avoid)
        if not others:
            return None
        found = router.second(others, model, await self._quotes.ask(others, model), best.waits, best.each)
        if found is not None:
            self._quotes.forget(found[0].name)
        return found

    def placed(self, neuron: Neuron, model: str, prompt: Prompt) -> None:
        """A request was handed over: others may count on it that the neuron will hold its prompt."""
        if not prompt.places or (state := neuron.models.get(model)) is None:
            return
        rate = self.bytes_per_token(model)
        sizes = [prompt.places[0], *([prompt.head] if prompt.head is not None else [])]
        held = [(place.digest, int(place.size / rate)) for place in sizes]
        if prompt.session:
            held.append((prompt.session, held[0][1]))
        self.prefixes.expect(neuron, state.id, held, monotonic())

    def bytes_per_token(self, model: str) -> float:
        """Of the text of prompts to that model, as measured."""
        return self._bytes_per_token.get(model, score.BYTES_PER_TOKEN)

    def measure(self, model: str, prompt: Prompt, tokens: int) -> None:
        """A prompt had so many tokens."""
        if prompt.size and tokens > 0:
            known = self.bytes_per_token(model)
            self._bytes_per_token[model] = known + MEASURED * (prompt.size / tokens - known)


def _without(neurons: list[Neuron], avoid: Collection[Neuron]) -> list[Neuron]:
    return [neuron for neuron in neurons if neuron not in avoid]


def _has_not(quote: Quoted | CortexError | None) -> bool:
    return isinstance(quote, CortexError) and quote.code in (Code.MODEL_NOT_FOUND, Code.BAD_REQUEST)


def _on_watch_ended(neuron: Neuron, watch: asyncio.Task[None]) -> None:
    """Only the end of the process should end a watch; a bug that does must not look like a healthy neuron."""
    if not watch.cancelled() and (error := watch.exception()) is not None:
        neuron.lose(f"{Code.INTERNAL}: {error}")
        logger.error("watch failed name=%s", neuron.name, exc_info=error)
