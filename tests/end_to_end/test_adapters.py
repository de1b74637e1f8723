"""An adapter is asked for like a model: `base:adapter`, in every list, at any gateway."""

from __future__ import annotations

import asyncio
import json

import pytest
import torch
from safetensors.torch import save_file

from gateway.config import GatewayConfig, NeuronSettings
from gateway.fleet import listing
from gateway.fleet.exchange import Exchange
from gateway.fleet.view import Fleet
from gateway.telemetry.exposition import neuron_metrics
from ipc.errors import Code, CortexError
from ipc.messages import Generate, Sampling
from neuron.models.catalogue import DEMO_FOLDER
from tests.neuron.harness import Neuron
from workers.checkpoints.card import read_card


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    """A neuron with the demo model and an adapter of it."""
    folder = tmp_path_factory.mktemp("adapters")
    adapter = folder / "pirate"
    adapter.mkdir()
    rows, columns = read_card(DEMO_FOLDER).tensors["model.layers.0.mlp.down_proj.weight"].shape
    generator = torch.Generator().manual_seed(3)
    name = "base_model.model.model.layers.0.mlp.down_proj"
    weights = {
        f"{name}.lora_A.weight": torch.randn(2, columns, generator=generator),
        f"{name}.lora_B.weight": torch.randn(rows, 2, generator=generator),
    }
    save_file(weights, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 2}))
    model = {"id": "demo", "adapters": {"pirate": str(adapter)}, "context_length": 2048, "max_sequences": 4}
    with Neuron(folder / "neuron", [model], only_configured=True) as neuron:
        yield neuron.endpoint


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
    assert listed == [("demo", None), ("demo:pirate", "demo")]
    assert counted == {"demo"}


def test_an_adapter_that_is_not_there_is_not_found_and_the_others_are_named(endpoint):
    async def scenario(fleet):
        await ask(fleet, "demo:parrot")

    with pytest.raises(CortexError) as caught:
        with_fleet(endpoint, scenario)
    assert caught.value.code == Code.MODEL_NOT_FOUND
    assert "demo:pirate" in caught.value.message
