"""Which neuron gets a request."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from gateway.fleet.router import choose
from ipc.errors import Code, CortexError
from ipc.messages import Device, ModelState


@dataclass
class Host:
    name: str
    models: dict[str, ModelState] = field(default_factory=dict)
    healthy: bool = True
    draining: bool = False
    devices: list[Device] = field(default_factory=list)
    in_flight: dict[str, int] = field(default_factory=dict)


def host(name: str, status: str = "ready", *, running: int = 0, gpu: int = 0, cpu: int = 0, **fields) -> Host:
    """A host with the model "m" in that state."""
    devices = [
        Device(id=kind, kind=kind, name="", memory_total=free, memory_free=free)
        for kind, free in (("cuda", gpu), ("cpu", cpu))
    ]
    models = {"m": ModelState(id="m", status=status, running=running)}
    return Host(name, models, devices=devices, **fields)


def test_least_loaded_of_the_ready_gets_it() -> None:
    assert choose([host("a", running=3), host("b", running=1), host("c", running=2)], "m").name == "b"


def test_own_requests_count_before_the_neuron_says_so() -> None:
    assert choose([host("a", in_flight={"m": 2}), host("b", running=1)], "m").name == "b"


def test_busy_copy_is_better_than_loading_another() -> None:
    assert choose([host("a", running=30), host("b", "unloaded", gpu=1 << 40)], "m").name == "a"


def test_waits_for_a_load_that_goes_on_rather_than_starting_another() -> None:
    assert choose([host("a", "unloaded", gpu=1 << 40), host("b", "loading")], "m").name == "b"
    assert choose([host("a", "unloaded", gpu=1 << 40), host("b", "restarting")], "m").name == "b"


def test_most_free_gpu_memory_loads_it() -> None:
    hosts = [
        host("a", "unloaded", gpu=1, cpu=99),
        host("b", "unloaded", gpu=2),
        host("c", "unloaded", cpu=99),
    ]
    assert choose(hosts, "m").name == "b"


def test_failed_model_is_tried_again_only_where_nobody_else_can() -> None:
    assert choose([host("a", "failed", gpu=2), host("b", "unloaded", gpu=1)], "m").name == "b"
    assert choose([host("a", "failed")], "m").name == "a"


def test_draining_and_lost_neurons_get_nothing() -> None:
    assert (
        choose([host("a", draining=True), host("b", "unloaded"), host("c", healthy=False)], "m").name == "b"
    )
    with pytest.raises(CortexError) as caught:
        choose([host("a", draining=True)], "m")
    assert caught.value.code == Code.DRAINING


def test_model_of_a_lost_neuron_is_away_and_not_unknown() -> None:
    with pytest.raises(CortexError, match="neuron a,") as caught:
        choose([host("a", healthy=False), Host("b")], "m")
    assert caught.value.code == Code.NEURON_LOST


def test_unknown_model_is_told_what_there_is() -> None:
    with pytest.raises(CortexError, match="there is m") as caught:
        choose([host("a"), Host("silent", healthy=False)], "other")
    assert (caught.value.code, caught.value.param) == (Code.MODEL_NOT_FOUND, "model")
    assert "silent" in caught.value.message


def test_nothing_is_unknown_while_no_neuron_answers() -> None:
    with pytest.raises(CortexError) as caught:
        choose([Host("a", healthy=False)], "m")
    assert caught.value.code == Code.NEURON_LOST
