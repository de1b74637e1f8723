"""Which models a host can serve at all, by the memory that their settings ask for."""

import pytest

from ipc.messages.state import Device
from neuron.catalogue.hosting import NotHere, hosted
from neuron.config import ModelSettings

GIB = 1 << 30


def host(*gpus):
    """A CPU of 64 GiB, and GPUs of so many GiB each."""
    cards = [
        Device(id=f"cuda:{i}", kind="cuda", name="card", memory_total=size * GIB, memory_free=0)
        for i, size in enumerate(gpus)
    ]
    return [*cards, Device(id="cpu", kind="cpu", name="cpu", memory_total=64 * GIB, memory_free=0)]


def settings(**keys):
    return ModelSettings(id="m", **keys)


def test_devices_below_the_floor_are_left_out():
    floor = {"min_device_memory": 24 * GIB}
    assert hosted(settings(**floor), host(12, 32, 24)).devices == ["cuda:1", "cuda:2"]
    named = settings(devices=["cuda:0", "cuda:1"], **floor)
    assert hosted(named, host(12, 32, 24)).devices == ["cuda:1"]


def test_settings_that_every_device_meets_stay_as_they_are():
    for model in (settings(), settings(min_device_memory=GIB, ranks=2), settings(devices=["cpu"], ranks=4)):
        assert hosted(model, host(12, 32)) is model


def test_memory_is_counted_on_as_many_devices_as_there_are_ranks():
    model = settings(ranks=2, min_memory=48 * GIB)
    assert hosted(model, host(24, 12, 24)) is model


def test_ranks_may_share_a_cpu_that_is_large_enough():
    model = settings(ranks=2, min_device_memory=8 * GIB)
    assert hosted(model, host()) is model


@pytest.mark.parametrize(
    ("keys", "gpus", "words"),
    [
        ({"min_device_memory": 24 * GIB}, [12], ["24.00 GiB", "cuda:0 of 12.00 GiB"]),
        ({"min_device_memory": 24 * GIB, "ranks": 2}, [24, 12], ["2 devices of 24.00 GiB"]),
        ({"min_memory": 48 * GIB}, [24, 16], ["48.00 GiB of memory", "cuda:1 of 16.00 GiB"]),
        ({"min_memory": 65 * GIB}, [], ["cpu of 64.00 GiB"]),
        ({"min_memory": 48 * GIB, "ranks": 2}, [24, 16, 16], ["48.00 GiB of memory"]),
        ({"ranks": 2}, [24], ["wants 2 devices,"]),
        ({"devices": ["cuda:1"]}, [24], ["wants cuda:1", "has cuda:0, cpu"]),
    ],
)
def test_a_host_that_is_too_small_says_what_is_wanted_and_what_there_is(keys, gpus, words):
    with pytest.raises(NotHere) as reason:
        hosted(settings(**keys), host(*gpus))
    assert all(word in str(reason.value) for word in words), str(reason.value)
