"""Two real neurons behind one gateway's router: a request goes where it can be served."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.config import GatewayConfig, NeuronSettings
from gateway.fleet.exchange import Exchange
from gateway.fleet.view import Fleet
from ipc.errors import Code, CortexError
from ipc.messages.answers import Usage
from ipc.messages.conversation import Message
from ipc.messages.requests import Generate, Load
from ipc.messages.sampling import Sampling
from ipc.worker_messages import PAGE_SIZE
from tests.neuron.harness import Neuron, simulated

NUMBERS = itertools.count()
MODELS = [
    simulated("idle", memory="2GiB"),
    simulated("large", memory="2GiB"),
    simulated("small", memory="100MiB", step_seconds=0.002),
    simulated("huge", memory="64GiB"),
]


def with_two_hosts(folder: Path, scenario: Callable[..., Awaitable[None]], fleets: int = 1) -> None:
    """Run `scenario` with a host "a" of 1 GiB and a host "b" of 3 GiB, as that many gateways see them."""

    async def main(endpoints: list[str]) -> None:
        places = [
            NeuronSettings(name=name, endpoint=each) for name, each in zip("ab", endpoints, strict=True)
        ]
        views = [Fleet(GatewayConfig(neurons=places)) for _ in range(fleets)]
        for fleet in views:
            await fleet.start(patience=20.0)
        try:
            await scenario(*views)
        finally:
            for fleet in views:
                await fleet.stop()

    queue = {"limit": 8, "account_limit": 8}
    with (
        Neuron(folder / "a", MODELS, cpu={"memory": "1GiB"}, queue=queue) as a,
        Neuron(folder / "b", MODELS, cpu={"memory": "3GiB"}, queue=queue) as b,
    ):
        asyncio.run(main([a.endpoint, b.endpoint]))


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError


async def ask(fleet: Fleet, model: str, tokens: int = 2) -> str:
    """The name of the neuron that served it."""
    name, _ = await served(fleet, model, tokens, prompt=[1])
    return name


async def served(fleet: Fleet, model: str, tokens: int = 2, **fields: Any) -> tuple[str, Usage]:
    """The name of the neuron that served a request, and what it came to."""
    exchange = Exchange(fleet, f"r{next(NUMBERS)}")
    sampling = Sampling(max_tokens=tokens, ignore_eos=True)
    try:
        await exchange.send(Generate(id=0, model=model, sampling=sampling, **fields))
        finished = await exchange.whole()
        return exchange._neuron.name, finished.usage
    finally:
        exchange.close()


def test_a_model_goes_where_it_fits_and_an_overflow_to_the_next_host(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        # "a" is empty and too small; then "b" has to evict for it, and still "a" is too small.
        assert await ask(fleet, "idle") == "b"
        assert await ask(fleet, "large") == "b"
        # One host loads it for the first; a burst that its queue cannot hold goes on to the other.
        first = await ask(fleet, "small")
        served = Counter(await asyncio.gather(*(ask(fleet, "small", 200) for _ in range(60))))
        assert served[first] > 0
        assert served.total() == 60
        assert len(served) == 2
        with pytest.raises(CortexError, match=r"no neuron has the memory") as caught:
            await ask(fleet, "huge")
        assert caught.value.code == Code.MODEL_TOO_LARGE
        assert caught.value.details.keys() == {"a", "b"}

    with_two_hosts(tmp_path, scenario)


def test_a_conversation_goes_on_where_its_beginning_is_whichever_process_takes_its_next_turn(
    tmp_path: Path,
) -> None:
    def turns(name: str, count: int) -> list[Message]:
        first = Message(role="user", content=f"{name} " * 100)
        return [first, *(Message(role="user", content=f"{name} and then?") for _ in range(count))]

    async def scenario(*fleets: Fleet) -> None:
        for neuron in fleets[0].neurons:
            await neuron.client.ask(Load(id=0, model="small"), 30.0)
        await until(lambda: all(len(fleet.directory.of("small").ready) == 2 for fleet in fleets))
        names = [f"conversation-{number}" for number in range(8)]
        began = {name: await served(fleets[0], "small", messages=turns(name, 0)) for name in names}
        assert {host for host, _ in began.values()} == {"a", "b"}
        await until(lambda: len(fleets[1].prefixes) == len(names))
        for name, (host, usage) in began.items():
            there, now = await served(fleets[1], "small", messages=turns(name, 1))
            assert (there, now.cached_tokens) == (host, usage.prompt_tokens // PAGE_SIZE * PAGE_SIZE)

    with_two_hosts(tmp_path, scenario, fleets=2)
