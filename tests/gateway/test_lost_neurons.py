"""Neurons that go and come back, workers that die, and requests that go on elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from gateway.fleet import exchange as exchanges
from gateway.fleet.attempts import RETURNS
from gateway.fleet.exchange import Exchange
from ipc.errors import Code, CortexError
from ipc.messages.replies import Delta, Failed, Progress, Started
from ipc.messages.requests import (
    AnyRequest,
    Generate,
)
from ipc.server import Peer
from tests.gateway.fake_neuron import FakeNeuron
from tests.gateway.fleets import Naming, ask, eventually, fleet_of, generate, run


def test_a_request_waits_for_a_neuron_that_was_lost_a_moment_ago() -> None:
    async def scenario() -> None:
        first = FakeNeuron()
        async with fleet_of(first, lost_wait_seconds=60.0) as fleet:
            [view] = fleet.neurons
            first.close()
            await eventually(lambda: not view.healthy)
            placing = asyncio.create_task(fleet.place("echo"))
            second = FakeNeuron(first.endpoint)
            second.start()
            assert (await placing)[0] is view
            second.close()

    run(scenario)


async def take_all(exchange: Exchange) -> None:
    while exchange.finished is None:
        await exchange.take(1.0)


@pytest.mark.parametrize("returns", [True, False])
def test_a_stream_says_what_it_waits_for_before_any_neuron_has_it(returns: bool) -> None:
    async def scenario() -> None:
        first = FakeNeuron()
        async with fleet_of(first, lost_wait_seconds=60.0) as fleet:
            [view] = fleet.neurons
            first.close()
            await eventually(lambda: not view.healthy)
            exchange = Exchange(fleet, "r")
            await exchange.send(Generate(id=0, model="echo", prompt="one two", stream=True))
            for _ in range(2):
                [told] = await exchange.take(0.01)
                assert (told.stage, told.message) == ("queued", "for a neuron that takes it")
            second = FakeNeuron(first.endpoint)
            if returns:
                second.start()
                await take_all(exchange)
                second.close()
            exchange.close()  # or its client leaves
            await asyncio.sleep(0.05)
            assert (len(second.served), +view.in_flight) == (returns, {})

    run(scenario)


def test_a_stream_that_no_neuron_takes_in_the_end_fails_as_any_other() -> None:
    async def scenario() -> None:
        first = FakeNeuron()
        async with fleet_of(first, lost_wait_seconds=1.0) as fleet:
            first.close()
            await eventually(lambda: not fleet.neurons[0].healthy)
            exchange = Exchange(fleet, "r")
            await exchange.send(Generate(id=0, model="echo", prompt="one two", stream=True))
            with pytest.raises(CortexError) as caught:
                await take_all(exchange)
            assert (caught.value.code, exchange.receipt.status) == (Code.NEURON_LOST, 503)
            exchange.close()

    run(scenario)


class Silent(FakeNeuron):
    """Takes requests, and is never heard of them."""

    def _on_request(self, peer: Peer, request: AnyRequest) -> None:
        if isinstance(request, Generate):
            self.served.append(request)
        else:
            super()._on_request(peer, request)


def test_a_request_under_way_waits_for_its_only_neuron_to_be_back_and_says_so() -> None:
    async def scenario() -> None:
        first = Silent()
        async with fleet_of(first, lost_wait_seconds=60.0) as fleet:
            exchange = Exchange(fleet, "r")
            await exchange.send(generate("echo"))
            await eventually(lambda: first.served)
            first.close()
            told = []
            while not told:
                told = await exchange.take(0.1)
            assert isinstance(told[0], Progress)
            assert told[0].message == "for fake to be back, which was lost"
            second = FakeNeuron(first.endpoint)
            second.start()
            assert (await exchange.whole()).choices[0].text == "one two"
            exchange.close()
            assert not +fleet.neurons[0].in_flight
            second.close()

    run(scenario)


def test_a_request_that_ends_its_only_neuron_again_and_again_is_given_up() -> None:
    async def scenario() -> None:
        first = Silent()
        async with fleet_of(first, lost_wait_seconds=60.0) as fleet:
            exchange = Exchange(fleet, "r")
            await exchange.send(generate("echo"))
            ending = asyncio.create_task(exchange.whole())
            again = [Silent(first.endpoint) for _ in range(RETURNS)]
            for neuron, following in zip([first, *again], [*again, None], strict=True):
                await eventually(partial(getattr, neuron, "served"))
                neuron.close()
                if following is not None:
                    following.start()
            with pytest.raises(CortexError) as caught:
                await ending
            exchange.close()
            assert caught.value.code == Code.NEURON_LOST

    run(scenario)


def test_a_stream_goes_on_at_its_only_neuron_once_that_is_back() -> None:
    async def scenario() -> None:
        first = Naming(models=("slow",))
        async with fleet_of(first, lost_wait_seconds=60.0) as fleet:
            exchange = Exchange(fleet, "r")
            await exchange.send(Generate(id=0, model="slow", prompt="one two three four", stream=True))
            text = ""
            while not text:
                text += "".join(each.text for each in await exchange.take(1.0) if isinstance(each, Delta))
            first.close()
            second = Naming(first.endpoint, models=("slow",))
            second.start()
            while exchange.finished is None:
                text += "".join(each.text for each in await exchange.take(1.0) if isinstance(each, Delta))
            exchange.close()
            assert text == "one two three four"
            assert second.served[0].written[0][0] == 0
            second.close()

    run(scenario)


def test_a_request_that_had_begun_waits_anew_for_the_next_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "LOOK_SECONDS", 0.01)

    async def scenario() -> None:
        neuron = FakeNeuron()
        async with fleet_of(neuron) as fleet:
            exchange = Exchange(fleet, "r")
            exchange.receipt.began -= 10 * fleet.load_wait_seconds
            await exchange.send(generate("stuck"))
            ending = asyncio.create_task(exchange.whole())
            await eventually(lambda: exchange.started)
            neuron.status["stuck"] = "restarting"
            neuron._tell()
            await eventually(lambda: fleet.neurons[0].models["stuck"].status == "restarting")
            await asyncio.wait((ending,), timeout=0.2)
            assert not ending.done()
            fleet.load_wait_seconds = 0.1  # since its worker was lost
            with pytest.raises(CortexError) as caught:
                await ending
            exchange.close()
            assert caught.value.code == Code.MODEL_LOADING

    run(scenario)


def test_lost_neuron_comes_back_by_itself() -> None:
    async def scenario() -> None:
        first = FakeNeuron()
        async with fleet_of(first) as fleet:
            view = fleet.neurons[0]
            exchange = Exchange(fleet, "r")
            await exchange.send(generate("stuck"))
            await eventually(lambda: first.work)
            first.close()
            with pytest.raises(CortexError) as caught:
                await exchange.whole()
            exchange.close()
            assert caught.value.code == Code.NEURON_LOST
            await eventually(lambda: not view.healthy)
            with pytest.raises(CortexError) as caught:
                await fleet.place("echo")
            assert caught.value.code == Code.NEURON_LOST
            second = FakeNeuron(first.endpoint)
            second.start()
            await eventually(lambda: view.healthy)
            exchange = Exchange(fleet, "r")
            await exchange.send(generate("echo"))
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
            await exchange.send(generate("queued"))
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


def test_request_that_started_without_a_token_goes_on_and_is_told_once_that_it_started() -> None:
    async def scenario() -> None:
        first, second = FakeNeuron(name="a", models=("stuck",)), FakeNeuron(name="b", models=("stuck",))
        async with fleet_of(first, second) as fleet:
            exchange = Exchange(fleet, "r")
            await exchange.send(generate("stuck"))
            told = []
            while exchange.started is None:
                told += await exchange.take(1.0)
            there, other = (first, second) if first.work else (second, first)
            there.close()
            while not other.work:
                told += await exchange.take(0.1)
            told += await exchange.take(0.5)
            assert [type(reply) for reply in told] == [Started]
            exchange.close()

    run(scenario)


def test_request_whose_answer_began_is_never_sent_twice() -> None:
    async def scenario() -> None:
        first, second = FakeNeuron(name="a", models=("slow",)), FakeNeuron(name="b", models=("slow",))
        async with fleet_of(first, second) as fleet:
            exchange = Exchange(fleet, "r")
            await exchange.send(Generate(id=0, model="slow", prompt="one two three " * 100, stream=True))
            while not any(isinstance(reply, Delta) for reply in await exchange.take(1.0)):
                pass
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
            await exchange.send(generate(model))
            with pytest.raises(CortexError) as caught:
                await exchange.whole()
            exchange.close()
            assert caught.value.code == Code.SHUTTING_DOWN
            assert (len(first.served), len(second.served)) == (1, 1)

    run(scenario)


def test_a_stream_that_one_host_refuses_to_go_on_with_goes_to_the_next() -> None:
    async def scenario() -> None:
        hosts = [Naming(name=name, models=("slow",)) for name in "abc"]
        async with fleet_of(*hosts) as fleet:
            exchange = Exchange(fleet, "r")
            await exchange.send(Generate(id=0, model="slow", prompt="one two three four", stream=True))
            text = ""
            while not text:
                text += "".join(each.text for each in await exchange.take(1.0) if isinstance(each, Delta))
            there = next(each for each in hosts if each.work)
            second, _ = await fleet.place("slow", [fleet.neurons[hosts.index(there)]], key=b"r")
            full = next(each for each in hosts if each.name == second.name)
            full.refuses["slow"] = Code.QUEUE_FULL
            there.close()
            while exchange.finished is None:
                text += "".join(each.text for each in await exchange.take(1.0) if isinstance(each, Delta))
            exchange.close()
            assert text == "one two three four"
            assert sum(len(each.served) for each in hosts) == 3

    run(scenario)


class Mortal(Naming):
    """One whose worker can die."""

    def lose_worker(self, code: str = Code.WORKER_DIED) -> None:
        for (_, request_id), work in self.work.items():
            work.task.cancel()
            work.peer.send(Failed(id=request_id, code=code, message="it died"))
        self.work.clear()


@asynccontextmanager
async def begun_stream(*hosts: FakeNeuron) -> AsyncIterator[tuple[Exchange, list[str]]]:
    """A stream of four words, once the first one is there; and what was told of it."""
    async with fleet_of(*hosts) as fleet:
        exchange = Exchange(fleet, "r")
        await exchange.send(Generate(id=0, model="slow", prompt="one two three four", stream=True))
        told: list[str] = []
        while not told:
            told += [each.text for each in await exchange.take(1.0) if isinstance(each, Delta)]
        yield exchange, told
        exchange.close()


async def rest(exchange: Exchange) -> list[str]:
    told: list[str] = []
    while exchange.finished is None:
        told += [each.text for each in await exchange.take(1.0) if isinstance(each, Delta)]
    return told


def test_a_stream_whose_model_made_room_for_another_goes_on_at_another_copy() -> None:
    async def scenario() -> None:
        hosts = [Mortal(name=name, models=("slow",)) for name in "ab"]
        async with begun_stream(*hosts) as (exchange, told):
            there, other = hosts if hosts[0].work else hosts[::-1]
            there.lose_worker(Code.INSUFFICIENT_MEMORY)
            assert "".join(told + await rest(exchange)) == "one two three four"
        assert len(there.served) == len(other.served) == 1

    run(scenario)


@pytest.mark.parametrize("code", [Code.QUEUE_FULL, Code.INSUFFICIENT_MEMORY, Code.DRAINING])
def test_a_stream_that_was_given_up_for_a_copy_that_refuses_it_goes_on_where_it_was(code: str) -> None:
    async def scenario() -> None:
        hosts = [Mortal(name=name, models=("slow",)) for name in "ab"]
        async with begun_stream(*hosts) as (exchange, told):
            there, other = hosts if hosts[0].work else hosts[::-1]
            other.refuses["slow"] = code
            there.lose_worker()
            assert "".join(told + await rest(exchange)) == "one two three four"
        assert [each.replicated for each in there.served] == [True, False]
        assert [each.replicated for each in other.served] == [False]
        assert there.served[1].written[0]

    run(scenario)


def test_a_stream_with_which_workers_of_two_neurons_die_returns_to_neither() -> None:
    async def scenario() -> None:
        hosts = [Mortal(name=name, models=("slow",)) for name in "ab"]
        async with begun_stream(*hosts) as (exchange, _):
            there, other = hosts if hosts[0].work else hosts[::-1]
            there.lose_worker()
            while not other.work:
                await exchange.take(0.01)
            other.lose_worker()
            with pytest.raises(CortexError) as caught:
                await rest(exchange)
            assert caught.value.code == Code.WORKER_DIED
        assert [len(each.served) for each in hosts] == [1, 1]

    run(scenario)


def test_a_request_that_kills_workers_is_given_to_two_of_them_and_no_more() -> None:
    async def scenario() -> None:
        hosts = [
            FakeNeuron(name=name, models=("echo",), refuses={"echo": Code.WORKER_DIED}) for name in "abc"
        ]
        async with fleet_of(*hosts) as fleet:
            with pytest.raises(CortexError) as caught:
                await ask(fleet)
            assert caught.value.code == Code.WORKER_DIED
            assert sum(len(each.served) for each in hosts) == 2

    run(scenario)
