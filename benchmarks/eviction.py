"""Which model leaves: what the strategies come to, under one host's own room on a clock that costs no time.

    python -m benchmarks.eviction [--sessions 400] [--hours 4] [--seeds 3] [--parking 100] [--json PATH]

Sixteen models share memory for about five; they are of unlike size and load at unlike speed (a third of them
is quantised while it is read), and neither has to do with how much they are used. Sessions of agents begin at
random, each with one model, and make some ten requests with pauses between them. Every strategy gets the same
trace. A wait runs from a request to its beginning.

"foresight" is no strategy but a bound: `cost`, where what is known of a model is not how much it was used but
when it will be. Those models go whose return costs least for each second that they may stay away. What it
saves of the waits of `lru` is what another choice could win at all; the last lines say how much of it `cost`
wins.

"lru, parked" and "cost, parked" are the same on a host whose memory keeps weights of models that left, as
many bytes as the devices have or a part of that, chosen by the same strategy; from there a load takes a fifth
of its time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.console import Console
from rich.table import Table

from ipc import parked
from ipc.messages.requests import Eviction
from neuron.memory.ledger import Ledger
from neuron.memory.parking import Parking
from tests.neuron.room_play import Place, play

STRATEGIES = ("lru", "priority", "cost", "foresight", "lru, parked", "cost, parked")
WAKE_SHARE = 1 / 5  # of the time of a load, that one from the host's memory takes
UNIT = 16 << 10  # bytes that stand for a hundredth of the devices, where they are parked
MODELS = 16
REQUESTS = 10  # of a session, on average
PAUSE_SECONDS = 15.0  # between two of them, on average
SOON = 0.1  # seconds: whoever is due sooner is due now
SECONDS = 4.0  # that a request runs, on average


class Session(NamedTuple):
    """Of one agent. For each request the seconds that it runs, and of the pause after it."""

    begins: float
    model: str
    requests: list[tuple[float, float]]


class Outcome(NamedTuple):
    waits: list[float]
    loads: int
    load_seconds: float


def host(seed: int) -> dict[str, tuple[int, float]]:
    """Models: the hundredths of the memory that each takes, and the seconds of its load."""
    chance = random.Random(seed)
    models = {}
    for number in range(MODELS):
        size = chance.choice([6, 10, 15, 20, 30, 40])
        rate = 1.0 if chance.random() < 1 / 3 else 5.0  # hundredths a second
        models[f"m{number}"] = size, size / rate
    return models


def sessions(count: int, seconds: float, seed: int) -> Iterator[Session]:
    """A day's work: few models get most of it (Zipf)."""
    chance = random.Random(seed)
    names = [f"m{number}" for number in range(MODELS)]
    chance.shuffle(names)
    weights = [1 / (rank + 1) for rank in range(MODELS)]
    for _ in range(count):
        length = 1 + int(chance.expovariate(1 / (REQUESTS - 1)))
        requests = [
            (chance.expovariate(1 / SECONDS), chance.expovariate(1 / PAUSE_SECONDS)) for _ in range(length)
        ]
        yield Session(chance.uniform(0, seconds), chance.choices(names, weights)[0], requests)


class Foresight:
    """When a model is asked for next: in place of its `RecentUse`."""

    def __init__(self) -> None:
        self.due: dict[int, float] = {}  # by session: its next request

    def add(self, now: float) -> None:
        pass

    def requests(self, now: float) -> float:
        return self.at(now)

    def at(self, now: float) -> float:
        left = min(self.due.values(), default=math.inf) - now
        return 1 / max(left, SOON)


class Host:
    """A host that keeps weights in its memory.

    Args:
        place: whose models these are of.
        budget: hundredths of what the devices have.
        seconds: of each model's load from files.
        by_worth: what saves least leaves first; else what was used longest ago.
    """

    def __init__(self, place: Place, budget: int, seconds: dict[str, float], by_worth: bool) -> None:
        self._models, self._seconds = place.models, seconds
        self._loop = asyncio.get_running_loop()
        self.parking = Parking(
            budget * UNIT,
            Ledger([]),
            lambda: (1 << 40, 1 << 40),
            self._on_changed,
            worth=self._worth if by_worth else lambda name: 0.0,
            used=lambda name: self._models[name].last_used,
        )
        for name, model in self._models.items():
            model.load = partial(self._load, name)

    def _worth(self, name: str) -> float:
        model = self._models[name]
        uses = model.use.at(self._loop.time()) + (model.open > 0)
        return (1 - WAKE_SHARE) * self._seconds[name] * uses

    def _on_changed(self, name: str) -> None:
        share = WAKE_SHARE if self.parking.bytes_of(name) else 1.0
        self._models[name].reload_seconds = share * self._seconds[name]

    async def _load(self, name: str) -> None:
        size = UNIT * self._models[name].size
        loan = self.parking.lend(name, name, [size])
        await asyncio.sleep(self._models[name].reload_seconds)
        if loan is None:
            return
        woken = loan.whole
        if not woken:
            os.truncate(loan.fds[0], size)
            parked.sign(loan.fds[0], bytes(parked.DIGEST))
        self.parking.settle(loan, loaded=True, woken=woken)


def run(
    strategy: str, models: dict[str, tuple[int, float]], work: list[Session], parking: int = 100
) -> Outcome:
    """The waits of all requests; `parking`: hundredths of what the devices have, where the host keeps any."""

    async def scenario() -> Outcome:
        place = Place({name: size for name, (size, _) in models.items()}, wait_seconds=1e6)
        name, _, parked_too = strategy.partition(", ")
        place.room.eviction = Eviction(strategy=name if name in ("lru", "priority") else "cost")
        foresight = {name: Foresight() for name in models}
        for name, (_, seconds) in models.items():
            place.models[name].reload_seconds = seconds
            if strategy == "foresight":
                place.models[name].use = foresight[name]
        seconds_of = {name: seconds for name, (_, seconds) in models.items()}
        host = Host(place, parking, seconds_of, by_worth=name == "cost") if parked_too else None
        loop = asyncio.get_running_loop()

        async def agent(number: int, session: Session) -> None:
            due = foresight[session.model].due
            due[number] = session.begins
            await asyncio.sleep(session.begins)
            for seconds, pause in session.requests:
                due[number] = loop.time()
                await place.models[session.model].serve(seconds)
                due[number] = loop.time() + pause
                await asyncio.sleep(pause)
            del due[number]

        await asyncio.gather(*(agent(number, session) for number, session in enumerate(work)))
        await place.room.close()
        if host is not None:
            host.parking.close()
        waits = [wait for model in place.models.values() for wait in model.waits]
        loads = {name: model.loads for name, model in place.models.items()}
        return Outcome(waits, sum(loads.values()), sum(models[name][1] * loads[name] for name in loads))

    with pytest.MonkeyPatch.context() as patch:
        return play(scenario(), patch)


def verdict(rows: list[dict[str, Any]], figure: str) -> str:
    """What the others come to beside `lru`, on average over the traces."""
    figures = {(row["seed"], row["strategy"]): row[figure] for row in rows}
    seeds = [seed for seed, strategy in figures if strategy == "lru" and figures[seed, strategy] > 0]
    if not seeds:
        return f"{figure}: lru has none"
    cost, foresight, lru_parked, cost_parked = (
        statistics.mean(figures[seed, strategy] / figures[seed, "lru"] for seed in seeds) - 1
        for strategy in ("cost", "foresight", "lru, parked", "cost, parked")
    )
    won = f", so cost wins {cost / foresight:.0%} of what there is" if foresight < 0 else ""
    told = f"{figure} beside lru's: cost {cost:+.0%}, foresight {foresight:+.0%}{won}"
    if figure == "load seconds":
        return told
    beside = (1 + cost_parked) / (1 + lru_parked) - 1
    return f"{told}; parked: lru {lru_parked:+.0%}, cost {cost_parked:+.0%}, beside that lru {beside:+.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=400)
    parser.add_argument("--hours", type=float, default=4.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parking", type=int, default=100, help="hundredths of what the devices have")
    parser.add_argument("--json", metavar="PATH", help="write the results there, too")
    options = parser.parse_args()
    columns = ("seed", "strategy", "requests", "loads", "load seconds", "mean", "p50", "p95", "p99", "max")
    table = Table(*columns, title="seconds that requests waited")
    rows = []
    for seed in range(1, options.seeds + 1):
        models, work = host(seed), list(sessions(options.sessions, options.hours * 3600, seed))
        for strategy in STRATEGIES:
            waits, loads, load_seconds = run(strategy, models, work, options.parking)
            cuts = statistics.quantiles(waits, n=100)
            told = (statistics.mean(waits), cuts[49], cuts[94], cuts[98], max(waits))
            rows.append((seed, strategy, len(waits), loads, load_seconds, *told))
            table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in rows[-1]))
    Console().print(table)
    results = [dict(zip(columns, row, strict=True)) for row in rows]
    for figure in ("mean", "p95", "load seconds"):
        print(verdict(results, figure))
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
