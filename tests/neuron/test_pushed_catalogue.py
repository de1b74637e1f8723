"""The catalogue of a gateway at a neuron: what counts, what is refused, what would become of a model."""

from __future__ import annotations

import pytest

from ipc.errors import Code, CortexError
from ipc.messages.catalogue import FleetCatalogue
from ipc.messages.requests import CheckCatalogue, Load, SetCatalogue
from ipc.model_settings import ModelSettings, Simulated
from tests.neuron.folders import write_checkpoint
from tests.neuron.harness import PATIENCE, Neuron, chat, simulated, wait_until

GIB = 1 << 30


def model(name, **keys):
    return ModelSettings(id=name, simulated=Simulated(), **keys)


def catalogue(version, *models, **keys):
    return FleetCatalogue(
        version=version, origin="gateway:/models.yaml", modified=1.0, models=[*models], **keys
    )


@pytest.fixture(scope="module")
def neuron(tmp_path_factory):
    folder = tmp_path_factory.mktemp("n")
    write_checkpoint(folder / "models" / "found")
    config = {"model_folders": [str(folder / "models")], "cpu": {"memory": "1GiB"}}
    with Neuron(folder, [simulated("mine", settings={"priority": 5})], **config) as neuron:
        neuron.model("mine")
        yield neuron


@pytest.fixture
def push(neuron):
    def push(said):
        with neuron.client() as client:
            return client.ask(SetCatalogue(id=0, catalogue=said), PATIENCE)

    return push


def priorities(neuron):
    return {state.id: state.priority for state in neuron.health().models}


def test_what_a_gateway_says_counts_for_what_the_neurons_own_file_does_not_name(neuron, push):
    said = catalogue(
        "1",
        model("new", priority=7),
        model("mine", priority=8, max_output=4),
        ModelSettings(id="found", priority=9),
        model("large", min_memory=2 * GIB),
        ModelSettings(id="org/gone"),
        elsewhere={"demo": ["other"]},
    )
    reply = push(said)
    assert (reply.version, reply.origin) == ("1", "gateway:/models.yaml")
    assert reply.own == {"mine": ["priority", "max_output"]}
    assert "wants 2.00 GiB" in reply.refused["large"]
    assert "served by other only" in reply.refused["demo"]
    assert priorities(neuron) == {"mine": 5, "new": 7, "found": 9}
    with neuron.client() as client:
        for name, words in (("demo", "other only"), ("org/gone", "neuron pull"), ("large", "2.00 GiB")):
            with pytest.raises(CortexError, match=words) as refused:
                client.ask(chat(name), PATIENCE)
            assert refused.value.code == Code.MODEL_NOT_FOUND


def test_to_say_it_again_touches_nothing_and_what_is_taken_out_goes(neuron, push):
    push(catalogue("2", model("new"), model("other")))
    with neuron.client() as client:
        client.ask(Load(id=0, model="new"), PATIENCE)
        before = neuron.workers("new")
        push(catalogue("2", model("new"), model("other")))
        push(catalogue("3", model("new")))
        assert neuron.workers("new") == before
        assert "other" not in priorities(neuron)
        push(catalogue("4"))
    wait_until(lambda: "new" not in priorities(neuron), "an idle model to be gone")
    assert {"mine", "found", "demo"} <= priorities(neuron).keys()


def test_a_model_that_the_files_of_a_host_cannot_be_is_refused_and_stays_as_it_was(neuron, push):
    reply = push(catalogue("5", ModelSettings(id="found", adapters={"a": "/not/there"})))
    assert "/not/there" in reply.refused["found"]
    assert "found" in priorities(neuron)
    assert push(catalogue("6")).refused == {}


def test_a_catalogue_that_contradicts_itself_is_refused_by_its_key(neuron, push):
    push(catalogue("7", model("new")))
    with pytest.raises(CortexError) as refused:
        push(catalogue("8", model("a"), model("a")))
    assert (refused.value.code, refused.value.param) == (Code.BAD_REQUEST, "catalogue.models[1].id")
    assert push(catalogue("7", model("new"))).version == "7"


def test_a_check_says_what_would_become_of_each_model_and_does_nothing(neuron):
    said = catalogue(
        "9",
        ModelSettings(id="found", context_length=64),
        model("huge", ranks=1, devices=["cpu"]),
        ModelSettings(id="too-large", simulated=Simulated(memory=4 * GIB)),
        ModelSettings(id="found-again", source="hf:org/gone"),
        ModelSettings(id="broken", path=str(neuron.config_file)),
        model("elsewhere", devices=["cuda:7"]),
        model("mine"),
        elsewhere={"demo": ["other"]},
    )
    before = priorities(neuron)
    with neuron.client() as client:
        appraisals = client.ask(CheckCatalogue(id=0, catalogue=said), PATIENCE).models
    assert {each.model: each.verdict for each in appraisals} == {
        "found": "fits",
        "huge": "fits",
        "too-large": "too_large",
        "found-again": "missing",
        "broken": "broken",
        "elsewhere": "refused",
        "mine": "own",
        "demo": "refused",
    }
    found, *_ = appraisals
    assert found.path.endswith("/models/found")
    assert (found.devices, found.context_length) == (["cpu"], 64)
    assert found.bytes > 0
    assert priorities(neuron) == before
