"""Two real neurons behind one gateway's router: a request goes where it can be served."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gateway.config import GatewayConfig, NeuronSettings
from gateway.fleet.exchange import Exchange
from gateway.fleet.view import Fleet
from ipc.errors import Code, CortexError
from ipc.messages import Generate, Sampling
from tests.neuron.harness import Neuron, simulated

MODELS = [
    simulated("idle", memory="2GiB"),
    simulated("large", memory="2GiB"),
    simulated("small", memory="100MiB", step_seconds=0.002),
    simulated("huge", memory="64GiB"),
]


def with_two_hosts(folder: Path, scenario: Callable[[Fleet], Awaitable[None]]) -> None:
    """Run `scenario` with a host "a" of 1 GiB and a host "b" of 3 GiB."""

    async def main(endpoints: list[str]) -> None:
        places = [
            NeuronSettings(name=name, endpoint=each) for name, each in zip("ab", endpoints, strict=True)
        ]
        fleet = Fleet(GatewayConfig(neurons=places))
        await fleet.start(patience=20.0)
        try:
            await scenario(fleet)
        finally:
            await fleet.stop()

    queue = {"limit": 8}
    with (
        Neuron(folder / "a", MODELS, cpu={"memory": "1GiB"}, queue=queue) as a,
        Neuron(folder / "b", MODELS, cpu={"memory": "3GiB"}, queue=queue) as b,
    ):
        asyncio.run(main([a.endpoint, b.endpoint]))


async def ask(fleet: Fleet, model: str, tokens: int = 2) -> str:
    """The name of the neuron that served it."""
    exchange = Exchange(fleet, "r")
    sampling = Sampling(max_tokens=tokens, ignore_eos=True)
    try:
        await exchange.send(Generate(id=0, model=model, prompt=[1], sampling=sampling))
        await exchange.whole()
        return exchange._neuron.name
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
        with pytest.raises(CortexError, match=r"refused by ([ab] \(insufficient_memory\)(, )?){2}") as caught:
            await ask(fleet, "huge")
        assert caught.value.code == Code.INSUFFICIENT_MEMORY

    with_two_hosts(tmp_path, scenario)
