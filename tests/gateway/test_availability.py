"""What is said of a model that no neuron can serve, and who can."""

from __future__ import annotations

import pytest

from gateway.fleet.availability import able, absent
from ipc.errors import Code, CortexError
from ipc.messages.state import ModelState
from tests.gateway.hosts import Host, host


def test_draining_and_lost_neurons_get_nothing() -> None:
    hosts = [host("a", draining=True), host("b", "unloaded"), host("c", healthy=False)]
    assert [each.name for each in able(hosts, "m")] == ["b"]
    with pytest.raises(CortexError) as caught:
        able([host("a", draining=True)], "m")
    assert caught.value.code == Code.DRAINING
    assert "cortex resume" in caught.value.message


def test_model_of_a_lost_neuron_is_away_and_not_unknown() -> None:
    with pytest.raises(CortexError, match="neuron a,") as caught:
        able([host("a", healthy=False), Host("b")], "m")
    assert caught.value.code == Code.NEURON_LOST
    assert caught.value.retry_after is not None


def test_a_model_that_only_ends_what_it_has_begun_is_nowhere() -> None:
    ending = Host("a", {"m": ModelState(id="m", status="ready", retired=True)})
    assert able([ending], "m") == []
    assert [each.name for each in able([ending, host("b", "unloaded")], "m")] == ["b"]
    error = absent([ending], "m")
    assert (error.code, error.message) == (
        Code.MODEL_NOT_FOUND,
        "the model 'm' is no longer served; there is none",
    )
    ending.models["m"] = ModelState(id="m", status="ready", adapters=["a"], retired=True)
    assert absent([ending], "m:a").message == "the model 'm:a' does not exist; there is none"
    assert absent([ending], "m", lambda model: False).message == "the model 'm' does not exist; there is none"


def test_unknown_model_is_told_what_there_is() -> None:
    hosts = [host("a"), Host("b", healthy=False)]
    assert able(hosts, "other") == []
    error = absent(hosts, "other")
    assert (error.code, error.param) == (Code.MODEL_NOT_FOUND, "model")
    assert "there is m" in error.message


def test_nothing_is_unknown_while_a_neuron_has_not_been_heard() -> None:
    error = absent([host("a"), Host("silent", healthy=False, heard=False)], "other")
    assert (error.code, error.retry_after is not None) == (Code.NEURON_LOST, True)
    assert "silent" in error.message


def test_what_is_there_is_not_said_to_be_what_else_there_is() -> None:
    error = absent([host("a"), Host("silent", healthy=False, heard=False)], "m")
    assert error.code == Code.NEURON_LOST
    assert error.message.endswith("may have the model 'm'; no other can serve it")


def test_nothing_is_unknown_while_no_neuron_answers() -> None:
    assert absent([Host("a", healthy=False)], "m").code == Code.NEURON_LOST


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("m:c", "the model 'm' has no adapter 'c'; it has a, b"),
        ("n:c", "the model 'n' has no adapter 'c'; it has none (its folder is gone)"),
        ("o:c", "the model 'o:c' does not exist; there is m, n"),
    ],
)
def test_of_an_adapters_name_it_is_said_which_part_is_unknown(name: str, told: str) -> None:
    a, b = Host("a"), Host("b")
    for each, adapters in ((a, ["b"]), (b, ["a"])):
        each.models = {"m": ModelState(id="m", status="ready", adapters=adapters)}
    a.models["n"] = ModelState(id="n", status="failed", error="its folder is gone")
    error = absent([a, b], name)
    assert (error.code, error.message) == (Code.MODEL_NOT_FOUND, told)
    assert "'m'" not in absent([a, b], "m:c", lambda model: model == "n").message
