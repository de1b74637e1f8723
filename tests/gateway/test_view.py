"""What a gateway process knows of neurons, and what it makes of what they say."""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial
from math import inf, nan
from pathlib import Path

import msgspec
import pytest

from gateway import config, successors
from gateway.config import NeuronSettings
from gateway.fleet import listing
from gateway.fleet.breaker import FAILURES
from gateway.fleet.exchange import Exchange
from gateway.fleet.neuron import SILENT_SECONDS, Neuron
from gateway.fleet.prefixes import MOST
from gateway.telemetry import metrics
from ipc.errors import Code, CortexError
from ipc.messages.answers import Choice, Timings, Usage
from ipc.messages.replies import Embeddings, Finished, Quoted, Ranked, Reply, State, VectorPiece
from ipc.messages.requests import Embed, Eviction, Rerank, Strategy
from ipc.messages.state import Device, ModelState
from tests.gateway import fake_neuron
from tests.gateway.fake_neuron import FakeNeuron
from tests.gateway.fleets import ask, count, eventually, fleet_of, generate, run


def test_neuron_is_told_the_eviction_policy_and_tells_its_state() -> None:
    async def scenario() -> None:
        neuron = FakeNeuron()
        async with fleet_of(neuron) as fleet:
            assert (neuron.eviction.strategy, neuron.eviction.defrag_after_cycles) == ("priority", 7)
            assert fleet.knows("echo")
            assert not fleet.knows("nothing")

    run(scenario)


def test_a_model_that_is_no_longer_served_ends_what_it_has_begun_and_is_listed_for_nobody() -> None:
    async def scenario() -> None:
        neuron, other = FakeNeuron(name="a", models=("echo", "slow")), FakeNeuron(name="b", models=("echo",))
        async with fleet_of(neuron, other) as fleet:
            running = Exchange(fleet, "r")
            try:
                await running.send(generate("slow"))
                neuron.retired = {"echo", "slow"}
                neuron._tell()
                await eventually(lambda: fleet.neurons[0].models["echo"].retired)
                (listed,) = listing.every(fleet)
                assert (listed.id, [host.name for host, _ in listed.places]) == ("echo", ["b"])
                with pytest.raises(CortexError, match=r"'slow' is no longer served; there is echo$") as late:
                    await ask(fleet, "slow")
                assert (late.value.code, late.value.param) == (Code.MODEL_NOT_FOUND, "model")
                assert neuron.work  # it still runs
                assert (await running.whole()).choices[0].text == "one two"
                neuron.retired = set()  # its entry is back
                neuron._tell()
                await eventually(lambda: not fleet.neurons[0].models["echo"].retired)
                assert await ask(fleet, "slow") == "one two"
            finally:
                running.close()

    run(scenario)


def test_a_process_that_is_replaced_tells_no_neuron_its_way_to_make_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would be that of before, and the neuron takes what a gateway said last."""
    monkeypatch.setattr(successors, "am_replaced", lambda: True)

    async def scenario() -> None:
        neuron = FakeNeuron()
        async with fleet_of(neuron) as fleet:
            assert fleet.knows("echo")
            assert neuron.eviction is None

    run(scenario)


def test_who_is_replaced_is_known_in_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(successors, "_said", bytearray(9))
    monkeypatch.setattr(successors, "_own", None)
    successors.replace(2)
    assert not successors.am_replaced()  # the master
    for age, replaced in ((1, True), (2, True), (3, False)):
        successors.serve_as(age)
        assert (successors.am_replaced(), successors.do_all_end()) == (replaced, False)
    successors.end_all()
    assert successors.do_all_end()


@pytest.mark.parametrize("other", [None, "priority", "lru"])
def test_a_gateway_says_in_one_line_that_another_ones_eviction_counts(
    other: Strategy | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        counts = Eviction(strategy=other, defrag_after_cycles=7, origin="b:/c.yaml") if other else None
        async with fleet_of(neuron := FakeNeuron(other_eviction=counts)) as fleet:
            assert neuron.eviction.origin.endswith(":no file")
            neuron.server.close()
            await eventually(lambda: not fleet.neurons[0].healthy)
            neuron.start()
            await eventually(lambda: fleet.neurons[0].healthy)
        lines = [text for text in caplog.messages if text.startswith("eviction of another gateway counts")]
        assert len(lines) == (other == "lru")
        assert all("ours=priority 0 s 7 loads counts=lru 0 s 7 loads origin=b:/c.yaml" in x for x in lines)

    run(scenario)


def test_a_gateway_hears_that_anothers_eviction_counts_by_now(caplog: pytest.LogCaptureFixture) -> None:
    def lines() -> list[str]:
        return [text for text in caplog.messages if text.startswith("eviction of another gateway counts")]

    async def scenario() -> None:
        async with fleet_of(neuron := FakeNeuron()):
            assert not lines()
            neuron.other_eviction = Eviction(strategy="lru", defrag_after_cycles=7, origin="b:/c.yaml")
            for _ in range(2):
                neuron._tell()
                await eventually(lines)
            assert len(lines()) == 1

    run(scenario)


def test_a_neuron_is_told_of_which_file_a_policy_is_and_its_date_as_it_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CORTEX_CONFIG", raising=False)
    told: list[Eviction] = []

    async def scenario(read: dict[str, object]) -> None:
        async with fleet_of(neuron := FakeNeuron(), **read):
            told.append(neuron.eviction)

    for name in ("one", "other"):  # gateways of one host, each started in its own folder
        (path := tmp_path / name / "cortex.yaml").parent.mkdir()
        path.write_text("eviction: {strategy: lru}")
        os.utime(path, (50, 50))
        monkeypatch.chdir(path.parent)
        read = msgspec.structs.asdict(config.load())
        os.utime(path, (90, 90))  # written again, which a process that starts now has not read
        del read["neurons"]
        run(partial(scenario, read))
    assert [each.origin for each in told] == [
        f"{socket.gethostname()}:{tmp_path / name / 'cortex.yaml'}" for name in ("one", "other")
    ]
    assert [(each.strategy, each.modified) for each in told] == [("lru", 50.0)] * 2


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


@pytest.mark.parametrize("said", [-5, 1 << 62])
def test_a_neuron_that_lies_about_tokens_costs_a_request_its_answer_and_nobody_his_account(
    said: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_neuron, "Usage", lambda **counts: Usage(prompt_tokens=said))

    async def scenario() -> None:
        async with fleet_of(FakeNeuron()) as fleet:
            exchange = Exchange(fleet, "r")
            await exchange.send(generate("echo"))
            with pytest.raises(CortexError, match=r"cannot be read: finished: .*prompt_tokens"):
                await exchange.whole()
            with caplog.at_level(logging.INFO):
                exchange.close()
                fleet.ended.write()
        (line,) = [text for text in caplog.messages if text.startswith("request ended")]
        assert "prompt_tokens=2 completion_tokens=0" in line  # as it had said before

    run(scenario)


def vectors(count: int) -> list[Reply]:
    return [Embeddings(id=1, vectors=[b""] * count, prompt_tokens=2)]


def vectors_in_pieces(count: int) -> list[Reply]:
    piece = VectorPiece(id=1, numbers=[*range(count)], vectors=[b""] * (count + 1))
    return [piece, Embeddings(id=1, vectors=[], prompt_tokens=2)]


def scores(count: int) -> list[Reply]:
    return [Ranked(id=1, scores=[0.5] * count, prompt_tokens=2)]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("replies", [vectors, vectors_in_pieces, scores])
def test_other_results_than_there_were_inputs_fail_their_request(
    replies: Callable[[int], list[Reply]], count: int
) -> None:
    fields = {"id": 0, "model": "echo", "input": ["a", "b"]}

    async def scenario() -> None:
        async with fleet_of(FakeNeuron()) as fleet:
            exchange = Exchange(fleet, "r")
            await exchange.send(Rerank(**fields, query="c") if replies is scores else Embed(**fields))
            for reply in replies(count):
                exchange._call.push(reply)
            with pytest.raises(CortexError, match=f"{count} results for 2 inputs") as caught:
                await exchange.one()
            assert caught.value.code == Code.INTERNAL
            exchange.close()

    run(scenario)


@pytest.mark.parametrize(
    "lie",
    [
        {"devices": [Device(id="cpu", kind="cpu", name="c", memory_total=1, memory_free=1, utilization=nan)]},
        {"models": [ModelState(id="echo", status="ready", request_seconds=inf)]},
        {"prefixes": {"echo": {b"x" * 33: 1}}},
        {"prefixes": {"echo": {b"x": -1}}},
    ],
)
def test_a_neuron_that_says_what_cannot_be_is_lost_in_one_line_and_others_serve(
    lie: dict, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        liar, good = FakeNeuron(name="a", models=("echo",)), FakeNeuron(name="b", models=("echo",))
        async with fleet_of(liar, good) as fleet:
            honest, told = liar.state, Counter()

            def state(number: int) -> State:
                told["lies"] += 1
                return msgspec.structs.replace(honest(number), **lie)

            liar.state = state
            liar._tell()
            await eventually(lambda: not fleet.neurons[0].healthy)
            assert await ask(fleet) == "one two"
            await eventually(lambda: told["lies"] > 2)
            liar.state = honest
            await eventually(lambda: fleet.neurons[0].healthy)

    run(scenario)
    assert sum("cannot be read: state: " in text for text in caplog.messages) == 1


def test_more_prefixes_than_any_neuron_holds_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        liar = FakeNeuron(name="a", models=("echo",))
        async with fleet_of(liar) as fleet:
            many = {number.to_bytes(4): 7 for number in range(2 * MOST + 1)}
            for news in (many, dict(list(many.items())[: MOST + 1]), many):
                fleet.neurons[0]._on_state(
                    msgspec.structs.replace(liar.state(1), whole=False, prefixes={"echo": news})
                )
                assert not len(fleet.prefixes)

    run(scenario)
    assert sum("too many prefixes" in text for text in caplog.messages) == 1


@pytest.mark.parametrize("indices", [[], [1], [0, 0]])
def test_an_end_of_other_choices_than_were_asked_for_fails_its_request(indices: list[int]) -> None:
    async def scenario() -> None:
        async with fleet_of(FakeNeuron()) as fleet:
            exchange = Exchange(fleet, "r")
            await exchange.send(generate("queued"))
            ended = Finished(
                id=1,
                choices=[Choice(reason="stop", index=each) for each in indices],
                usage=Usage(),
                timings=Timings(),
            )
            exchange._call.push(ended)
            with pytest.raises(CortexError, match="ends other choices than the 1 it was asked for") as caught:
                await exchange.whole()
            assert caught.value.code == Code.INTERNAL
            exchange.close()

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


def test_a_model_whose_worker_dies_again_and_again_on_a_host_is_left_alone_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        bad = FakeNeuron(name="a", models=("echo",), refuses={"echo": Code.WORKER_DIED})
        good = FakeNeuron(name="b", models=("echo",))
        async with fleet_of(bad, good) as fleet:
            fleet.neurons[1].in_flight["echo"] = 9  # so the first one has less to do
            for _ in range(30):
                assert await ask(fleet) == "one two"
            assert (len(bad.served), len(good.served)) == (FAILURES, 30)
            assert [each.avoided for each in fleet.neurons] == [["echo"], []]
            fleet.neurons[1].lose("the test says so")
            with pytest.raises(CortexError):  # where nobody else can, it is asked all the same
                await ask(fleet)
            assert len(bad.served) == FAILURES + 1
            del bad.refuses["echo"]
            assert await ask(fleet) == "one two"
            assert fleet.neurons[0].avoided == []

    before = metrics.avoided("echo", "a").get()
    run(scenario)
    assert metrics.avoided("echo", "a").get() == before + 1
    assert [text for text in caplog.messages if "avoided" in text] == [
        "model is avoided here, for it failed neuron=a model=echo seconds=5",
        "model is avoided no longer neuron=a model=echo",
    ]


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


def test_a_host_that_is_silent_for_three_heartbeats_comes_last() -> None:
    async def scenario() -> None:
        hosts = [FakeNeuron(name=name, models=("echo",)) for name in "ab"]
        async with fleet_of(*hosts) as fleet:
            fleet.neurons[0].client._heard -= SILENT_SECONDS + 1
            places = {(await fleet.place("echo", key=bytes([key])))[0].name for key in range(20)}
            assert places == {"b"}

    run(scenario)
