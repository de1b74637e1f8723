"""The view of the fleet that one gateway process keeps: all its neurons, and which of them a request suits.

It is a view and no more: memory, queues and model state belong to the neurons.

A request goes where its model is loaded and it begins soonest; where it is loaded nowhere, those that have it
are asked for a quote first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TypeVar

from msgspec import structs

from gateway import config
from gateway.aliases import Aliases
from gateway.catalogue import Entry
from gateway.fleet import availability, router, score
from gateway.fleet.directory import Directory
from gateway.fleet.discretion import discreet
from gateway.fleet.held_catalogue import HeldCatalogue
from gateway.fleet.neuron import Neuron
from gateway.fleet.origin import origin_of
from gateway.fleet.prefixes import Prefixes
from gateway.fleet.prompts import NOTHING, Prompt
from gateway.fleet.quotes import Quotes
from ipc.errors import Code, CortexError
from ipc.keys import load_secret
from ipc.logs import Gathered
from ipc.messages.replies import Quoted
from ipc.messages.requests import Claim, Eviction
from ipc.messages.state import ModelState

T = TypeVar("T")

logger = logging.getLogger("gateway.fleet.view")

QUOTED = 16  # neurons that are asked for a quote for one request
SEARCHED = 64  # the same, for a model that none says that it has
CLAIM_SECONDS = 1.0  # for a neuron to say where a model is to be loaded
FINISH_SECONDS = 1.0  # for what is to be done before the end
MEASURED = 0.1  # the weight of one prompt in how many bytes a token has


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
        self._eviction = _eviction(settings)
        self._quotes = Quotes()
        self._bytes_per_token: dict[str, float] = {}  # of text, by model
        self._watches: list[asyncio.Task[None]] = []
        self._finishing: set[asyncio.Task[None]] = set()

    async def start(self, patience: float) -> None:
        """Connect to every neuron, and wait up to `patience` seconds until each has told all its models.

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
        while not all(neuron.healthy and neuron.heard for neuron in self.neurons):
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

    def for_one(self, told: T, may_use: Callable[[str], bool]) -> T:
        """What a neuron said, without the names of models of which who asks may not know."""
        return discreet(told, self.directory, may_use)

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

    def place_at_once(
        self, model: str, *, prompt: Prompt = NOTHING, key: bytes = b""
    ) -> tuple[Neuron, str] | None:
        """What `place` says of a model that is loaded; None: neurons have to be asked, or waited for."""
        if not (ready := self.directory.of(model).ready):
            return None
        asked = self._asked(model, prompt, key)
        best = score.best(ready, asked, self.prefixes)
        return None if best.waits > router.SECOND_SECONDS else (best.host, best.reason(asked, len(ready)))

    def _asked(self, model: str, prompt: Prompt, key: bytes) -> score.Asked:
        return score.Asked(model, prompt, key, self.bytes_per_token(model))

    async def place(
        self,
        model: str,
        avoid: Collection[Neuron] = (),
        *,
        needs_load: bool = True,
        prompt: Prompt = NOTHING,
        key: bytes = b"",
        may_use: Callable[[str], bool] = availability.anything,
    ) -> tuple[Neuron, str]:
        """The neuron that suits a request to `model` best, and why.

        Args:
            avoid: neurons that have refused this request already.
            needs_load: whether the model must be loaded for it; if not, any neuron that has it will do.
            prompt: what can be told of its prompt.
            key: what it has in common with others that go to the same one of equal neurons.
            may_use: whether who asks may know of a model.

        Raises:
            CortexError: no neuron can take it, and why.
        """
        copies = self.directory.of(model)
        ready = _without(copies.ready, avoid) if avoid else copies.ready
        if ready and needs_load:
            asked = self._asked(model, prompt, key)
            best = score.best(ready, asked, self.prefixes)
            if best.waits > router.SECOND_SECONDS and (found := await self._second(asked, best, avoid)):
                return found
            return best.host, best.reason(asked, len(ready))
        having = _without([*copies.ready, *copies.others], avoid)
        if not having and (away := _without(copies.known, avoid)):
            # A link that broke is whole again in a moment, and a neuron that was killed is started again.
            await self.back([neuron for neuron in away if not neuron.healthy])
            copies = self.directory.of(model)
            having = _without([*copies.ready, *copies.others], avoid) or availability.able(away, model)
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
                return await self.place(
                    model, avoid, needs_load=needs_load, prompt=prompt, key=key, may_use=may_use
                )
            raise self._missing(model, neurons, quotes, may_use)
        if ready := [neuron for neuron in self.directory.of(model).ready if neuron in having]:
            best = score.best(ready, score.Asked(model, prompt, key), self.prefixes)
            return best.host, f"by now {best.reason(score.Asked(model), len(ready))}"
        neuron, reason = router.best(having, model, quotes)
        if not router.is_on_its_way(neuron, model, quotes.get(neuron.name)):
            agreed = await self._agreed(model, *router.choices(having, model, quotes))
            neuron, reason = router.best(having, model, quotes)  # more is known by now of what we began
            is_coming = router.is_on_its_way(neuron, model, quotes.get(neuron.name))
            if not (agreed is None or agreed is neuron or is_coming):
                neuron, reason = agreed, f"it is agreed to load there, not on {neuron.name}"
        self._quotes.forget(neuron.name)
        return neuron, reason

    def _missing(
        self,
        model: str,
        neurons: Sequence[Neuron],
        quotes: Mapping[str, Quoted | CortexError],
        may_use: Callable[[str], bool],
    ) -> CortexError:
        """What to say of a model that none of these has."""
        error = availability.absent(neurons, model, may_use)
        if error.code == Code.MODEL_NOT_FOUND and self.entry(model) is not None:
            other = [
                each.name for each in neurons if each.catalogue is not None and each.catalogue.is_passed_over
            ]
            return availability.unservable(model, quotes, other)
        return error

    async def _agreed(self, model: str, equals: list[Neuron], others: list[Neuron]) -> Neuron | None:
        """The one of these hosts that loads a model for other processes as well, which may be deciding now;
        None: that cannot be known.

        Args:
            equals: where it would do best,
            others: and where as well, if others have decided so.
        """
        by_instance = {neuron.instance: neuron for neuron in (*equals, *others)}
        if len(by_instance) < 2:
            return None
        claim = Claim(
            id=0,
            model=model,
            equals=[neuron.instance for neuron in equals],
            others=[neuron.instance for neuron in others],
        )
        try:
            reply = await by_instance[min(by_instance)].client.ask(claim, CLAIM_SECONDS)
        except CortexError:  # it is of an older version, or was lost
            return None
        return by_instance.get(reply.neuron)

    async def _second(
        self, asked: score.Asked, best: score.Score[Neuron], avoid: Collection[Neuron]
    ) -> tuple[Neuron, str] | None:
        """Where a request begins much sooner with one more copy of its model; None: nowhere."""
        model = asked.model
        others = _without(router.few(self.directory.of(model), model, QUOTED + len(avoid)), avoid)
        if not others:
            return None
        quotes = await self._quotes.ask(others, model)
        if not (found := router.second(others, model, quotes, best.waits, best.each)):
            return None
        first, *rest = found
        if not router.is_on_its_way(first, model, quotes.get(first.name)):
            agreed = await self._agreed(model, [first], rest)
            # more is known by now of what we began
            if not (found := router.second(others, model, quotes, best.waits, best.each)):
                return None
            first = agreed if agreed in found else next(iter(found))
        self._quotes.forget(first.name)
        return first, f"one more copy, in {found[first]:.1f} s, for all are full for {best.waits:.1f} s"

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


def _eviction(settings: config.GatewayConfig) -> Eviction:
    """The policy as neurons are told it: with its file, for of two gateways' the newer one counts."""
    policy = structs.asdict(settings.eviction)
    return Eviction(**policy, origin=origin_of(settings.path or "no file"), modified=settings.modified)


def _without(neurons: list[Neuron], avoid: Collection[Neuron]) -> list[Neuron]:
    return [neuron for neuron in neurons if neuron not in avoid]


def _has_not(quote: Quoted | CortexError | None) -> bool:
    return isinstance(quote, CortexError) and quote.code in (Code.MODEL_NOT_FOUND, Code.BAD_REQUEST)


def _on_watch_ended(neuron: Neuron, watch: asyncio.Task[None]) -> None:
    """Only the end of the process should end a watch; a bug that does must not look like a healthy neuron."""
    if not watch.cancelled() and (error := watch.exception()) is not None:
        neuron.lose(f"{Code.INTERNAL}: {error}")
        logger.error("watch failed name=%s", neuron.name, exc_info=error)
