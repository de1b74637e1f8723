"""Two hosts and ten models under a changing mix, against a scheduler that knows everything.

    python -m benchmarks.two_hosts [--requests 2000] [--rate 25] [--seed 1] [--json PATH]

Each host has room for four models; five times in a run their popularity is another one. A request's wait runs
from its being sent to its beginning in the engine. Three ways:

    run        real neurons with simulated models, through the gateway's own view, router and exchanges
    router     on paper: the router's own functions, with the states and quotes that neurons tell
    all known  on paper: one scheduler for the memory of both hosts, that knows what each model does

On paper nothing takes time but answers, and loads: `--load` seconds each. A busy model leaves after its turn
and its last answer, as in a neuron. A load in the run takes what the machine makes of it, which starts a
process for each; so the run shows that every request is answered, and the last two ways can be compared.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import random
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gateway.config import GatewayConfig, NeuronSettings
from gateway.fleet import router, score
from gateway.fleet.exchange import Exchange
from gateway.fleet.prefixes import Prefixes
from gateway.fleet.quotes import FRESH_SECONDS
from gateway.fleet.view import Fleet
from ipc.errors import CortexError
from ipc.messages.replies import Quoted
from ipc.messages.requests import Generate
from ipc.messages.sampling import Sampling
from ipc.messages.state import ModelState, ModelStatus
from neuron.memory import eviction
from neuron.memory.eviction import RecentUse, residency
from tests.neuron.harness import Neuron, simulated

MODELS = [f"m{number}" for number in range(10)]
ROOM = 4  # models that fit on one host
PHASES = 5
LOAD_SECONDS = 0.5  # of a simulated model, without its process
STEP_SECONDS = 0.005
TOKENS = 20
SERVICE_SECONDS = TOKENS * STEP_SECONDS
TURN_SECONDS = 0.5


@dataclass(slots=True)
class Outcome:
    """One request."""

    model: str
    arrival: float
    wait: float = 0.0
    error: str = ""


@dataclass(slots=True)
class Holder:
    """A model in memory, on paper."""

    begins: float  # to load
    ready: float  # from then on it has its turn
    busy_until: float = 0.0
    last_used: float = 0.0
    use: RecentUse = field(default_factory=RecentUse)

    def leaves(self, now: float) -> float:
        """When it could be gone."""
        turn = residency(TURN_SECONDS, self.ready - self.begins)
        return now if self.busy_until <= now else max(self.busy_until, self.ready + turn)


@dataclass(slots=True, eq=False)
class Host:
    """A host on paper: `ROOM` models at most. For the router it is a neuron as a gateway sees it."""

    name: str
    load: float  # seconds
    holders: dict[str, Holder] = field(default_factory=dict)
    leaving: dict[str, float] = field(default_factory=dict)  # until when
    models: dict[str, ModelState] = field(default_factory=dict)  # as they were told last
    in_flight: Counter[str] = field(default_factory=Counter)
    healthy: bool = True
    heard: bool = True
    draining: bool = False
    devices: tuple[()] = ()

    def is_shaky(self, model: str) -> bool:
        return False

    def quote(self, model: str, now: float) -> Quoted:
        """What a neuron would say."""
        if (holder := self.holders.get(model)) is not None:
            verdict = "ready" if holder.ready <= now else "loading"
            return Quoted(id=1, verdict=verdict, seconds=max(0.0, holder.ready - now))
        if len(self.holders) < ROOM:
            return Quoted(id=1, verdict="fits", seconds=self.load)
        leaves, victim = self._victim(now)
        verdict = "evicts" if leaves <= now else "waits"
        use = self.holders[victim].use
        loss = eviction.Holder(
            *(victim, {}, 0, 0.0),
            reload_seconds=self.load,
            recent_use=use.at(now),
            recent_requests=use.requests(now),
        ).loss("cost")
        seconds = leaves - now + self.load
        return Quoted(id=1, verdict=verdict, seconds=seconds, evicts=[victim], loss=loss)

    def serve(self, model: str, now: float) -> float:
        """Take a request; when it begins."""
        if (holder := self.holders.get(model)) is None:
            begins = now
            if len(self.holders) == ROOM:
                begins, victim = self._victim(now)
                del self.holders[victim]
                self.leaving[victim] = begins
            holder = self.holders[model] = Holder(begins, begins + self.load)
        start = holder.last_used = max(now, holder.ready)
        holder.use.add(now)
        holder.busy_until = max(holder.busy_until, start + SERVICE_SECONDS)
        return start

    def tell(self, now: float) -> None:
        """Let the router know how things are."""
        self.models = {}
        for model in MODELS:
            status = self._status(model, now)
            left = self.holders[model].ready - now if status == "loading" else None
            self.models[model] = ModelState(id=model, status=status, seconds_left=left)

    def _status(self, model: str, now: float) -> ModelStatus:
        if (holder := self.holders.get(model)) is not None:
            return "ready" if holder.ready <= now else "loading" if holder.begins <= now else "waiting"
        return "draining" if self.leaving.get(model, 0.0) > now else "unloaded"

    def _victim(self, now: float) -> tuple[float, str]:
        """Who leaves for another model, and when."""
        leaves, _, name = min(
            (holder.leaves(now), holder.last_used, name) for name, holder in self.holders.items()
        )
        return leaves, name


def mix(count: int, rate: float, seed: int) -> list[Outcome]:
    """Arrivals of a Poisson process; the ranks of the models change from phase to phase."""
    chance = random.Random(seed)
    arrivals, now = [], 0.0
    for phase in range(PHASES):
        order = chance.sample(MODELS, len(MODELS))
        weights = [1 / (rank + 1) ** 1.5 for rank in range(len(MODELS))]
        for _ in range(count * phase // PHASES, count * (phase + 1) // PHASES):
            now += chance.expovariate(rate)
            arrivals.append(Outcome(chance.choices(order, weights)[0], now))
    return arrivals


def all_known(arrivals: Sequence[Outcome], hosts: int, load: float) -> list[float]:
    """The waits under one scheduler for the memory of all hosts, which knows to the moment what models do.

    It keeps one copy of each. For another one the model leaves that can be gone first, and of those with
    nothing to do the one that was used longest ago; turns do not bind it.
    """
    holders: dict[str, Holder] = {}
    waits = []
    for each in arrivals:
        now = each.arrival
        if (holder := holders.get(each.model)) is None:
            begins = now
            if len(holders) == hosts * ROOM:
                gone, _, victim = min(
                    (max(now, held.busy_until), held.last_used, name) for name, held in holders.items()
                )
                begins = gone
                del holders[victim]
            holder = holders[each.model] = Holder(begins, begins + load)
        start = max(now, holder.ready)
        holder.last_used = now
        holder.busy_until = max(holder.busy_until, start + SERVICE_SECONDS)
        waits.append(start - now)
    return waits


def routed(arrivals: Sequence[Outcome], hosts: int, load: float) -> list[float]:
    """The waits under the router, with what it knows."""
    places = [Host(f"host{number}", load) for number in range(hosts)]
    quoted: dict[tuple[str, str], tuple[float, Quoted]] = {}
    ends: list[tuple[float, str, str]] = []  # of requests in flight: when, host, model
    by_name = {host.name: host for host in places}
    prefixes: Prefixes[Host] = Prefixes()
    waits = []
    for each in arrivals:
        now = each.arrival
        while ends and ends[0][0] <= now:
            _, name, model = heapq.heappop(ends)
            by_name[name].in_flight[model] -= 1
        for host in places:
            host.tell(now)
        ready = [place for place in places if place.models[each.model].status == "ready"]
        if ready:
            host = score.best(ready, score.Asked(each.model), prefixes).host
        else:
            for place in places:
                asked, _ = quoted.get((place.name, each.model), (-1.0, None))
                if now - asked > FRESH_SECONDS:
                    quoted[place.name, each.model] = now, place.quote(each.model, now)
            said = {place.name: quoted[place.name, each.model][1] for place in places}
            host, _ = router.best(places, each.model, said)
            quoted = {key: value for key, value in quoted.items() if key[0] != host.name}
        start = host.serve(each.model, now)
        host.in_flight[each.model] += 1
        heapq.heappush(ends, (start + SERVICE_SECONDS, host.name, each.model))
        waits.append(start - now)
    return waits


async def through_the_router(arrivals: list[Outcome], endpoints: list[str]) -> None:
    """Send every request when it is due, and note how it went."""
    neurons = [NeuronSettings(name=f"host{i}", endpoint=each) for i, each in enumerate(endpoints)]
    fleet = Fleet(GatewayConfig(neurons=neurons))
    await fleet.start(patience=20.0)
    loop = asyncio.get_running_loop()
    began = loop.time()
    tasks = []
    for number, each in enumerate(arrivals):
        await asyncio.sleep(max(0.0, began + each.arrival - loop.time()))
        tasks.append(asyncio.create_task(_one(fleet, each, str(number))))
    await asyncio.gather(*tasks)
    await fleet.stop()


async def _one(fleet: Fleet, outcome: Outcome, name: str) -> None:
    exchange = Exchange(fleet, name)
    sampling = Sampling(max_tokens=TOKENS, ignore_eos=True)
    request = Generate(id=0, model=outcome.model, prompt=[1] * 8, sampling=sampling, stream=True)
    began = time.monotonic()
    try:
        await exchange.send(request)
        while exchange.started is None:
            await exchange.take(60.0)
        outcome.wait = time.monotonic() - began
        await exchange.whole()
    except CortexError as error:
        outcome.error = error.code
    finally:
        exchange.close()


def run(folder: Path, arrivals: list[Outcome], hosts: int) -> list[float]:
    """One run through neurons of their own; the seconds that loads took."""
    plan = {"memory": "1GiB", "load_seconds": LOAD_SECONDS, "step_seconds": STEP_SECONDS}
    models = [simulated(name, **plan) for name in MODELS]
    settings = {"cpu": {"memory": f"{ROOM}.5GiB"}, "memory": {"turn_seconds": TURN_SECONDS}}
    with ExitStack() as stack:
        neurons = [stack.enter_context(Neuron(folder / f"host{i}", models, **settings)) for i in range(hosts)]
        asyncio.run(through_the_router(arrivals, [neuron.endpoint for neuron in neurons]))
        logs = "".join(neuron.log for neuron in neurons)
    return [float(seconds) for seconds in re.findall(r"model loaded model=\S+ seconds=([\d.]+)", logs)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=25.0, help="requests a second")
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--load", type=float, default=1.0, help="seconds that a load takes on paper")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", metavar="PATH", help="write the results there, too")
    options = parser.parse_args()
    arrivals = mix(options.requests, options.rate, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        loads = run(Path(folder), arrivals, options.hosts)
    known = all_known(arrivals, options.hosts, options.load)
    on_paper = routed(arrivals, options.hosts, options.load)
    waits = [each.wait for each in arrivals if not each.error]
    results = {
        "requests": len(arrivals),
        "answered": len(waits),
        "errors": Counter(each.error for each in arrivals if each.error),
        "loads": len(loads),
        "seconds of a load: run": statistics.mean(loads),
        "seconds of a load: on paper": options.load,
        "mean wait: run": statistics.mean(waits),
        "mean wait: router": statistics.mean(on_paper),
        "mean wait: all known": statistics.mean(known),
        "router / all known": statistics.mean(on_paper) / statistics.mean(known),
        "longest wait: run": max(waits),
        "longest wait: router": max(on_paper),
        "longest wait: all known": max(known),
    }
    table = Table("what", "value", title="two hosts, ten models, a changing mix")
    for name, value in results.items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    Console().print(table)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
