"""Agents and a fleet: real neurons with simulated models, through the gateway's own view and exchanges.

    python -m benchmarks.agents [--neurons 8] [--models 40] [--seconds 120] [--rate 1.0] [--json PATH]

Conversations begin at `--rate` a second, with a model as Zipf has it and one of a few sets of instructions;
each turn takes the answer up into the next prompt, and every fifth conversation sends out twenty subagents at
once. A neuron has room for four models, and begins with the `--everywhere` most popular ones. It is run for
each way to make room, with and without a look at what is cached.

The first token's time is the machine's as well: a load starts a process. Loads, evictions, errors and hits
are counted. "Of ideal" is against what one host with all the memory would have: all that the turn before had,
or, of a first turn, the instructions, where an earlier conversation had the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from rich.console import Console
from rich.table import Table

from gateway.config import EvictionPolicy, GatewayConfig, NeuronSettings
from gateway.fleet import prompts
from gateway.fleet.exchange import Exchange
from gateway.fleet.view import Fleet
from ipc.errors import CortexError
from ipc.messages import Delta, Generate, Load, Message, Sampling
from ipc.worker_messages import PAGE_SIZE
from tests.neuron.harness import Neuron, simulated

ROOM = 4  # models that fit on one host
PROCESSES = 2  # gateways, as far as views go
HEADS = 4  # sets of instructions
POLICIES = ("lru", "priority", "cost")
TEXT = "open the file and read what stands there then write a test for each promise that it makes"


@dataclass(slots=True)
class Counts:
    """Of one run."""

    waits: list[float] = field(default_factory=list)  # seconds to the first token
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

    async def talk(self, turns: int) -> None:
        instructions = say(random.Random(self.head), 600)
        messages = [Message(role="system", content=instructions)]
        known = 0  # tokens that were computed for the turn before
        for turn in range(turns):
            messages.append(Message(role="user", content=say(self.chance, self.chance.randint(50, 300))))
            answer = await self._ask(messages, turn, known)
            if answer is None:
                return
            text, known = answer
            messages.append(Message(role="assistant", content=text))
            await asyncio.sleep(self.chance.expovariate(1.0))

    async def _ask(self, messages: list[Message], turn: int, known: int) -> tuple[str, int] | None:
        """(answer, tokens that are computed now); None: it failed."""
        exchange = Exchange(self.chance.choice(self.fleets), f"{self.name}-{turn}")
        sampling = Sampling(max_tokens=self.chance.randint(10, 60), ignore_eos=True)
        request = Generate(
            id=0, model=self.model, messages=messages, sampling=sampling, stream=True, session=self.name
        )
        text, first, began = "", 0.0, time.monotonic()
        try:
            await exchange.send(request)
            while exchange.finished is None:
                for reply in await exchange.take(60.0):
                    if isinstance(reply, Delta):
                        first = first or time.monotonic() - began
                        text += reply.text
        except CortexError as error:
            self.counts.errors[error.code] += 1
            return None
        finally:
            exchange.close()
        usage = exchange.finished.usage
        self.counts.waits.append(first)
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


async def agents(options: argparse.Namespace, endpoints: list[str], policy: str, counts: Counts) -> int:
    """Let them talk; the models that left for others."""
    neurons = [NeuronSettings(name=f"n{number}", endpoint=each) for number, each in enumerate(endpoints)]
    settings = GatewayConfig(neurons=neurons, eviction=EvictionPolicy(strategy=policy))
    fleets = [Fleet(settings) for _ in range(PROCESSES)]
    for fleet in fleets:
        await fleet.start(patience=60.0)
    for neuron in fleets[0].neurons:
        for number in range(options.everywhere):
            await neuron.client.ask(Load(id=0, model=f"m{number}"), 60.0)
    chance = random.Random(options.seed)
    models = [f"m{number}" for number in range(options.models)]
    weights = [1 / (rank + 1) ** 1.1 for rank in range(len(models))]
    loop = asyncio.get_running_loop()
    end, tasks, number = loop.time() + options.seconds, [], 0
    while loop.time() < end:
        model, head = chance.choices(models, weights)[0], chance.randrange(HEADS)
        fan_out = 20 if number % 5 == 4 else 1
        for _ in range(fan_out):
            agent = Agent(
                fleets, counts, random.Random(number), f"c{number}", model, HEADS if fan_out > 1 else head
            )
            turns = 2 if fan_out > 1 else 1 + int(chance.expovariate(1 / 6))
            tasks.append(asyncio.create_task(agent.talk(turns)))
            number += 1
        await asyncio.sleep(chance.expovariate(options.rate))
    await asyncio.gather(*tasks)
    evicted = sum(state.evictions for neuron in fleets[0].neurons for state in neuron.own_models)
    for fleet in fleets:
        await fleet.stop()
    return evicted


def run(options: argparse.Namespace, folder: Path, policy: str, prefixes: bool) -> dict[str, float | str]:
    """One run on neurons of its own."""
    plan = {
        "memory": "1GiB",
        "load_seconds": 0.5,
        "step_seconds": 0.005,
        "prefill_tokens_per_second": 10_000.0,
    }
    models = [simulated(f"m{number}", **plan) for number in range(options.models)]
    settings = {"cpu": {"memory": f"{ROOM}.5GiB"}, "queue": {"limit": 500}}
    counts = Counts()
    with ExitStack() as stack:
        if not prefixes:
            stack.enter_context(mock.patch.object(prompts, "read", return_value=prompts.NOTHING))
        neurons = [
            stack.enter_context(Neuron(folder / f"{policy}-{prefixes}-{number}", models, **settings))
            for number in range(options.neurons)
        ]
        endpoints = [neuron.endpoint for neuron in neurons]
        evicted = asyncio.run(agents(options, endpoints, policy, counts))
        loads = sum(neuron.log.count("model loaded model=") for neuron in neurons)
    waits = sorted(counts.waits)
    return {
        "makes room by": policy,
        "prefixes": "yes" if prefixes else "no",
        "requests": len(waits),
        "errors": sum(counts.errors.values()),
        "loads": loads,
        "evictions": evicted,
        "hits": counts.cached / max(counts.prompt_tokens, 1),
        "of ideal": counts.cached / max(counts.ideal, 1),
        "first token p50 s": waits[len(waits) // 2],
        "p95": waits[len(waits) * 95 // 100],
        "p99": waits[len(waits) * 99 // 100],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--neurons", type=int, default=8)
    parser.add_argument("--models", type=int, default=40)
    parser.add_argument("--everywhere", type=int, default=2, help="models that each neuron begins with")
    parser.add_argument("--seconds", type=float, default=120.0, help="that conversations begin, in each run")
    parser.add_argument("--rate", type=float, default=1.0, help="conversations a second")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=POLICIES)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", metavar="PATH", help="write the results there, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = [
            run(options, Path(folder), policy, prefixes)
            for policy in options.policies
            for prefixes in (True, False)
        ]
    table = Table(*results[0], title=f"{options.neurons} neurons, {options.models} models, agents")
    for result in results:
        table.add_row(
            *(f"{value:.3f}" if isinstance(value, float) else str(value) for value in result.values())
        )
    Console(width=140).print(table)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
