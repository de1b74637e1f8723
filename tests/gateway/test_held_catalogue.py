"""The catalogue at a gateway: told to neurons, followed as its file changes, kept while that is no good."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway.catalogue import Catalogue
from gateway.config import GatewayConfig
from gateway.fleet import held_catalogue, listing
from gateway.fleet.view import Fleet
from gateway.telemetry import metrics_directory
from ipc.errors import Code, CortexError
from ipc.logs import JSONLines
from ipc.messages.catalogue import FleetCatalogue
from ipc.messages.replies import Failed
from ipc.settings import ConfigError
from tests.gateway.fake_neuron import FakeNeuron
from tests.gateway.fleets import ask, eventually, fleet_of, run


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(held_catalogue, "LOOK_SECONDS", 0.02)
    monkeypatch.setenv(metrics_directory.VARIABLE, str(tmp_path))


@pytest.fixture
def write(tmp_path: Path):
    def write(*models: dict, **more: object) -> Path:
        path = tmp_path / "models.yaml"
        path.write_text(json.dumps({"models": models, **more}))
        return path

    return write


def test_each_neuron_is_told_what_is_about_it(write) -> None:
    path = write(
        {
            "id": "echo",
            "ranks": 2,
            "pinned_on": ["a"],
            "aliases": ["gpt-4o"],
            "cost": {"input": 0, "output": 2},
        },
        {"id": "slow", "max_output": 5},
    )

    async def scenario() -> None:
        a, b = FakeNeuron(name="a"), FakeNeuron(name="b")
        async with fleet_of(a, b, aliases={"mine": "slow"}, models_config=str(path)) as fleet:
            await eventually(lambda: a.catalogues and b.catalogues)
            [at_a], [at_b] = a.catalogues, b.catalogues
            assert [(each.id, each.ranks) for each in at_a.models] == [("echo", 2), ("slow", 1)]
            assert [each.id for each in at_b.models] == ["slow"]
            assert (at_a.elsewhere, at_b.elsewhere) == ({}, {"echo": ["a"]})
            assert at_a.version == at_b.version
            assert at_a.origin.endswith(f":{path}")
            assert (fleet.resolve("gpt-4o"), fleet.resolve("mine")) == ("echo", "slow")
            listed = {each.id: each for each in listing.every(fleet)}
            assert listed["gpt-4o"].cost.output == 2
            assert listed["slow"].cost is None

    run(scenario)


def test_a_change_is_told_and_its_names_count_without_a_restart(write, caplog) -> None:
    caplog.set_level(logging.INFO)
    path = write({"id": "echo", "aliases": ["x"]}, {"id": "gone"})

    async def scenario() -> None:
        neuron = FakeNeuron()
        async with fleet_of(neuron, models_config=str(path)) as fleet:
            await eventually(lambda: len(neuron.catalogues) == 1)
            write({"id": "slow", "aliases": ["x"]}, {"id": "echo", "priority": 7})
            await eventually(lambda: len(neuron.catalogues) == 2)
            first, second = neuron.catalogues
            assert first.version != second.version
            assert fleet.resolve("x") == "slow"
            await eventually(lambda: fleet.neurons[0].catalogue.reply.version == second.version)
            await asyncio.sleep(0.1)
            assert len(neuron.catalogues) == 2  # a file that rests is not told again

    run(scenario)
    [record] = [record for record in caplog.records if record.message.startswith("catalogue changed")]
    assert "added=slow removed=gone changed=echo" in record.message
    said = json.loads(JSONLines().format(record))
    assert (said["added"], said["removed"], said["changed"]) == ("slow", "gone", "echo")


def test_a_model_of_the_file_that_no_neuron_can_serve_is_told_from_one_that_nobody_knows(write) -> None:
    path = write({"id": "huge", "ranks": 8, "aliases": ["gpt-5"]})

    def refusing(name: str) -> FakeNeuron:
        why = Failed(id=0, code=Code.MODEL_NOT_FOUND, message=f"it wants 8 ranks, {name} has 1 GPU")
        return FakeNeuron(name=name, models=(), quotes={"huge": why, "none": why})

    async def scenario() -> None:
        async with fleet_of(refusing("a"), refusing("b"), models_config=str(path)) as fleet:
            said = {}
            for asked in ("gpt-5", "none"):
                with pytest.raises(CortexError) as caught:
                    await ask(fleet, asked)
                assert caught.value.code == Code.MODEL_NOT_FOUND
                said[asked] = caught.value.message
            assert said["gpt-5"].startswith(
                "'gpt-5' is an alias of 'huge': the catalogue has the model 'huge'"
            )
            for name in "ab":
                assert f"{name}: it wants 8 ranks, {name} has 1 GPU" in said["gpt-5"]
            assert "does not exist" in said["none"]

    run(scenario)


def test_a_file_that_cannot_be_used_changes_nothing_and_says_why(write) -> None:
    path = write({"id": "echo", "aliases": ["x"]})

    async def scenario() -> None:
        neuron = FakeNeuron()
        async with fleet_of(neuron, models_config=str(path)) as fleet:
            await eventually(lambda: neuron.catalogues)
            path.write_text("models:\n- id: echo\n- id: slow\n  contxt: 5\n")
            await eventually(lambda: fleet.catalogue.told()["error"])
            told = fleet.catalogue.told()
            assert f"{path}: models[1].contxt: unknown key" in told["error"]
            assert "(line 4)" in told["error"]
            assert (told["models"], told["version"]) == (1, neuron.catalogues[0].version)
            assert fleet.resolve("x") == "echo"
            write({"id": "slow"})
            await eventually(lambda: fleet.catalogue.told()["error"] is None)
            assert fleet.resolve("x") == "x"

    run(scenario)


def test_a_process_that_starts_while_the_file_is_no_good_goes_on_with_the_last_good_one(write) -> None:
    path = write({"id": "echo"})
    settings = GatewayConfig(models_config=str(path))

    async def scenario() -> None:
        neuron = FakeNeuron()
        async with fleet_of(neuron, models_config=str(path)):
            await eventually(lambda: neuron.catalogues)
        path.write_text("models: [")
        second = FakeNeuron()
        async with fleet_of(second, models_config=str(path)) as fleet:
            await eventually(lambda: second.catalogues)
            assert second.catalogues[0].version == neuron.catalogues[0].version
            assert "line 1" in fleet.catalogue.told()["error"]

    run(scenario)
    path.with_name(f"{held_catalogue.COPY}.yaml").unlink()
    with pytest.raises(ConfigError, match="line 1"):
        Fleet(settings)


def test_settings_that_an_older_neuron_cannot_read_cost_no_other_model(write, monkeypatch) -> None:
    path = write({"id": "echo"}, {"id": "newest"}, {"id": "newer"}, {"id": "slow"})
    told = Catalogue.of

    def newer(catalogue: Catalogue, neuron: str, origin: str) -> FleetCatalogue:
        said = told(catalogue, neuron, origin)
        words = {"newest": {"dtype": "float4"}, "newer": {"kv_cache_dtype": "int2"}}
        return replace(said, models=[replace(each, **words.get(each.id, {})) for each in said.models])

    monkeypatch.setattr(Catalogue, "of", newer)

    async def scenario() -> None:
        neuron = FakeNeuron(name="a", models=("echo",))
        async with fleet_of(neuron, models_config=str(path)) as fleet:
            await eventually(lambda: fleet.neurons[0].catalogue.reply)
            (said,) = neuron.catalogues
            assert [model.id for model in said.models] == ["echo", "slow"]
            assert said.elsewhere == {
                "newest": ["neurons that take its dtype (Invalid enum value 'float4')"],
                "newer": ["neurons that take its kv_cache_dtype (Invalid enum value 'int2')"],
            }
            assert said.version == fleet.catalogue.value.version
            assert not fleet.neurons[0].catalogue.is_passed_over
            assert await ask(fleet) == "one two"

    run(scenario)


def test_a_neuron_that_follows_another_gateway_or_its_own_file_is_told_of_in_one_line(write, caplog) -> None:
    caplog.set_level(logging.INFO)
    path = write({"id": "echo"}, {"id": "slow"})

    async def scenario() -> None:
        other = FakeNeuron(name="a", makes_of_catalogues={"version": "9", "origin": "there:/m.yaml"})
        own = FakeNeuron(
            name="b", makes_of_catalogues={"own": {"slow": ["ranks"]}, "refused": {"echo": "no"}}
        )
        async with fleet_of(other, own, models_config=str(path)) as fleet:
            await eventually(lambda: all(each.catalogue.reply for each in fleet.neurons))
            at_a, at_b = (each.catalogue.told() for each in fleet.neurons)
            assert (at_a["version"], at_a["origin"]) == ("9", "there:/m.yaml")
            assert (at_b["own"], at_b["refused"]) == ({"slow": ["ranks"]}, {"echo": "no"})

    run(scenario)
    text = "\n".join(caplog.messages)
    assert "another gateway counts, whose file is newer neuron=a origin=there:/m.yaml" in text
    assert "own file counts neuron=b model=slow differs=ranks" in text


def test_a_gateway_hears_that_the_catalogue_of_another_counts_by_now(write, caplog) -> None:
    path = write({"id": "echo"}, {"id": "mine"})

    async def scenario() -> None:
        neuron = FakeNeuron(name="a", models=("echo",))
        async with fleet_of(neuron, models_config=str(path)) as fleet:
            at_a = fleet.neurons[0].catalogue
            await eventually(lambda: at_a.reply)
            told = len(neuron.catalogues)
            neuron.catalogue = at_a.reply.version
            neuron._tell()
            assert await ask(fleet) == "one two"
            assert len(neuron.catalogues) == told  # that it is ours is known
            neuron.makes_of_catalogues = {"version": "9", "origin": "there:/m.yaml"}
            neuron.catalogue = "9"
            neuron._tell()
            await eventually(lambda: at_a.reply.version == "9")
            assert at_a.told()["origin"] == "there:/m.yaml"
            with pytest.raises(CortexError, match="a: it goes by the catalogue of another gateway") as caught:
                await ask(fleet, "mine")
            assert caught.value.code == Code.MODEL_NOT_FOUND
            neuron._tell()
            assert await ask(fleet) == "one two"
            assert len(neuron.catalogues) == told + 1

    run(scenario)
    assert sum("another gateway counts, whose file is newer" in text for text in caplog.messages) == 1


def test_a_neuron_that_does_not_take_the_catalogue_is_told_again_after_longer_and_longer_pauses(
    write, monkeypatch, caplog
) -> None:
    path = write({"id": "echo"})
    pauses = []
    tell_again = held_catalogue.CatalogueAtNeuron._tell_again

    def noted(at_a: held_catalogue.CatalogueAtNeuron) -> None:
        pauses.append(at_a._seconds)
        tell_again(at_a)

    monkeypatch.setattr(held_catalogue.CatalogueAtNeuron, "_tell_again", noted)
    monkeypatch.setattr(held_catalogue, "AGAIN_SECONDS", 0.02)
    monkeypatch.setattr(held_catalogue, "MOST_SECONDS", 0.06)

    async def scenario() -> None:
        neuron = FakeNeuron(name="a", models=("echo",), refuses_catalogues=True)
        async with fleet_of(neuron, models_config=str(path)) as fleet:
            at_a = fleet.neurons[0].catalogue
            await eventually(lambda: len(pauses) >= 4)
            assert (at_a.reply, at_a.told()) == (None, {"error": "the disk is full"})
            neuron.refuses_catalogues = False
            await eventually(lambda: at_a.reply)
            assert pauses[:4] == [0.02, 0.04, 0.06, 0.06]
            assert at_a.told()["error"] is None
            pauses.clear()
            monkeypatch.setattr(held_catalogue, "MOST_SECONDS", 3600)
            at_a._seconds = 3600
            neuron.refuses_catalogues, neuron.catalogue = True, "9"  # that of another gateway counts by now
            told = len(neuron.catalogues)
            for _ in range(5):
                neuron._tell()
                assert await ask(fleet) == "one two"
            await eventually(lambda: pauses)
            for _ in range(5):
                neuron._tell()
                assert await ask(fleet) == "one two"
            assert len(neuron.catalogues) == told + 1  # however often it says so
            pauses.clear()
            await at_a.greet(1.0)  # a new instance, or a link that is whole again
            await eventually(lambda: pauses)
            assert pauses[0] == 0.02

    run(scenario)
    assert sum("catalogue not taken" in text for text in caplog.messages) == 2


def test_a_process_that_has_not_read_the_file_yet_does_not_call_back_what_another_told(
    write, monkeypatch
) -> None:
    """Each process of a gateway reads it for itself, and a neuron takes what any of them says last."""
    path = write({"id": "echo"})

    async def scenario() -> None:
        neuron = FakeNeuron(name="a", models=("echo",))
        async with fleet_of(neuron, models_config=str(path)) as fleet:
            at_a = fleet.neurons[0].catalogue
            await eventually(lambda: at_a.reply and fleet.catalogue.is_current)
            monkeypatch.setattr(held_catalogue, "LOOK_SECONDS", 0.3)
            await asyncio.sleep(0.1)  # the next look is not soon
            write({"id": "echo"}, {"id": "slow"})
            neuron.catalogue = "9"  # as the other process has it
            neuron._tell()
            await eventually(lambda: len(fleet.catalogue.value.models) == 2)
            await eventually(lambda: at_a.reply.version == fleet.catalogue.value.version)
            assert [len(each.models) for each in neuron.catalogues] == [1, 2]

    run(scenario)


def test_a_neuron_that_comes_back_is_told_again(write) -> None:
    path = write({"id": "echo"})

    async def scenario() -> None:
        neuron = FakeNeuron()
        async with fleet_of(neuron, models_config=str(path)) as fleet:
            await eventually(lambda: neuron.catalogues)
            neuron.close()
            await eventually(lambda: not fleet.neurons[0].healthy)
            write({"id": "slow"})
            await eventually(lambda: fleet.catalogue.value.models[0].id == "slow")
            again = FakeNeuron(neuron.endpoint)
            again.start()
            try:
                await eventually(lambda: fleet.neurons[0].healthy)  # before that, or it knows too little
                assert [each.id for each in again.catalogues[-1].models] == ["slow"]
            finally:
                again.close()

    run(scenario)
