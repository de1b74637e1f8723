"""An adapter is asked for like a model: `base:adapter`, in every list, at any gateway."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from gateway.config import GatewayConfig, NeuronSettings
from gateway.fleet import listing
from gateway.fleet.exchange import Exchange
from gateway.fleet.view import Fleet
from gateway.telemetry.exposition import neuron_metrics
from ipc.errors import Code, CortexError
from ipc.messages.requests import Generate, Health, Load
from ipc.messages.sampling import Sampling
from tests.neuron.demo_adapters import write_adapter
from tests.neuron.harness import PATIENCE, Neuron

NAMES = ("pirate", "poet", "pilot", "broken")


@pytest.fixture(scope="module")
def neuron(tmp_path_factory):
    """A neuron with the demo model and adapters of it, of which two are in memory at once; one changes."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(NAMES):
        write_adapter(folder / name, seed)
    model = {
        "id": "demo",
        "adapters": {name: str(folder / name) for name in NAMES},
        "max_adapters": 2,
        "context_length": 2048,
        "max_sequences": 4,
        "dtype": "float32",  # in which a batch does not decide what is the most likely token
    }
    with Neuron(folder / "neuron", [model], only_configured=True, memory={"turn_seconds": 0.2}) as neuron:
        with neuron.client() as client:
            client.ask(Load(id=0, model="demo"), 3 * PATIENCE)  # processes start slowly on a busy machine
        (folder / "broken" / "adapter_model.safetensors").write_bytes(b"")
        yield neuron


@pytest.fixture(scope="module")
def endpoint(neuron):
    return neuron.endpoint


def with_fleet(endpoint, scenario):
    async def main():
        fleet = Fleet(GatewayConfig(neurons=[NeuronSettings(name="a", endpoint=endpoint)]))
        await fleet.start(patience=20.0)
        try:
            return await scenario(fleet)
        finally:
            await fleet.stop()

    return asyncio.run(main())


async def ask(fleet, model):
    exchange = Exchange(fleet, "r")
    try:
        sampling = Sampling(max_tokens=12, temperature=0.0, ignore_eos=True)
        await exchange.send(Generate(id=0, model=model, prompt="What is a ring?", sampling=sampling))
        return (await exchange.whole()).choices[0].text
    finally:
        exchange.close()


def test_base_and_adapter_are_asked_for_by_name_and_answer_otherwise(endpoint):
    async def scenario(fleet):
        return [await ask(fleet, model) for model in ("demo", "demo:pirate", "demo", "demo:pirate")]

    base, adapted, base_again, adapted_again = with_fleet(endpoint, scenario)
    assert (base, adapted) == (base_again, adapted_again)
    assert base != adapted


def test_an_adapter_is_listed_beside_its_base_and_counted_once(endpoint):
    async def scenario(fleet):
        listed = [(each.id, each.base) for each in listing.every(fleet)]
        samples = [sample for family in neuron_metrics(fleet.neurons) for sample in family.samples]
        return listed, {sample.labels["model"] for sample in samples if "model" in sample.labels}

    listed, counted = with_fleet(endpoint, scenario)
    assert listed == [("demo", None), *sorted((f"demo:{name}", "demo") for name in NAMES)]
    assert counted == {"demo"}


def test_an_adapter_that_is_not_there_is_not_found_and_the_others_are_named(endpoint):
    async def scenario(fleet):
        await ask(fleet, "demo:parrot")

    with pytest.raises(CortexError) as caught:
        with_fleet(endpoint, scenario)
    assert caught.value.code == Code.MODEL_NOT_FOUND
    assert "it has broken, pilot, pirate, poet" in caught.value.message


def health(neuron):
    with neuron.client() as client:
        return client.ask(Health(id=0), PATIENCE)


def test_of_three_adapters_wanted_at_once_two_are_in_memory_and_all_answer(neuron):
    names = NAMES[:3]

    async def scenario(fleet):
        alone = [await ask(fleet, f"demo:{name}") for name in names]
        base = await ask(fleet, "demo")
        crowd = [f"demo:{name}" for name in names] * 3 + ["demo"] * 3
        return alone, base, await asyncio.gather(*(ask(fleet, model) for model in crowd))

    alone, base, together = with_fleet(neuron.endpoint, scenario)
    assert len({*alone, base}) == 4
    assert together == alone * 3 + [base] * 3
    assert len(health(neuron).models[0].adapters_loaded) == 2


def test_an_adapter_that_cannot_be_read_fails_its_own_requests_only(neuron):
    async def scenario(fleet):
        asked = [ask(fleet, model) for model in ("demo", "demo:broken", "demo:poet")]
        return await asyncio.gather(*asked, return_exceptions=True)

    base, broken, poet = with_fleet(neuron.endpoint, scenario)
    assert broken.code == Code.MODEL_LOAD_FAILED
    assert "broken/adapter_model.safetensors" in broken.message
    assert isinstance(base, str)
    assert isinstance(poet, str)


def test_after_its_worker_died_an_adapter_is_read_again(neuron):
    async def scenario(fleet):
        before = await ask(fleet, "demo:pirate")
        [rank] = (await asyncio.to_thread(health, neuron)).ranks["demo"]
        os.kill(rank.pid, signal.SIGKILL)
        return before, await ask(fleet, "demo:pirate")

    before, after = with_fleet(neuron.endpoint, scenario)
    assert before == after
    assert health(neuron).models[0].adapters_loaded == ["pirate"]
