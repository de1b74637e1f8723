"""Neurons that would have to load a model, and neurons that refuse."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest
from msgspec.structs import replace

from gateway.config import GatewayConfig, NeuronSettings
from gateway.fleet import quotes
from gateway.fleet.exchange import Exchange
from gateway.fleet.neuron import Neuron
from gateway.fleet.quotes import Quotes
from gateway.fleet.view import Fleet
from gateway.refusals import Refusal
from ipc.client import NeuronClient
from ipc.errors import Code, CortexError
from ipc.messages.conversation import Message
from ipc.messages.replies import Claimed, Failed, Quoted, State
from ipc.messages.requests import (
    AnyRequest,
    Claim,
    CountTokens,
    Detokenize,
    Embed,
    Quote,
    Rerank,
    Tokenize,
    Watch,
)
from ipc.server import Peer
from neuron.claims import Claims
from tests.doubles import stands_for
from tests.gateway.fake_neuron import FakeNeuron
from tests.gateway.fleets import ask, count, eventually, fleet_of, host, quote, run


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


@pytest.mark.parametrize("agreed", ["1", "2", "3", "nobody", None])
def test_all_gateways_load_a_model_where_the_first_of_them_decided(agreed: str | None) -> None:
    async def scenario() -> None:
        verdicts = [quote("fits", 4.0), quote("fits", 9.0), quote("evicts", 1.0, evicts=["idle"])]
        neurons = [
            host(name, verdict, instance=instance, settles=agreed)
            for name, verdict, instance in zip("abc", verdicts, "213", strict=True)
        ]
        async with fleet_of(*neurons) as fleet:
            assert await ask(fleet) == "one two"
        a, b, c = neurons
        served = [each.instance for each in neurons if each.served]
        assert served == [agreed if agreed in ("1", "2", "3") else a.instance]
        assert (a.claims, c.claims) == ([], [])
        told = [(each.equals, each.others) for each in b.claims]  # whose instance is the least
        assert told == ([(["2", "1"], ["3"])] if agreed is not None else [])

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
            with pytest.raises(CortexError, match="the neuron b has not said yet what it has") as caught:
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


def test_what_a_neuron_had_before_it_was_started_again_makes_no_model_unknown() -> None:
    class Searching(FakeNeuron):
        def _on_request(self, peer: Peer, request: AnyRequest) -> None:
            if isinstance(request, Watch):
                self.watched = (peer, request)
            else:
                super()._on_request(peer, request)

    async def scenario() -> None:
        here, first = FakeNeuron(name="here"), FakeNeuron(name="b")
        async with fleet_of(here, first) as fleet:
            view = fleet.neurons[1]
            first.close()
            await eventually(lambda: not view.healthy)
            with pytest.raises(CortexError) as caught:
                await fleet.place("new")
            assert caught.value.code == Code.MODEL_NOT_FOUND
            again = Searching(first.endpoint, name="b", models=("new",), instance="2")
            again.start()
            await eventually(lambda: hasattr(again, "watched"))
            with pytest.raises(CortexError, match="the neuron b has not said yet what it has") as caught:
                await fleet.place("new")
            assert caught.value.code == Code.NEURON_LOST
            super(Searching, again)._on_request(*again.watched)
            await eventually(lambda: view.healthy)
            assert (await fleet.place("new"))[0] is view
            again.close()

    run(scenario)


def test_a_neuron_that_searches_serves_what_it_has_found_and_what_it_had_is_not_unknown() -> None:
    class Searching(FakeNeuron):
        searching = True

        def state(self, request_id: int) -> State:
            return replace(super().state(request_id), searching=self.searching)

    class Busy(FakeNeuron):
        def state(self, request_id: int) -> State:
            said = super().state(request_id)
            return replace(said, models=[replace(m, running=7, bytes_reserved=1 << 30) for m in said.models])

    async def scenario() -> None:
        first = Busy(name="b", models=("echo", "slow", "gone"))
        async with fleet_of(first) as fleet:
            [view] = fleet.neurons
            first.close()
            await eventually(lambda: not view.healthy)
            again = Searching(first.endpoint, name="b", models=("echo",), instance="2")
            again.start()
            await eventually(lambda: view.healthy)
            assert not view.heard
            assert (await fleet.place("echo"))[0] is view
            assert (await fleet.place("slow"))[0] is view  # whose status is not what it was
            assert {name: model.status for name, model in view.models.items()} == {
                "echo": "ready",
                "slow": "unloaded",
                "gone": "unloaded",
            }
            assert (view.models["gone"].running, view.models["gone"].bytes_reserved) == (0, 0)
            with pytest.raises(CortexError) as caught:
                await fleet.place("new")
            assert caught.value.code == Code.NEURON_LOST
            again.searching, again.models = False, ("echo", "slow", "new")
            again._tell()
            await eventually(lambda: view.heard)
            assert set(view.models) == {"echo", "slow", "new"}
            assert (await fleet.place("new"))[0] is view
            with pytest.raises(CortexError) as caught:
                await fleet.place("gone")
            assert caught.value.code == Code.MODEL_NOT_FOUND
            again.close()

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


TOO_LARGE = {"echo": Code.MODEL_TOO_LARGE}


def test_what_fits_on_no_host_says_so_of_each_and_when_to_try_again_of_none() -> None:
    async def scenario() -> None:
        hosts = [host(name, quote("refused", code=Code.MODEL_TOO_LARGE), refuses=TOO_LARGE) for name in "ab"]
        async with fleet_of(*hosts) as fleet:
            with pytest.raises(CortexError, match=r"a: a says so; b: b says so") as caught:
                await ask(fleet)
            assert (caught.value.code, caught.value.retry_after) == (Code.MODEL_TOO_LARGE, None)
            refusal = Refusal.of(caught.value)
            assert (refusal.status, refusal.retry_after) == (404, None)

    run(scenario)


def test_what_fits_on_no_host_but_one_that_is_full_or_away_may_be_tried_again() -> None:
    async def scenario() -> None:
        small = host("a", quote("refused", code=Code.MODEL_TOO_LARGE), refuses=TOO_LARGE)
        full = host("b", quote("waits", 60.0), refuses={"echo": Code.INSUFFICIENT_MEMORY})
        async with fleet_of(small, full) as fleet:
            with pytest.raises(CortexError) as caught:
                await ask(fleet)
            assert caught.value.code == Code.INSUFFICIENT_MEMORY
            assert Refusal.of(caught.value).status == 503
            full.close()
            await eventually(lambda: not fleet.neurons[1].healthy)
            with pytest.raises(CortexError, match="the neuron b, which has the model 'echo'") as caught:
                await ask(fleet)
            assert caught.value.code == Code.NEURON_LOST

    run(scenario)


class WithContext(FakeNeuron):
    """Had memory for so much of one."""

    context = 0

    def state(self, watch: int) -> State:
        state = super().state(watch)
        models = [msgspec.structs.replace(each, context_length=self.context) for each in state.models]
        return msgspec.structs.replace(state, models=models)


def test_a_prompt_that_is_too_long_for_one_host_goes_where_the_context_is_longer() -> None:
    async def scenario() -> None:
        short = {"echo": Code.CONTEXT_LENGTH_EXCEEDED}
        hosts = [WithContext(name=name, models=("echo",), refuses=short) for name in "abc"]
        for each, context in zip(hosts, (100, 100, 900), strict=True):
            each.context = context
        hosts[2].refuses = {}
        async with fleet_of(*hosts) as fleet:
            fleet.neurons[2].in_flight["echo"] = 9  # so the others have less to do
            assert await ask(fleet) == "one two"
            assert sorted(len(each.served) for each in hosts) == [0, 1, 1]
            hosts[2].refuses = short
            with pytest.raises(CortexError, match=r"says so$") as caught:
                await ask(fleet)
            assert caught.value.code == Code.CONTEXT_LENGTH_EXCEEDED

    run(scenario)


@pytest.mark.parametrize(
    ("first", "told", "served"),
    [
        (Code.QUEUE_FULL, r"; refused by a \(queue_full\), b \(context\w+\), d \(queue_full\), e", "abde"),
        (Code.WORKER_DIED, "^d says so$", "abd"),
    ],
)
def test_who_is_not_asked_for_its_short_context_has_not_refused_and_a_death_before_it_still_counts(
    first: Code, told: str, served: str
) -> None:
    async def scenario() -> None:
        hosts = [WithContext(name=name, models=("echo",), refuses={"echo": first}) for name in "abcde"]
        hosts[1].refuses = {"echo": Code.CONTEXT_LENGTH_EXCEEDED}
        for each, context in zip(hosts, (100, 100, 100, 900, 900), strict=True):
            each.context = context
        async with fleet_of(*hosts) as fleet:
            for number, neuron in enumerate(fleet.neurons):
                neuron.in_flight["echo"] = 3 * number  # so this is their order
            with pytest.raises(CortexError, match=told) as caught:
                await ask(fleet)
            assert caught.value.code == first
            assert "".join(each.name for each in hosts if each.served) == served

    run(scenario)


class Full(FakeNeuron):
    """Has more requests than it can serve soon, as it says."""

    def state(self, watch: int) -> State:
        state = super().state(watch)
        busy = {"waiting": 100, "request_seconds": 2.0, "max_sequences": 1}
        models = [msgspec.structs.replace(each, **busy) for each in state.models]
        return msgspec.structs.replace(state, models=models)


class Fickle(FakeNeuron):
    """Quotes other seconds to the next who asks, and settles claims."""

    quoted_seconds: tuple[float, float]
    claimed: Claims

    def _on_request(self, peer: Peer, request: AnyRequest) -> None:
        if isinstance(request, Quote):
            self.quotes = {"echo": quote("fits", self.quoted_seconds[len(self.quoted)])}
        if isinstance(request, Claim):
            settled = self.claimed.settle(request.model, request.equals, request.others)
            peer.send(Claimed(id=request.id, neuron=settled))
            return
        super()._on_request(peer, request)


def test_processes_that_want_one_more_copy_at_a_time_load_it_at_the_same_host() -> None:
    async def scenario() -> None:
        full, claimed = Full(name="full", models=("echo",)), Claims()
        hosts = [
            Fickle(name=name, models=("echo",), status={"echo": "unloaded"}, instance=name) for name in "ab"
        ]
        for each, seconds in zip(hosts, ((1.0, 2.0), (2.0, 1.0)), strict=True):
            each.quoted_seconds, each.claimed = seconds, claimed
        async with fleet_of(full, *hosts) as fleet:
            places = [NeuronSettings(name=each.name, endpoint=each.endpoint) for each in (full, *hosts)]
            other = Fleet(GatewayConfig(neurons=places))
            await other.start(patience=10)
            for each in (fleet, other):  # neither is told by a neuron what the other one asked of it
                assert await ask(each) == "one two"
            await other.stop()
        assert [len(each.served) for each in (full, *hosts)] == [0, 2, 0]

    run(scenario)
