"""Text processes in the ledger of the host's memory: what they hold counts, and idle ones make way."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from ipc.errors import Code, CortexError
from neuron.config import Memory
from neuron.memory.room import Room
from neuron.memory.text_memory import NAME, TextMemory, TextProcesses
from neuron.preparation.preparation import Preparation
from tests.doubles import stands_for
from tests.neuron.doubles import NoStandby
from tests.neuron.room_play import TOTAL, Model, Untouched, play


@stands_for(TextProcesses)
class Texts:
    """So many bytes of processes that work, and of each one that is idle."""

    def __init__(self, busy, *idle):
        self.busy, self.idle = busy, list(idle)

    @property
    def memory(self):
        return self.busy + self.spare_memory

    @property
    def spare_memory(self):
        return sum(self.idle)

    async def end_idle(self, size):
        freed = 0
        while self.idle and freed < size:
            freed += self.idle.pop(0)
        return freed


class Measured(Untouched):
    """A host of which only models and these processes have anything."""

    def __init__(self, names, texts):
        super().__init__(names)
        self.texts = texts

    def refresh(self):
        models = {name: self.ledger.reserved(name) for name in self.ledger.devices}
        models["cpu"] = models.get("cpu", 0) - self.ledger.held_by(NAME).get("cpu", 0) + self.texts.memory
        self.devices = [replace(each, memory_free=TOTAL - models[each.id]) for each in self.devices]
        return self.devices


class Host:
    """A room of TOTAL bytes of the host, and models of these sizes in it."""

    def __init__(self, texts, sizes, *, devices=("cpu",)):
        inventory = Measured(devices, texts)
        self.texts, self.ledger, self.devices = texts, inventory.ledger, {}
        self.room = Room(
            Memory(), self.ledger, inventory, NoStandby(), lambda: None, None, TextMemory(self.ledger, texts)
        )
        self.models = {name: Model(self, name, size) for name, size in sizes.items()}


def hosting(monkeypatch, scenario, *args, **settings):
    async def played():
        host = Host(*args, **settings)
        await scenario(host)
        await host.room.close()

    play(played(), monkeypatch)


def test_the_text_processes_of_a_neuron_are_what_the_ledger_takes_them_for():
    stands_for(TextProcesses)(Preparation)


def test_what_they_hold_is_told_of_the_device_and_measured_again_at_each_look(monkeypatch):
    async def scenario(host):
        for held in (30, 0, 45):
            host.texts.busy = held
            await host.room.refresh()
            assert [device.memory_reserved for device in host.room.devices()] == [held]
            assert host.ledger.free("cpu") == TOTAL - held, "nobody else's"

    hosting(monkeypatch, scenario, Texts(0), {})


def test_what_they_hold_counts_while_a_model_loads(monkeypatch):
    async def scenario(host):
        loading = asyncio.create_task(host.models["a"].serve(10.0))
        await asyncio.sleep(1.0)
        assert host.models["a"].status == "loading"
        host.texts.busy = 30
        prospect = await host.room.prospect(host.models["b"])
        assert not prospect.now, "40 of 100 are booked for the load, and 30 are held"
        host.texts.busy = 20
        assert (await host.room.prospect(host.models["b"])).now
        await loading

    hosting(monkeypatch, scenario, Texts(0), {"a": 40, "b": 40})


def test_idle_ones_make_way_for_a_model_no_more_of_them_than_are_in_the_way(monkeypatch):
    async def scenario(host):
        assert (await host.room.prospect(host.models["a"])).now
        await host.models["a"].serve(1.0)
        assert host.texts.idle == [15]
        assert host.ledger.held_by(NAME) == {"cpu": 35}
        await host.room.refresh()
        assert host.ledger.reserved("cpu") == 60 + 35

    hosting(monkeypatch, scenario, Texts(20, 10, 10, 15), {"a": 60})


def test_idle_ones_stay_where_a_model_fits_beside_them(monkeypatch):
    async def scenario(host):
        await host.models["a"].serve(1.0)
        assert host.texts.idle == [10, 10]

    hosting(monkeypatch, scenario, Texts(20, 10, 10), {"a": 60})


def test_those_that_work_are_not_ended_and_a_model_that_does_not_fit_beside_them_is_refused(monkeypatch):
    async def scenario(host):
        with pytest.raises(CortexError) as refused:
            await host.models["a"].serve(1.0)
        assert refused.value.code == Code.INSUFFICIENT_MEMORY
        assert "text processes hold 0.00 GiB on cpu and work" in refused.value.message
        assert refused.value.details["held"] == {NAME: {"cpu": 60}}
        assert host.texts.idle == [10], "it would not be enough"
        host.texts.busy = 0
        await host.models["a"].serve(1.0)

    hosting(monkeypatch, scenario, Texts(60, 10), {"a": 60})


def test_a_neuron_of_gpus_only_books_none_of_them(monkeypatch):
    async def scenario(host):
        await host.models["a"].serve(1.0)
        assert host.ledger.reserved("cuda:0") == 60
        assert host.ledger.held_by(NAME) == {}
        assert host.texts.idle == [10]

    hosting(monkeypatch, scenario, Texts(50, 10), {"a": 60}, devices=("cuda:0",))
