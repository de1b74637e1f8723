"""Agents and a fleet: real neurons with simulated models, through the gateway's own view and exchanges.

    python -m benchmarks.fleet [--neurons 8] [--models 40] [--seconds 300] [--rate 0.8] [--speed 4]

Conversations begin at `--rate` a second, with a model as Zipf has it and one of a few sets of instructions;
each turn takes the answer up into the next prompt, and every twentieth conversation sends out twenty
subagents at once. A neuron has 4 GiB for models of 0.2 to 2.4 GiB, which are read at 0.05 to 0.5 GiB/s: a
tenth of what a host with a GPU has, for so much no test machine has. Two thirds of them fit, and all hosts
are full at the start. It is run for each way to make room, with and without a look at what is cached; and
once more with as many models as fit placed for good, where requests go round their hosts and those to models
without a place are errors.

All of that happens `--speed` times as fast, also what of the policy's constants are seconds; the table has
the seconds as they would be. What this machine takes counts `--speed` times, therefore, and it starts a
process for each load. Rows "on paper" are the same conversations by `benchmarks.placement`, where nothing
takes time but what is simulated and nobody's wait delays what comes after: what the policies come to without
this machine, and what `foresight` reaches, which knows when each model is asked for next. No other choice of
who leaves does much better. They are once more there for `--paper-seconds` of such conversations, as which
model is wanted seldom is not known within minutes.

Loads, the seconds that these are simulated to take, evictions, errors and hits are counted. "Of ideal" is
against what one host with all the memory would have: all that the turn before had, or, of a first turn, the
instructions, where an earlier conversation had the same. "Fairness" is Jain's index of the seconds that
conversations waited for a first token on average: 1 where all waited the same. All models have one priority,
so `priority` is `lru` here: what those rows differ by is chance, and a difference between others that is no
larger means nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from rich.console import Console
from rich.table import Table

from benchmarks import placement
from gateway.config import EvictionPolicy, GatewayConfig, NeuronSettings
from gateway.fleet import prompts, router, score
from gateway.fleet.exchange import Exchange
from gateway.fleet.prompts import Place, Prompt
from gateway.fleet.view import Fleet
from ipc.client import NeuronClient
from ipc.errors import Code, CortexError
from ipc.messages.conversation import Message
from ipc.messages.replies import Delta
from ipc.messages.requests import Generate, Load
from ipc.messages.sampling import Sampling
from ipc.worker_messages import PAGE_SIZE
from tests.neuron.harness import HURRY, Neuron, simulated

MEMORY = 4.0  # GiB of a host
SIZES = (0.2, 0.4, 0.8, 1.6, 2.4)  # GiB of a model
PACES = (0.05, 0.5)  # GiB/s that a load reads, the least and the most,
BEGIN_SECONDS = 0.5  # after the start of its process
ZIPF = 0.8
MOST_TURNS = 12
PAUSE_SECONDS = 10.0  # between the turns of an agent, on average
FAN_OUT_EACH = 20  # conversations, of which one sends out subagents
START_SECONDS = 300.0  # for each of what is loaded before,
LOADS = 3  # so many at a time: how long they take is what neurons know of their models
PROCESSES = 2  # gateways, as far as views go
HEADS = 4  # sets of instructions
HEAD_WORDS = 600
ASKED_WORDS, ANSWERED_TOKENS = (50, 300), (10, 60)  # of a turn, the least and the most
STEP_SECONDS, PREFILL_RATE = 0.02, 10_000.0
POLICIES = ("lru", "priority", "cost")
PAPER, LONG_PAPER, BOUND = "on paper", "on paper for longer", "foresight"
TURN_SECONDS = 10.0  # of a busy model
PATIENCE = 120.0  # for the next reply
PLACED = "round robin"  # of models that are placed for good
TEXT = "open the file and read what stands there then write a test for each promise that it makes"


@dataclass(slots=True)
class Counts:
    """Of one run."""

    waits: dict[str, list[float]] = field(default_factory=dict)  # seconds to first tokens, by conversation
    errors: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    cached: int = 0
    ideal: int = 0
    heads: dict[tuple[str, int], int] = field(
        default_factory=dict
    )  # tokens of instructions that were computed


def say(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(TEXT.split(), k=words))


@dataclass(slots=True)
class Agent:
    """One conversation."""

    fleets: list[Fleet]
    counts: Counts
    chance: random.Random
    name: str
    model: str
    head: int
    speed: float

    async def talk(self, turns: int) -> None:
        instructions = say(random.Random(self.head), HEAD_WORDS)
        messages = [Message(role="system", content=instructions)]
        known = 0  # tokens that were computed for the turn before
        for turn in range(turns):
            messages.append(Message(role="user", content=say(self.chance, self.chance.randint(*ASKED_WORDS))))
            answer = await self._ask(messages, turn, known)
            if answer is None:
                return
            text, known = answer
            messages.append(Message(role="assistant", content=text))
            await asyncio.sleep(self.chance.expovariate(self.speed / PAUSE_SECONDS))

    async def _ask(self, messages: list[Message], turn: int, known: int) -> tuple[str, int] | None:
        """(answer, tokens that are computed now); None: it failed."""
        exchange = Exchange(self.chance.choice(self.fleets), f"{self.name}-{turn}")
        sampling = Sampling(max_tokens=self.chance.randint(*ANSWERED_TOKENS), ignore_eos=True)
        request = Generate(
            id=0, model=self.model, messages=messages, sampling=sampling, stream=True, session=self.name
        )
        text, first, began = "", 0.0, time.monotonic()
        try:
            await exchange.send(request)
            while exchange.finished is None:
                for reply in await exchange.take(PATIENCE):
                    if isinstance(reply, Delta):
                        first = first or self.speed * (time.monotonic() - began)
                        text += reply.text
        except CortexError as error:
            self.counts.errors[error.code] += 1
            return None
        finally:
            exchange.close()
        usage = exchange.finished.usage
        self.counts.waits.setdefault(self.name, []).append(first)
        self.counts.prompt_tokens += usage.prompt_tokens
        self.counts.cached += usage.cached_tokens
        self.counts.ideal += self._ideal(messages, usage.prompt_tokens, known)
        return text, usage.prompt_tokens

    def _ideal(self, messages: list[Message], tokens: int, known: int) -> int:
        key = self.model, self.head
        share = len(messages[0].content) / sum(len(message.content) for message in messages)
        best = known or self.counts.heads.get(key, 0)
        self.counts.heads.setdefault(key, int(share * tokens))
        return best // PAGE_SIZE * PAGE_SIZE


class Talk(NamedTuple):
    """A conversation, or that of a subagent."""

    number: int
    begins: float  # seconds
    model: int
    head: int
    turns: int


def talks(options: argparse.Namespace, seconds: float) -> Iterator[Talk]:
    """All of one run, in the order in which they begin."""
    chance = random.Random(options.seed)
    weights = [1 / (rank + 1) ** ZIPF for rank in range(options.models)]
    begins, number = 0.0, 0
    for conversation in itertools.count(1):
        if begins >= seconds:
            return
        [model], head = chance.choices(range(options.models), weights), chance.randrange(HEADS)
        fan_out = options.subagents if conversation % FAN_OUT_EACH == 0 else 1
        for _ in range(fan_out):
            turns = 2 if fan_out > 1 else min(1 + int(chance.expovariate(1 / options.turns)), MOST_TURNS)
            yield Talk(number, begins, model, HEADS if fan_out > 1 else head, turns)
            number += 1
        begins += chance.expovariate(options.rate)


def on_paper(options: argparse.Namespace, leaves: str, seconds: float, name: str) -> dict[str, float | str]:
    """A row of such conversations, as `benchmarks.placement` has them."""
    plans = {f"m{number}": plan(number) for number in range(options.models)}
    sizes = {
        model: placement.Size(float(each["memory"].removesuffix("GiB")), each["load_seconds"])
        for model, each in plans.items()
    }
    setting = placement.Setting(sizes, MEMORY, PREFILL_RATE, STEP_SECONDS, leaves, place(options))
    turns = map(_turns_on_paper, talks(options, seconds))
    requests = sorted(itertools.chain(*turns), key=lambda request: request.arrival)
    run = placement.Run(requests, options.neurons, setting, "prefixes")
    waits = sorted(run.waits)
    return {
        "makes room by": f"{leaves}, {name}",
        "prefixes": "yes",
        "requests": len(waits),
        "errors": run.errors,
        "loads": run.loads,
        "load s": run.load_seconds,
        "evictions": run.evictions,
        "hits": run.hits / sum(request.tokens for request in requests),
        "of ideal": run.hits / placement.ideal_hits(requests, options.neurons),
        "first token p50 s": waits[len(waits) // 2],
        "p95": waits[len(waits) * 95 // 100],
        "p99": waits[len(waits) * 99 // 100],
        "fairness": "",
    }


def _turns_on_paper(talk: Talk) -> Iterator[placement.Request]:
    """As `Agent` draws them."""
    chance, model, now = random.Random(talk.number), f"m{talk.model}", talk.begins
    head = Place(f"{model}/{talk.head}".encode(), len(say(random.Random(talk.head), HEAD_WORDS)))
    places, size = [head], head.size
    for turn in range(talk.turns):
        size += len(say(chance, chance.randint(*ASKED_WORDS)))
        chance.choice(range(PROCESSES))
        output = chance.randint(*ANSWERED_TOKENS)
        places = [Place(f"{talk.number}/{turn}".encode(), size), *places]
        yield placement.Request(now, model, Prompt(size, places, head, f"c{talk.number}".encode()), output)
        now += output * STEP_SECONDS + chance.expovariate(1 / PAUSE_SECONDS)
        size += output * placement.BYTES


async def agents(options: argparse.Namespace, endpoints: list[str], policy: str, counts: Counts) -> int:
    """Let them talk; the models that left for others."""
    neurons = [NeuronSettings(name=f"n{number}", endpoint=each) for number, each in enumerate(endpoints)]
    strategy = "lru" if policy == PLACED else policy
    settings = GatewayConfig(neurons=neurons, eviction=EvictionPolicy(strategy=strategy))
    fleets = [Fleet(settings) for _ in range(PROCESSES)]
    for fleet in fleets:
        await fleet.start(patience=60.0)
    few = asyncio.Semaphore(LOADS)

    async def load(client: NeuronClient, model: str) -> None:
        async with few:
            await client.ask(Load(id=0, model=model), START_SECONDS)

    await asyncio.gather(
        *(
            load(neuron.client, model)
            for neuron, loaded in zip(fleets[0].neurons, place(options), strict=True)
            for model in loaded
        )
    )
    loop = asyncio.get_running_loop()
    began, tasks = loop.time(), []
    for talk in talks(options, options.seconds):
        await asyncio.sleep(max(0.0, began + talk.begins / options.speed - loop.time()))
        chance, name, model = random.Random(talk.number), f"c{talk.number}", f"m{talk.model}"
        agent = Agent(fleets, counts, chance, name, model, talk.head, options.speed)
        tasks.append(asyncio.create_task(agent.talk(talk.turns)))
    await asyncio.gather(*tasks)
    evicted = sum(state.evictions for neuron in fleets[0].neurons for state in neuron.own_models)
    for fleet in fleets:
        await fleet.stop()
    return evicted


def plan(number: int, speed: float = 1.0) -> dict[str, Any]:
    """How large and how quick a model is, the same in each run."""
    chance = random.Random(number)
    size, (least, most) = chance.choice(SIZES), PACES
    pace = least * (most / least) ** chance.random()
    return {
        "memory": f"{size}GiB",
        "load_seconds": (BEGIN_SECONDS + size / pace) / speed,
        "step_seconds": STEP_SECONDS / speed,
        "prefill_tokens_per_second": PREFILL_RATE * speed,
    }


def place(options: argparse.Namespace) -> list[list[str]]:
    """The models that each neuron begins with: the most popular first, each where most room is."""
    free, placed = [MEMORY] * options.neurons, [[] for _ in range(options.neurons)]
    every = range(options.models)
    for number in itertools.chain(every, every):  # once more where there is room
        size = random.Random(number).choice(SIZES)
        roomy = [n for n in range(options.neurons) if free[n] >= size and f"m{number}" not in placed[n]]
        if roomy:
            chosen = max(roomy, key=lambda n: free[n])
            free[chosen] -= size
            placed[chosen].append(f"m{number}")
    return placed


_turn = itertools.count()


async def round_robin(fleet: Fleet, model: str, avoid: Any = (), **_: Any) -> tuple[Any, str]:
    """In place of `Fleet.place`: the next host that has the model loaded."""
    ready = [neuron for neuron in fleet.directory.of(model).ready if neuron not in avoid]
    if not ready:
        raise CortexError(Code.MODEL_NOT_FOUND, f"{model} is placed nowhere")
    return ready[next(_turn) % len(ready)], "its turn"


def run(options: argparse.Namespace, folder: Path, policy: str, prefixes: bool) -> dict[str, float | str]:
    """One run on neurons of its own."""
    models = [simulated(f"m{number}", **plan(number, options.speed)) for number in range(options.models)]
    settings = {"cpu": {"memory": f"{MEMORY}GiB"}, "queue": {"limit": 500}}
    settings["memory"] = {"turn_seconds": TURN_SECONDS / options.speed}
    counts = Counts()
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, {HURRY: str(options.speed)}))
        for module, name in ((router, "SOONER_SECONDS"), (router, "SECOND_SECONDS"), (score, "STAY_SECONDS")):
            stack.enter_context(mock.patch.object(module, name, getattr(module, name) / options.speed))
        if not prefixes:
            stack.enter_context(mock.patch.object(prompts, "read", return_value=prompts.NOTHING))
        if policy == PLACED:
            stack.enter_context(mock.patch.object(Fleet, "place_at_once", return_value=None))
            stack.enter_context(mock.patch.object(Fleet, "place", round_robin))
        neurons = [
            stack.enter_context(Neuron(folder / f"{policy}-{prefixes}-{number}", models, **settings))
            for number in range(options.neurons)
        ]
        endpoints = [neuron.endpoint for neuron in neurons]
        evicted = asyncio.run(agents(options, endpoints, policy, counts))
        loaded = [
            name
            for neuron, first in zip(neurons, place(options), strict=True)
            for name in re.findall(r"model loaded model=m(\d+)", neuron.log)[len(first) :]
        ]
    waits = sorted(itertools.chain(*counts.waits.values()))
    return {
        "makes room by": policy,
        "prefixes": "yes" if prefixes else "no",
        "requests": len(waits),
        "errors": sum(counts.errors.values()),
        "loads": len(loaded),
        "load s": sum(plan(int(name))["load_seconds"] for name in loaded),
        "evictions": evicted,
        "hits": counts.cached / max(counts.prompt_tokens, 1),
        "of ideal": counts.cached / max(counts.ideal, 1),
        "first token p50 s": waits[len(waits) // 2],
        "p95": waits[len(waits) * 95 // 100],
        "p99": waits[len(waits) * 99 // 100],
        "fairness": jain([sum(each) / len(each) for each in counts.waits.values()]),
    }


def jain(shares: list[float]) -> float:
    """Jain, Chiu and Hawe's index of fairness (1984): from 1 / n, one has all, to 1, all have the same."""
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


def verdicts(results: list[dict[str, Any]]) -> list[str]:
    """What the table comes to, where it has the rows for that."""
    rows = {(row["makes room by"], row["prefixes"]): row for row in results}
    told = []
    if ("cost", "yes") in rows and ("lru", "yes") in rows:
        shorter = 1 - rows["cost", "yes"]["p95"] / rows["lru", "yes"]["p95"]
        told.append(f"cost against lru: first token p95 {shorter:.0%} shorter (wanted: 25 %)")
    for paper in (PAPER, LONG_PAPER):
        papers = [rows.get((f"{leaves}, {paper}", "yes")) for leaves in ("lru", "cost", BOUND)]
        if all(papers):
            lru, cost, bound = (row["p95"] for row in papers)
            told.append(f"{paper}: cost {1 - cost / lru:.0%} shorter, {BOUND} {1 - bound / lru:.0%}")
    for (policy, prefixes), row in rows.items():
        if prefixes == "yes" and "paper" not in policy:
            told.append(f"prefix routing, {policy}: {row['of ideal']:.0%} of the ideal hits (wanted: 90 %)")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--neurons", type=int, default=8)
    parser.add_argument("--models", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=300.0, help="that conversations begin, in each run")
    parser.add_argument("--rate", type=float, default=0.8, help="conversations a second")
    parser.add_argument("--speed", type=float, default=4.0, help="times as fast as the seconds in the table")
    parser.add_argument("--paper-seconds", type=float, default=4000.0, help="the same on paper, once more")
    parser.add_argument("--turns", type=float, default=1.5, help="of a conversation after the first")
    parser.add_argument("--subagents", type=int, default=20, help="that every twentieth one sends out")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=POLICIES)
    parser.add_argument("--within", type=float, default=1500.0, help="seconds, after which no run begins")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", metavar="PATH", help="write the results there, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began, results = time.monotonic(), []
        plans = [(policy, prefixes) for prefixes in (True, False) for policy in options.policies]
        for policy, prefixes in [*plans, (PLACED, False)]:
            if time.monotonic() - began > options.within:
                print(f"left out, for want of time: {policy}, prefixes: {prefixes}")
                continue
            results.append(run(options, Path(folder), policy, prefixes))
    for seconds, name in ((options.seconds, PAPER), (options.paper_seconds, LONG_PAPER)):
        results += [on_paper(options, leaves, seconds, name) for leaves in (*options.policies, BOUND)]
    table = Table(*results[0], title=f"{options.neurons} neurons, {options.models} models, agents")
    for result in results:
        table.add_row(
            *(f"{value:.3f}" if isinstance(value, float) else str(value) for value in result.values())
        )
    Console(width=160).print(table)
    for verdict in verdicts(results):
        print(verdict)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
