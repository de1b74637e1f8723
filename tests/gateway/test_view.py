"""The view of the fleet: neurons that go and come back, and requests that move on in time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import pytest

from gateway.config import EvictionPolicy, GatewayConfig, Listeners, NeuronSettings
from gateway.fleet import exchange as exchanges
from gateway.fleet import quotes
from gateway.fleet.breaker import FAILURES
from gateway.fleet.exchange import RETURNS, Exchange
from gateway.fleet.quotes import Quotes
from gateway.fleet.view import SILENT_SECONDS, Fleet, Neuron
from gateway.telemetry import metrics
from ipc.client import NeuronClient
from ipc.errors import Code, CortexError
from ipc.messages.answers import Usage
from ipc.messages.conversation import Message
from ipc.messages.replies import Delta, Failed, Progress, Quoted, Started, State
from ipc.messages.requests import (
    AnyRequest,
    CountTokens,
    Detokenize,
    Embed,
    Generate,
    Quote,
    Rerank,
    Tokenize,
)
from ipc.messages.state import ModelState
from ipc.server import Peer
from tests.doubles import stands_for
from tests.gateway.fake_neuron import FakeNeuron


@asynccontextmanager
async def fleet_of(*neurons: FakeNeuron, lost_wait_seconds: float = 0.0) -> AsyncIterator[Fleet]:
    """A fleet of those neurons, which are started here."""
    for neuron in neurons:
        neuron.start()
    settings = GatewayConfig(
        gateway=Listeners(lost_wait_seconds=lost_wait_seconds),
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


def count(model: str) -> CountTokens:
    return CountTokens(id=0, model=model, messages=[Message(role="user", content="one two")])


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


def test_state_that_is_not_whole_changes_what_it_names() -> None:
    def state(*models: tuple[str, str], **fields: object) -> State:
        states = [ModelState(id=name, status=status) for name, status in models]
        return State(id=1, neuron="n", instance="1", draining=False, devices=[], models=states, **fields)

    view = Neuron(NeuronSettings(name="n", endpoint="tcp://127.0.0.1:1"), None)

    def known() -> dict[str, str]:
        return {model.id: model.status for model in view.models.values()}

    view._on_state(state(("a", "ready"), ("b", "loading"), ("c", "unloaded")))
    view._on_state(state(("b", "ready"), ("d", "unloaded"), whole=False, gone=["c"]))
    assert known() == {"a": "ready", "b": "ready", "d": "unloaded"}
    view._on_state(state(("d", "ready")))
    assert known() == {"d": "ready"}


@pytest.mark.parametrize(("said", "counted"), [(-5, 0), (1 << 62, 1 << 40)])
def test_a_neuron_that_lies_about_tokens_costs_no_request_its_account(
    said: int, counted: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with fleet_of(FakeNeuron()) as fleet:
            exchange = Exchange(fleet, "r")
            await exchange.send(generate("echo"))
            finished = await exchange.whole()
            exchange.account.finished = msgspec.structs.replace(
                finished, usage=Usage(prompt_tokens=said, completion_tokens=said)
            )
            with caplog.at_level(logging.INFO):
                exchange.close()
                fleet.ended.write()
        (line,) = [text for text in caplog.messages if text.startswith("request ended")]
        assert f"prompt_tokens={counted} completion_tokens={counted}" in line

    run(scenario)


def test_a_request_that_ends_while_the_fleet_stops_or_after_has_its_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        async with fleet_of(FakeNeuron()) as fleet:
            early, late = (Exchange(fleet, request_id) for request_id in ("early", "late"))
            for exchange in (early, late):
                await exchange.send(generate("echo"))
                await exchange.whole()
            disconnect = fleet.neurons[0].client.close

            def close() -> None:
                early.close()
                disconnect()

            monkeypatch.setattr(fleet.neurons[0].client, "close", close)
        late.close()

    run(scenario)
    lines = [text for text in caplog.messages if text.startswith("request ended")]
    assert [line.split()[2] for line in lines] == ["request_id=early", "request_id=late"]


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


class Silent(FakeNeuron):
    """Takes requests, and is never heard of them."""

    def _on_request(self, peer: Peer, request: AnyRequest) -> None:
        if isinstance(request, Generate):
            self.served.append(request)
        else:
            super()._on_request(peer, request)


class Naming(FakeNeuron):
    """Tells the ids of tokens."""

    def _on_request(self, peer: Peer, request: AnyRequest) -> None:
        if isinstance(request, Generate):
            request.return_token_ids = True
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
            exchange.account.began -= 10 * fleet.load_wait_seconds
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


# --- neurons that would have to load it, and neurons that refuse ------------------------------------------


def quote(verdict: str, seconds: float | None = None, **fields) -> Quoted:
    return Quoted(id=0, verdict=verdict, seconds=seconds, **fields)


def host(name: str, said: Quoted | Failed | None, **settings) -> FakeNeuron:
    """A neuron with `echo` unloaded, and what it quotes for it."""
    status = {"echo": "unloaded"}
    return FakeNeuron(name=name, models=("echo",), status=status, quotes={"echo": said}, **settings)


async def ask(fleet: Fleet, model: str = "echo") -> str:
    exchange = Exchange(fleet, "r")
    try:
        await exchange.send(generate(model))
        return (await exchange.whole()).choices[0].text
    finally:
        exchange.close()


def test_model_that_is_loaded_nowhere_goes_where_the_quotes_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotes, "WAIT_SECONDS", 0.5)

    async def scenario() -> None:
        refused = quote("refused", code=Code.INSUFFICIENT_MEMORY, message="18 GiB")
        small, large = host("a", refused), host("b", quote("evicts", 4.0, evicts=["idle"]))
        silent = host("c", None)
        async with fleet_of(small, large, silent) as fleet:
            assert await ask(fleet) == "one two"
            assert [len(each.served) for each in (small, large, silent)] == [0, 1, 0]

    run(scenario)


def test_burst_asks_for_one_quote_and_begins_one_load() -> None:
    async def scenario() -> None:
        first, second = host("a", quote("fits", 4.0)), host("b", quote("fits", 4.0))
        async with fleet_of(first, second) as fleet:
            await asyncio.gather(*(ask(fleet) for _ in range(30)))
            assert sorted((len(first.served), len(second.served))) == [0, 30]
            assert (first.quoted, second.quoted) == (["echo"], ["echo"])

    run(scenario)


@pytest.mark.parametrize("code", [Code.QUEUE_FULL, Code.INSUFFICIENT_MEMORY, Code.DRAINING])
def test_request_that_one_neuron_refuses_goes_to_the_next(code: str) -> None:
    async def scenario() -> None:
        full = FakeNeuron(name="a", models=("echo",), refuses={"echo": code})
        other = host("b", quote("waits", 60.0))
        async with fleet_of(full, other) as fleet:
            assert await ask(fleet) == "one two"
            assert (len(full.served), len(other.served)) == (1, 1)

    run(scenario)


@pytest.mark.parametrize(
    "request_",
    [
        CountTokens(id=0, model="echo", messages=[Message(role="user", content="one two")]),
        Tokenize(id=0, model="echo", prompt="one two"),
        Detokenize(id=0, model="echo", token_ids=[1, 2]),
        Rerank(id=0, model="echo", query="one", input=["two"]),
    ],
    ids=lambda each: type(each).__name__,
)
def test_what_one_reply_answers_goes_to_the_next_as_well(request_: CountTokens | Detokenize | Embed) -> None:
    class Ending(FakeNeuron):
        def _on_request(self, peer: Peer, request: AnyRequest) -> None:
            if isinstance(request, CountTokens | Detokenize | Embed):
                self.served.append(request)
                peer.send(Failed(id=request.id, code=Code.SHUTTING_DOWN, message="it ends"))
            else:
                super()._on_request(peer, request)

    async def scenario() -> None:
        ending, other = Ending(name="a", models=("echo",)), FakeNeuron(name="b", models=("echo",))
        async with fleet_of(ending, other) as fleet:
            fleet.neurons[1].in_flight["echo"] = 9  # so the first one has less to do
            exchange = Exchange(fleet, "r")
            await exchange.send(msgspec.structs.replace(request_))
            while not ending.served and exchange.reply is None:
                await exchange.take(0.1)
            assert await exchange.one() is not None
            exchange.close()

    run(scenario)


def test_a_model_whose_worker_dies_again_and_again_on_a_host_is_left_alone_there() -> None:
    async def scenario() -> None:
        bad = FakeNeuron(name="a", models=("echo",), refuses={"echo": Code.WORKER_DIED})
        good = FakeNeuron(name="b", models=("echo",))
        async with fleet_of(bad, good) as fleet:
            fleet.neurons[1].in_flight["echo"] = 9  # so the first one has less to do
            for _ in range(30):
                assert await ask(fleet) == "one two"
            assert (len(bad.served), len(good.served)) == (FAILURES, 30)
            fleet.neurons[1].lose("the test says so")
            with pytest.raises(CortexError):  # where nobody else can, it is asked all the same
                await ask(fleet)
            assert len(bad.served) == FAILURES + 1

    run(scenario)


def test_what_needs_no_worker_says_nothing_of_how_a_host_serves_a_model() -> None:
    async def scenario() -> None:
        bad = FakeNeuron(name="a", models=("echo",), refuses={"echo": Code.WORKER_DIED})
        async with fleet_of(bad) as fleet:
            neuron = fleet.neurons[0]
            for _ in range(FAILURES):
                with pytest.raises(CortexError):
                    await ask(fleet)
                exchange = Exchange(fleet, "r")
                await exchange.send(count("echo"))
                assert await exchange.one() is not None
                exchange.close()
            assert neuron.is_shaky("echo")

    run(scenario)


def test_a_model_whose_tokens_are_counted_is_not_on_its_way() -> None:
    async def scenario() -> None:
        hosts = [FakeNeuron(name=name, models=("echo",), status={"echo": "unloaded"}) for name in "ab"]
        async with fleet_of(*hosts) as fleet:
            exchange = Exchange(fleet, "r")
            await exchange.send(count("echo"))
            assert fleet.directory.of("echo").coming == []
            assert await exchange.one() is not None
            exchange.close()

    run(scenario)


def test_names_that_clients_and_neurons_make_up_are_kept_nowhere() -> None:
    async def scenario() -> None:
        bad = FakeNeuron(name="a", models=("echo",))
        async with fleet_of(bad) as fleet:
            neuron = fleet.neurons[0]
            for number in range(3):
                name = f"made-up-{number}"
                bad.quotes[name] = Quoted(id=0, verdict="fits")
                bad.refuses[name] = Code.WORKER_DIED
                with pytest.raises(CortexError):
                    await ask(fleet, name)
                bad.refuses["echo"] = name
                with pytest.raises(CortexError):
                    await ask(fleet)
            assert not neuron.in_flight
            assert not neuron._breakers
            told = {
                sample.labels["reason"]
                for metric in metrics._rejections.collect()
                for sample in metric.samples
            }
            assert not [reason for reason in told if reason.startswith("made-up")]

    run(scenario)


def test_a_host_holds_nothing_of_a_model_that_it_has_not_loaded() -> None:
    async def scenario() -> None:
        liar = FakeNeuron(name="a", models=("echo",), status={"echo": "unloaded"})
        async with fleet_of(liar) as fleet:
            neuron = fleet.neurons[0]
            for changes in ({"prefixes": {"echo": {b"x": 7}}}, {"gone": ["echo"], "models": []}):
                neuron._on_state(msgspec.structs.replace(liar.state(1), whole=False, **changes))
            assert not neuron.models
            assert not len(fleet.prefixes)

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

    def lose_worker(self) -> None:
        for (_, request_id), work in self.work.items():
            work.task.cancel()
            work.peer.send(Failed(id=request_id, code=Code.WORKER_DIED, message="it died"))
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


def test_a_host_that_is_silent_for_three_heartbeats_comes_last() -> None:
    async def scenario() -> None:
        hosts = [FakeNeuron(name=name, models=("echo",)) for name in "ab"]
        async with fleet_of(*hosts) as fleet:
            fleet.neurons[0].client._heard -= SILENT_SECONDS + 1
            places = {(await fleet.place("echo", key=bytes([key])))[0].name for key in range(20)}
            assert places == {"b"}

    run(scenario)


def test_quote_that_is_stale_costs_one_refusal() -> None:
    async def scenario() -> None:
        wrong = host("a", quote("fits", 1.0), refuses={"echo": Code.INSUFFICIENT_MEMORY})
        right = host("b", quote("evicts", 9.0))
        async with fleet_of(wrong, right) as fleet:
            assert await ask(fleet) == "one two"
            assert (len(wrong.served), len(right.served)) == (1, 1)

    run(scenario)


def test_refusal_by_all_is_the_one_that_may_pass_and_names_the_others() -> None:
    async def scenario() -> None:
        full = host("a", quote("fits", 1.0), refuses={"echo": Code.QUEUE_FULL})
        torn = host("b", quote("evicts", 1.0), refuses={"echo": Code.MODEL_LOAD_FAILED})
        async with fleet_of(full, torn) as fleet:
            with pytest.raises(CortexError, match=r"a says so; refused by a \(queue_full\), b") as caught:
                await ask(fleet)
            assert (caught.value.code, caught.value.retry_after) == (Code.QUEUE_FULL, 7.0)
            assert not any(+view.in_flight for view in fleet.neurons)

    run(scenario)


def test_that_another_has_not_the_model_does_not_hide_why_its_host_failed() -> None:
    async def scenario() -> None:
        dead = host("a", quote("fits", 1.0), refuses={"echo": Code.WORKER_DIED})
        without = host("b", quote("evicts", 1.0), refuses={"echo": Code.MODEL_NOT_FOUND})
        async with fleet_of(dead, without) as fleet:
            with pytest.raises(CortexError, match=r"a says so; refused by a \(worker_died\), b") as caught:
                await ask(fleet)
            assert caught.value.code == Code.WORKER_DIED

    run(scenario)


def test_a_model_is_not_unknown_while_a_host_was_not_heard_that_may_have_it() -> None:
    async def scenario() -> None:
        without = host("a", quote("fits", 1.0), refuses={"echo": Code.MODEL_NOT_FOUND})
        async with fleet_of(without) as fleet:
            with pytest.raises(CortexError) as caught:
                await ask(fleet)
            assert caught.value.code == Code.MODEL_NOT_FOUND
            fleet.neurons.append(Neuron(NeuronSettings(name="b", endpoint="tcp://127.0.0.1:1"), None))
            with pytest.raises(CortexError, match="the neuron b has not answered yet") as caught:
                await ask(fleet)
            assert caught.value.code == Code.NEURON_LOST

    run(scenario)


def test_a_model_is_found_whose_host_is_heard_while_others_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        first, second = FakeNeuron(name="a", models=("other",)), host("b", quote("fits", 1.0))
        async with fleet_of(first, second) as fleet:
            late = fleet.neurons[1]
            models, late.models = late.models, {}
            fleet.directory.update(late, models)
            ask_for_quotes = fleet._quotes.ask

            async def hear_meanwhile(neurons, model):
                said = await ask_for_quotes(neurons[:1], model)
                late.models = models
                fleet.directory.update(late, models)
                return {"b": CortexError(Code.MODEL_NOT_FOUND, "not yet"), **said}

            monkeypatch.setattr(fleet._quotes, "ask", hear_meanwhile)
            neuron, _ = await fleet.place("echo")
            assert neuron is late

    run(scenario)


def test_model_that_no_state_lists_yet_is_found_by_asking() -> None:
    async def scenario() -> None:
        first, second = FakeNeuron(name="a"), FakeNeuron(name="b", quotes={"new": quote("fits")})
        async with fleet_of(first, second) as fleet:
            neuron, _ = await fleet.place("new")
            assert neuron.name == "b"
            with pytest.raises(CortexError) as caught:
                await fleet.place("nowhere")
            assert caught.value.code == Code.MODEL_NOT_FOUND

    run(scenario)


def test_model_that_only_a_neuron_unheard_of_may_have_is_no_404() -> None:
    async def scenario() -> None:
        here, away = FakeNeuron(name="here"), FakeNeuron(name="away")
        away.start()
        away.close()
        here.start()
        places = [NeuronSettings(name=each.name, endpoint=each.endpoint) for each in (here, away)]
        fleet = Fleet(GatewayConfig(neurons=places))
        await fleet.start(patience=0.5)
        with pytest.raises(CortexError, match="the neuron away") as caught:
            await fleet.place("its-own")
        assert (caught.value.code, caught.value.retry_after is not None) == (Code.NEURON_LOST, True)
        await fleet.stop()
        here.close()

    run(scenario)


@stands_for(quotes.Asked)
class Quoting(NeuronClient):
    """A neuron whose quote comes when `said` is set."""

    def __init__(self, name: str) -> None:
        super().__init__(f"inproc://{name}")
        self.name, self.client = name, self
        self.said: asyncio.Future[Quoted] = asyncio.get_running_loop().create_future()

    async def ask(self, request: Quote, within: float) -> Quoted:
        said = await self.said
        for _ in range(5):  # it is read, and decoded
            await asyncio.sleep(0)
        return said


def test_process_that_was_late_itself_takes_no_neuron_for_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotes, "WAIT_SECONDS", 0.5)

    async def scenario() -> None:
        neurons = [Quoting(name) for name in "abc"]
        asked = Quotes()
        asyncio.get_running_loop().call_later(0.05, time.sleep, 0.6)
        for neuron in neurons:
            asyncio.get_running_loop().call_later(0.1, neuron.said.set_result, quote("fits"))
        assert set(await asked.ask(neurons, "m")) == {"a", "b", "c"}
        asked.close()

    run(scenario)


def test_where_a_model_comes_already_nobody_else_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotes, "WAIT_SECONDS", 1e6)

    async def scenario() -> None:
        silent, coming = Quoting("a"), Quoting("b")
        asked = Quotes()
        coming.said.set_result(quote("loading", 4.0))
        async with asyncio.timeout(30.0):
            assert set(await asked.ask([silent, coming], "m")) == {"b"}
        asked.close()

    run(scenario)


def test_quotes_are_bounded_in_number() -> None:
    async def scenario() -> None:
        async with fleet_of(FakeNeuron(name="a"), FakeNeuron(name="b")) as fleet:
            names = [f"nowhere-{number}" for number in range(quotes.REMEMBERED)]
            await asyncio.gather(*(fleet.place(name) for name in names), return_exceptions=True)
            assert len(fleet._quotes._asked) <= quotes.REMEMBERED

    run(scenario)
