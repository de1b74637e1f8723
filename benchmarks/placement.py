"""The gateway's placement code on paper: a thousand hosts, agents in bursts, and no process but this one.

    python -m benchmarks.placement [--hosts 8 100 1000] [--models 40] [--requests 20000] [--json PATH]

Agents hold conversations whose prompts grow from turn to turn, begin with one of a few sets of instructions,
and now and then send twenty subagents out at once. Models are as popular as Zipf has it; a host has room for
four. Four ways (and two more for who leaves, by which `benchmarks.fleet` has a bound):

    prefixes      the gateway's own: `score` where a model is loaded, else `router`, and where all are full
    load alone    the same, and nobody knows what is cached
    at random     the same, any host that has the model loaded
    no lifecycle  models stay where they stand, the most popular ones more than once; replicas take turns

A wait is the time to the first token. "Hits" are tokens of prompts that were cached, against those that one
host with all the memory would have had. "Decision" is the CPU time that a choice takes, quotes not counted:
compare it between rows of one run. Hosts here tell all at once; neurons push their state ten times a second.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import random
import statistics
import time
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from rich.console import Console
from rich.table import Table

from gateway.fleet import router, score
from gateway.fleet.directory import Directory
from gateway.fleet.prefixes import Prefixes
from gateway.fleet.prompts import Place, Prompt
from gateway.fleet.view import QUOTED
from ipc.messages.replies import Quoted
from ipc.messages.requests import Strategy
from neuron.memory.eviction import Holder, RecentUse, cheapest, order, residency

SEQUENCES = 16  # that a model computes at once
TOKEN_SECONDS = 0.02  # of output
LOAD_SECONDS = 8.0
CACHE_TOKENS = 400_000  # on one host, of all its models
BUSY = 0.5  # requests a second and host
HEADS = 6  # sets of instructions
HEAD_TOKENS = 6000
BYTES = int(score.BYTES_PER_TOKEN)
WAYS = ("prefixes", "load alone", "at random", "no lifecycle")
DEVICE = "cuda:0"
GIB = 1 << 30
SOON = 0.1  # seconds: whoever is due sooner is due now


class Size(NamedTuple):
    """Of a model."""

    gib: float = 1.0
    seconds: float = LOAD_SECONDS  # of a load


@dataclass(frozen=True, slots=True)
class Setting:
    """What hosts have.

    Attributes:
        room: GiB for models.
        leaves: by what models leave; "foresight" knows when each is asked for next, which nobody does.
        begins_with: models that each host has loaded, by host.
    """

    models: Mapping[str, Size]
    room: float = 4.0
    prefill_rate: float = 5000.0  # tokens a second
    token_seconds: float = TOKEN_SECONDS  # of output
    leaves: Strategy | Literal["foresight"] = "cost"
    begins_with: Sequence[Sequence[str]] = ()


@dataclass(slots=True)
class State:
    """What a host tells of a model: of `ModelState` as much as is looked at."""

    id: str
    status: str = "unloaded"
    running: int = 0
    waiting: int = 0
    drained: bool = False
    seconds_left: float | None = None
    max_sequences: int = SEQUENCES
    request_seconds: float = 0.0
    prefill_rate: float = 0.0


@dataclass(slots=True)
class Copy:
    """A model on a host."""

    ready: float  # when it is loaded
    used: float = 0.0
    prefills: float = 0.0  # until when
    ends: list[float] = field(default_factory=list)  # of requests, a heap


@dataclass(slots=True)
class Request:
    arrival: float
    model: str
    prompt: Prompt
    output: int  # tokens

    @property
    def tokens(self) -> int:
        return self.prompt.size // BYTES


class Cache:
    """Which beginnings of prompts are held, the last used ones; of a conversation only the longest."""

    def __init__(self, tokens: int) -> None:
        self._left = tokens
        self._held: OrderedDict[bytes, tuple[str, int, int]] = OrderedDict()  # model, tokens, its own share

    def take(self, request: Request) -> tuple[int, dict[str, dict[bytes, int]]]:
        """Compute a prompt: (tokens that were there, what changed, as `State.prefixes` tells it)."""
        prompt, news = request.prompt, {request.model: {}}
        found = next((place for place in prompt.places if place.digest in self._held), None)
        cached = self._held[found.digest][1] if found is not None else 0
        if found is not None and found.digest != prompt.head.digest:
            self._left += self._held.pop(found.digest)[2]
            news[request.model][found.digest] = 0
        self._put(request.model, prompt.head, prompt.head.size // BYTES, news)
        self._put(request.model, prompt.places[0], (prompt.size - prompt.head.size) // BYTES, news)
        while self._left < 0:
            digest, (model, _, own) = self._held.popitem(last=False)
            self._left += own
            news.setdefault(model, {})[digest] = 0
        return cached, news

    def _put(self, model: str, place: Place, own: int, news: dict[str, dict[bytes, int]]) -> None:
        if place.digest in self._held:
            self._held.move_to_end(place.digest)
            return
        self._held[place.digest] = model, place.size // BYTES, own
        self._left -= own
        news[model][place.digest] = place.size // BYTES

    def drop(self, model: str) -> None:
        """That model leaves, with all that was computed for it."""
        for digest in [digest for digest, (of, _, _) in self._held.items() if of == model]:
            self._left += self._held.pop(digest)[2]


class Host:
    """A host on paper. For the router it is a neuron as a gateway sees it."""

    def __init__(self, name: str, setting: Setting, due: Callable[[str, float], float]) -> None:
        self.name, self.setting, self.due = name, setting, due
        self.models = {model: State(model, prefill_rate=setting.prefill_rate) for model in setting.models}
        self.in_flight: Counter[str] = Counter()
        self.healthy, self.heard, self.draining, self.devices = True, True, False, ()
        self.copies: dict[str, Copy] = {}
        self.uses = {model: RecentUse() for model in setting.models}
        self.cache = Cache(CACHE_TOKENS)

    def is_shaky(self, model: str) -> bool:
        return False

    def quote(self, model: str, now: float) -> Quoted:
        if (copy := self.copies.get(model)) is not None:
            return Quoted(id=1, verdict="loading", seconds=max(copy.ready - now, 0.0))
        seconds = self.setting.models[model].seconds
        victims = self._victims(model, now)
        if not victims:
            return Quoted(id=1, verdict="fits", seconds=seconds)
        leave = max(self._leaves(victim.model, now) for victim in victims)
        return Quoted(
            id=1,
            verdict="evicts" if leave <= now else "waits",
            seconds=leave - now + seconds,
            evicts=[victim.model for victim in victims],
            loss=sum(victim.loss(self._strategy) for victim in victims),
        )

    @property
    def _strategy(self) -> Strategy:
        return "cost" if self.setting.leaves == "foresight" else self.setting.leaves

    def _lacking(self, model: str) -> int:
        """Bytes that have to come free for it."""
        held = sum(self.setting.models[name].gib for name in self.copies)
        return int(GIB * (held + self.setting.models[model].gib - self.setting.room))

    def _leaves(self, model: str, now: float) -> float:
        """When it can leave."""
        copy = self.copies[model]
        return max(now, copy.ready + residency(0.0, self.setting.models[model].seconds), *copy.ends)

    def _victims(self, model: str, now: float) -> list[Holder]:
        """Who leaves for another model: as few as it takes, by the neuron's own order."""
        lacking, strategy = self._lacking(model), self._strategy
        if lacking <= 0:
            return []
        holders = [self._holder(name, copy, now) for name, copy in self.copies.items()]

        def does(chosen: Sequence[Holder]) -> bool:
            return sum(holder.freed([DEVICE]) for holder in chosen) >= lacking

        line = order(holders, 100, [DEVICE], strategy)
        victims = next(line[:count] for count in range(1, len(line) + 1) if does(line[:count]))
        for victim in reversed(victims):
            if does(fewer := [other for other in victims if other is not victim]):
                victims = fewer
        return cheapest(victims, line, 100, does) if strategy == "cost" else victims

    def _holder(self, model: str, copy: Copy, now: float) -> Holder:
        size, use = self.setting.models[model], self.uses[model]
        soon = 1 / max(self.due(model, now), SOON) if self.setting.leaves == "foresight" else None
        return Holder(
            model,
            {DEVICE: int(GIB * size.gib)},
            priority=100,
            last_used=copy.used,
            busy=max(copy.ready, *copy.ends, 0.0) > now,
            settled=copy.ready + residency(0.0, size.seconds) <= now,
            reload_seconds=size.seconds,
            recent_use=use.at(now) if soon is None else soon,
            recent_requests=use.requests(now) if soon is None else soon,
        )

    def load(self, model: str, now: float) -> list[str]:
        """Begin to load a model; who leaves for it."""
        victims = [victim.model for victim in self._victims(model, now)]
        begins = max([now, *(self._leaves(victim, now) for victim in victims)])
        for victim in victims:
            del self.copies[victim]
            self.cache.drop(victim)
            self.models[victim].status = "unloaded"
        seconds = self.setting.models[model].seconds
        self.copies[model] = Copy(begins + seconds, used=now)
        self.models[model].status = "loading"
        self.models[model].seconds_left = seconds
        return victims

    def serve(self, request: Request, cached: int) -> tuple[float, float]:
        """(when its first token comes, when it ends)."""
        copy = self.copies[request.model]
        begins = max(request.arrival, copy.ready, copy.prefills)
        copy.used = request.arrival
        self.uses[request.model].add(request.arrival)
        while copy.ends and copy.ends[0] <= begins:
            heapq.heappop(copy.ends)
        if len(copy.ends) >= SEQUENCES:
            begins = max(begins, heapq.heappop(copy.ends))
        first = copy.prefills = begins + max(request.tokens - cached, 1) / self.setting.prefill_rate
        end = first + request.output * self.setting.token_seconds
        heapq.heappush(copy.ends, end)
        state = self.models[request.model]
        known = state.request_seconds or end - begins
        state.request_seconds = known + 0.2 * (end - begins - known)
        return first, end


def traffic(count: int, hosts: int, models: list[str], seed: int) -> list[Request]:
    """So many requests of agents, in the order of their arrival."""
    chance = random.Random(seed)
    weights = [1 / (rank + 1) ** 1.1 for rank in range(len(models))]
    numbers, made, began = itertools.count(), [], 0.0
    while len(made) < count:
        began += chance.expovariate(BUSY * hosts / 25)  # requests that a conversation has, with its subagents
        model = chance.choices(models, weights)[0]
        made += _conversation(chance, next(numbers), model, began, turns=1 + int(chance.expovariate(1 / 12)))
        if chance.random() < 0.25:
            fan_out = began + 30.0
            for _ in range(20):
                made += _conversation(
                    chance, next(numbers), model, fan_out + chance.random(), turns=2, head=HEADS
                )
    made.sort(key=lambda request: request.arrival)
    return made[:count]


def _conversation(
    chance: random.Random, number: int, model: str, now: float, turns: int, head: int | None = None
) -> Iterator[Request]:
    head = chance.randrange(HEADS) if head is None else head
    start = Place(f"{model}/{head}".encode(), BYTES * HEAD_TOKENS)
    places, size = [start], start.size
    for turn in range(turns):
        size += BYTES * chance.randint(300, 3000)
        places = [Place(f"{number}/{turn}".encode(), size), *places]
        output = chance.randint(50, 350)
        yield Request(now, model, Prompt(size, places, start, f"session {number}".encode()), output)
        now += output * TOKEN_SECONDS + chance.expovariate(1 / 15)


def ideal_hits(requests: list[Request], hosts: int) -> int:
    """Tokens that would have been cached on one host with the memory of all."""
    cache = Cache(CACHE_TOKENS * hosts)
    return sum(cache.take(request)[0] for request in requests)


class Run:
    """One way to place these requests, on hosts of its own."""

    def __init__(self, requests: list[Request], hosts: int, setting: Setting, way: str) -> None:
        self.way = way
        self.arrivals: dict[str, list[float]] = {model: [] for model in setting.models}
        for request in requests:
            self.arrivals[request.model].append(request.arrival)
        self.hosts = [Host(f"h{number:04}", setting, self._due) for number in range(hosts)]
        self.directory: Directory[Host] = Directory()
        self.prefixes: Prefixes[Host] = Prefixes()
        self.events: list[tuple[float, int, Host, str, str]] = []  # a load, or a request, that ends
        self.numbers = itertools.count()
        self.waits: list[float] = []
        self.decisions: list[float] = []  # microseconds
        self.loads = self.evictions = self.hits = self.errors = 0
        self.load_seconds = 0.0
        self.quoting = 0.0
        self.chance = random.Random(1)
        self.turns: Counter[str] = Counter()
        models = list(setting.models)
        for host, loaded in itertools.zip_longest(self.hosts, setting.begins_with, fillvalue=()):
            for model in loaded:
                host.copies[model] = Copy(0.0)
                host.models[model].status = "ready"
            self.directory.update(host, models)
        if way == "no lifecycle":
            self._place_for_good(models)
        for request in requests:
            self._pass(request.arrival)
            self._place(request)

    def _due(self, model: str, now: float) -> float:
        """Seconds until it is asked for next, after now."""
        arrivals = self.arrivals[model]
        following = bisect_right(arrivals, now)
        return arrivals[following] - now if following < len(arrivals) else math.inf

    def _place_for_good(self, models: list[str]) -> None:
        """Half of the room has a copy of each of the most popular, the rest more of the very first ones."""
        places = int(self.hosts[0].setting.room) * len(self.hosts)
        chosen = models[: places // 2]
        chosen += [models[number % min(places // 8, len(models))] for number in range(places - len(chosen))]
        for number, model in enumerate(chosen):
            host = self.hosts[number % len(self.hosts)]
            host.copies.setdefault(model, Copy(0.0))
            host.models[model].status = "ready"
            self.directory.update(host, [model])

    def _pass(self, now: float) -> None:
        while self.events and self.events[0][0] <= now:
            _, _, host, model, what = heapq.heappop(self.events)
            if what == "request":
                host.in_flight[model] -= 1
            elif model in host.copies:
                host.models[model].status = "ready"
                self.directory.update(host, [model])

    def _place(self, request: Request) -> None:
        now, model = request.arrival, request.model
        copies = self.directory.of(model)
        self.quoting, began = 0.0, time.thread_time()
        host = self._choose(request, copies.ready)
        self.decisions.append(1e6 * (time.thread_time() - began - self.quoting))
        if host is None:
            self.errors += 1
            return
        if model not in host.copies:
            self.loads += 1
            self.load_seconds += host.setting.models[model].seconds
            victims = host.load(model, now)
            self.evictions += len(victims)
            changed = [model, *victims]
            self.directory.update(host, changed)
            self.prefixes.forget(host, changed)
            ready = host.copies[model].ready
            heapq.heappush(self.events, (ready, next(self.numbers), host, model, "load"))
        cached, news = host.cache.take(request)
        for of, changes in news.items():
            self.prefixes.learn(host, of, changes)
        first, end = host.serve(request, cached)
        self.hits += cached
        self.waits.append(first - now)
        host.in_flight[model] += 1
        heapq.heappush(self.events, (end, next(self.numbers), host, model, "request"))

    def _choose(self, request: Request, ready: list[Host]) -> Host | None:
        model = request.model
        if not ready and self.way != "no lifecycle":
            having = router.few(self.directory.of(model), model, QUOTED)
            return router.best(having, model, self._quotes(having, request))[0]
        if not ready:
            return None
        if self.way == "no lifecycle":
            self.turns[model] += 1
            return ready[self.turns[model] % len(ready)]
        asked = score.Asked(model, request.prompt, request.prompt.key)
        if self.way == "load alone":
            asked = score.Asked(model, Prompt(request.prompt.size), request.prompt.places[0].digest)
        best = score.best(ready, asked, self.prefixes)
        if best.waits > router.SECOND_SECONDS:
            others = router.few(self.directory.of(model), model, QUOTED)
            if found := router.second(others, model, self._quotes(others, request), best.waits, best.each):
                return next(iter(found))
        return self.chance.choice(ready) if self.way == "at random" else best.host

    def _quotes(self, hosts: list[Host], request: Request) -> dict[str, Quoted]:
        """What these hosts say, which is their work and no part of the decision."""
        began = time.thread_time()
        quotes = {host.name: host.quote(request.model, request.arrival) for host in hosts}
        self.quoting += time.thread_time() - began
        return quotes

    def result(self, ideal: int) -> dict[str, float | str]:
        waits = sorted(self.waits)
        decisions = sorted(self.decisions)
        return {
            "hosts": len(self.hosts),
            "way": self.way,
            "errors": self.errors,
            "loads": self.loads,
            "hits of ideal": self.hits / ideal,
            "mean wait s": statistics.mean(waits),
            "p50": waits[len(waits) // 2],
            "p95": waits[len(waits) * 95 // 100],
            "p99": waits[len(waits) * 99 // 100],
            "decision us": decisions[len(decisions) // 2],
            "decision us p99": decisions[len(decisions) * 99 // 100],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, nargs="+", default=[8, 100, 1000])
    parser.add_argument("--models", type=int, default=40)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", metavar="PATH", help="write the results there, too")
    options = parser.parse_args()
    results = []
    for hosts in options.hosts:
        models = [f"m{number}" for number in range(options.models)]
        requests = traffic(options.requests, hosts, models, options.seed)
        ideal = ideal_hits(requests, hosts)
        setting = Setting(dict.fromkeys(models, Size()))
        results += [Run(requests, hosts, setting, way).result(ideal) for way in WAYS]
    table = Table(*results[0], title="placement on paper")
    for result in results:
        table.add_row(
            *(f"{value:.3f}" if isinstance(value, float) else str(value) for value in result.values())
        )
    Console(width=150).print(table)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
