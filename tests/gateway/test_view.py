"""The view of the fleet: neurons that go and come back, and requests that move on in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from gateway.config import EvictionPolicy, GatewayConfig, NeuronSettings
from gateway.fleet.exchange import Exchange
from gateway.fleet.view import Fleet
from ipc.errors import Code, CortexError
from ipc.messages import Generate
from tests.gateway.fake_neuron import FakeNeuron


@asynccontextmanager
async def fleet_of(*neurons: FakeNeuron) -> AsyncIterator[Fleet]:
    """A fleet of those neurons, which are started here."""
    for neuron in neurons:
        neuron.start()
    settings = GatewayConfig(
        eviction=EvictionPolicy(strategy="priority", defrag_after_cycles=7),
        neurons=[NeuronSettings(name=neuron.name, endpoint=neuron.endpoint) for neuron in neurons],
    )
    fleet = Fleet(settings)
    try:
        await fleet.start(patience=10)
        yield fleet
    finally:
        await fleet.stop()
        for neuron in neurons:
            neuron.close()


async def eventually(condition: Callable[[], object]) -> None:
    deadline = asyncio.get_running_loop().time() + 20
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())


def generate(model: str) -> Generate:
    return Generate(id=0, model=model, prompt="one two")


def test_neuron_is_told_the_eviction_policy_and_tells_its_state() -> None:
    async def scenario() -> None:
        neuron = FakeNeuron()
        async with fleet_of(neuron) as fleet:
            assert (neuron.eviction.strategy, neuron.eviction.defrag_after_cycles) == ("priority", 7)
            assert fleet.knows("echo")
            assert not fleet.knows("nothing")

    run(scenario)


def test_lost_neuron_comes_back_by_itself() -> None:
    async def scenario() -> None:
        first = FakeNeuron()
        async with fleet_of(first) as fleet:
            view = fleet.neurons[0]
            exchange = Exchange(fleet, "r")
            exchange.send(generate("stuck"))
            await eventually(lambda: first.work)
            first.close()
            with pytest.raises(CortexError) as caught:
                await exchange.whole()
            exchange.close()
            assert caught.value.code == Code.NEURON_LOST
            await eventually(lambda: not view.healthy)
            with pytest.raises(CortexError) as caught:
                fleet.send(generate("echo"))
            assert caught.value.code == Code.NEURON_LOST
            second = FakeNeuron(first.endpoint)
            second.start()
            await eventually(lambda: view.healthy)
            exchange = Exchange(fleet, "r")
            exchange.send(generate("echo"))
            assert (await exchange.whole()).choices[0].text == "one two"
            exchange.close()
            assert not +view.in_flight
            second.close()

    run(scenario)


def test_request_of_a_neuron_lost_before_it_started_goes_to_another() -> None:
    async def scenario() -> None:
        first, second = FakeNeuron(name="a", models=("queued",)), FakeNeuron(name="b", models=("queued",))
        async with fleet_of(first, second) as fleet:
            exchange = Exchange(fleet, "r")
            exchange.send(generate("queued"))
            await eventually(lambda: first.work or second.work)
            there, other = (first, second) if first.work else (second, first)
            there.close()
            task = asyncio.create_task(exchange.whole())
            await eventually(lambda: other.work)
            assert {view.name: view.in_flight["queued"] for view in fleet.neurons} == {
                there.name: 0,
                other.name: 1,
            }
            task.cancel()
            exchange.close()
            await eventually(lambda: not other.work)

    run(scenario)


def test_request_that_started_is_never_sent_twice() -> None:
    async def scenario() -> None:
        first, second = FakeNeuron(name="a", models=("stuck",)), FakeNeuron(name="b", models=("stuck",))
        async with fleet_of(first, second) as fleet:
            exchange = Exchange(fleet, "r")
            exchange.send(generate("stuck"))
            while exchange.started is None:
                await exchange.take(1.0)
            there, other = (first, second) if first.work else (second, first)
            there.close()
            with pytest.raises(CortexError) as caught:
                await exchange.whole()
            exchange.close()
            assert caught.value.code == Code.NEURON_LOST
            assert not other.served

    run(scenario)


def test_neuron_that_shuts_down_hands_over_what_it_refuses() -> None:
    async def scenario() -> None:
        model = "fails/shutting_down"
        first, second = FakeNeuron(name="a", models=(model,)), FakeNeuron(name="b", models=(model,))
        async with fleet_of(first, second) as fleet:
            exchange = Exchange(fleet, "r")
            exchange.send(generate(model))
            with pytest.raises(CortexError) as caught:
                await exchange.whole()
            exchange.close()
            assert caught.value.code == Code.SHUTTING_DOWN
            assert (len(first.served), len(second.served)) == (1, 1)

    run(scenario)
