"""What a room books for a model, on the devices of its ranks and in the host's memory beside them, and who
makes way for that."""

from __future__ import annotations

from math import inf

import pytest
from msgspec.structs import replace

from ipc.worker_messages import CacheGroup, MemoryUse
from neuron.config import Memory
from neuron.memory.cache_plan import CachePlan
from neuron.memory.eviction import Holder
from neuron.memory.fit import Fit
from neuron.memory.ledger import Ledger
from neuron.memory.need import Need, RankNeed
from neuron.memory.parking import Parking
from neuron.memory.room import Lender, Room
from neuron.memory.step_bytes import UNMEASURED_BYTES
from neuron.memory.wish import Tenant
from tests.doubles import stands_for
from tests.neuron.room_play import Untouched, play

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
FULL = CacheGroup(kind="full", layers=[2], bytes_per_token=64 * KIB)
STATE = CacheGroup(kind="state", layers=[3], bytes_per_sequence=10 * MIB)
PROCESS = MemoryUse(weights=GIB, kv_pool=2 * GIB, activations=3 * MIB, runtime=5 * MIB)


class Devices(Untouched):
    """Of 64 GiB each, of which nobody else has anything; what is taken is what `ledger` has booked."""

    def __init__(self, names):
        super().__init__(names)
        self.devices = [replace(each, memory_total=64 * GIB, memory_free=64 * GIB) for each in self.devices]
        self.ledger = Ledger(self.devices)
        self.others = dict.fromkeys(names, 0)

    def refresh(self):
        taken = {name: self.ledger.reserved(name) + size for name, size in self.others.items()}
        self.devices = [replace(each, memory_free=64 * GIB - taken[each.id]) for each in self.devices]
        return self.devices


@stands_for(Lender)
class Waiting:
    """Processes that wait; says what was asked of them."""

    def __init__(self):
        self.ways, self.measures, self.settled, self.tended = [], [], 0, 0

    def booked(self, device):
        return 0

    async def make_way(self, amounts, *, reuse):
        self.ways.append((dict(amounts), reuse))

    async def measure(self, device):
        self.measures.append(device)
        return 7 * MIB

    def settle(self):
        self.settled += 1

    def tend(self):
        self.tended += 1


@stands_for(Tenant)
class Model:
    """A hybrid: states that leave its GPUs have a place in the host's memory."""

    id, ready_at, reload_seconds = "m", 0.0, 0.0
    turn_ends, turn_seconds, turn_left, seconds_to_leave, waits_since = None, 0.0, 0.0, 0.0, -inf

    def __init__(self, **changes):
        self.changes = changes
        self.runtimes = []

    def need(self, runtime):
        self.runtimes.append(dict(runtime))
        values = {"rank_bytes": (GIB,), "devices": ("cuda:0",), "host_state_memory": 40 * MIB}
        values |= self.changes
        sizes = values.pop("rank_bytes")
        return Need(
            model=self.id,
            ranks=tuple(RankNeed(weights=size, caches=CachePlan((FULL, STATE))) for size in sizes),
            context_length=1024,
            max_sequences=2,
            priority=100,
            **values,
        )

    def holder(self, reserved):
        return Holder(self.id, reserved, 100, 0.0)

    def refuse(self, since, error): ...

    def give_way(self): ...

    def interrupt(self): ...

    def stay(self): ...

    def resize(self, pages): ...


class Place:
    def __init__(self, names=("cuda:0", "cuda:1", "cpu"), parking=None):
        self.inventory = Devices(names)
        self.ledger, self.waiting, self.looks = self.inventory.ledger, Waiting(), 0
        args = self.ledger, self.inventory, self.waiting, self.look
        self.room = Room(Memory(), *args, parking and parking(self.ledger))

    def look(self):
        self.looks += 1

    async def take(self, model, **options) -> Fit:
        return await self.room.take(model, print, **options)


def playing(monkeypatch, scenario, **options):
    async def played():
        place = Place(**options)
        await scenario(place)
        await place.room.close()

    play(played(), monkeypatch)


def test_states_of_the_host_are_booked_there_and_waiting_processes_make_way_without_being_taken(monkeypatch):
    async def scenario(place):
        fit = await place.take(Model(), reuse=True)
        assert fit.elsewhere == {"cpu": 40 * MIB}
        assert place.ledger.held_by("m") == fit.reservations
        assert place.ledger.reserved("cpu") == 40 * MIB
        assert place.room.held_by("m") == fit.reservations["cuda:0"] + 40 * MIB
        on_gpu = {"cuda:0": fit.reservations["cuda:0"]}
        # The process that waits on the GPU becomes the model's; one on the CPU would only be in the way.
        assert place.waiting.ways == [(on_gpu, True), ({"cpu": 40 * MIB}, False)]

    playing(monkeypatch, scenario)


def test_a_model_that_brings_its_own_processes_has_those_that_wait_make_way(monkeypatch):
    async def scenario(place):
        await place.take(Model(host_state_memory=0))
        assert [reuse for _, reuse in place.waiting.ways] == [False, False]
        assert place.waiting.ways[1][0] == {}, "it takes nothing beside its devices"

    playing(monkeypatch, scenario)


def test_parked_weights_make_way_for_states_of_the_host(monkeypatch):
    asked = []

    class Parked(Parking):
        def make_way(self, model, amounts):
            asked.append((model, dict(amounts)))

    async def scenario(place):
        fit = await place.take(Model())
        assert asked == [("m", fit.reservations)]
        assert "cpu" in fit.reservations

    playing(monkeypatch, scenario, parking=lambda ledger: Parked(0, ledger, lambda: (0, 0)))


def test_what_ranks_measured_replaces_their_promise_and_states_of_the_host_stay_as_planned(monkeypatch):
    async def scenario(place):
        fit = await place.take(Model(rank_bytes=(GIB, GIB), devices=("cuda:0", "cuda:1")))
        other = MemoryUse(weights=4 * GIB)
        place.room.correct("m", fit, [PROCESS, other], learn=False)
        held = {"cuda:0": PROCESS.total, "cuda:1": 4 * GIB, "cpu": 80 * MIB}
        assert place.ledger.held_by("m") == held
        assert place.waiting.tended == 1
        place.inventory.others = {"cuda:0": GIB, "cuda:1": 2 * GIB, "cpu": 3 * GIB}
        await place.room.refresh()  # nothing is in motion any more: others are told from it everywhere
        for name, others in place.inventory.others.items():
            assert place.ledger.free(name) == 64 * GIB - held[name] - others

    playing(monkeypatch, scenario)


def test_ranks_that_share_a_device_are_booked_together(monkeypatch):
    async def scenario(place):
        fit = await place.take(Model(rank_bytes=(GIB, GIB), devices=("cpu",), host_state_memory=0))
        assert fit.devices == ("cpu", "cpu")
        place.room.correct("m", fit, [PROCESS, MemoryUse(weights=4 * GIB)], learn=False)
        assert place.ledger.held_by("m") == {"cpu": PROCESS.total + 4 * GIB}

    playing(monkeypatch, scenario)


def test_what_a_process_takes_without_a_model_is_learned_from_the_largest_where_that_can_be_told(monkeypatch):
    async def scenario(place):
        model = Model(rank_bytes=(GIB, GIB), devices=("cuda:0", "cuda:1"))
        fit = await place.take(model)
        measured = [replace(PROCESS, runtime=size * MIB) for size in (5, 9)]
        place.room.correct("m", fit, measured, learn=False)
        assert place.room.runtime == UNMEASURED_BYTES
        place.room.correct("m", fit, measured, learn=True)
        assert place.room.runtime == UNMEASURED_BYTES | {"cuda": 9 * MIB}
        place.room.release("m")
        await place.take(model)
        assert model.runtimes[-1]["cuda"] == 9 * MIB, "the next plan knows it"

    playing(monkeypatch, scenario)


@pytest.mark.parametrize("devices", [("cpu",), None], ids=["asked for", "all there is"])
def test_before_the_first_plan_for_a_cpu_a_process_is_measured_once(monkeypatch, devices):
    async def scenario(place):
        model = Model(devices=devices, host_state_memory=0)
        for _ in range(2):
            await place.take(model, reuse=True)
            place.room.release("m")
        assert place.waiting.measures == ["cpu"]
        assert place.room.runtime["cpu"] == 7 * MIB
        assert model.runtimes[-1]["cpu"] == 7 * MIB

    playing(monkeypatch, scenario, names=("cpu",))


def test_no_process_is_measured_for_a_gpu_or_an_engine_of_another_kind(monkeypatch):
    async def scenario(place):
        await place.take(Model(), reuse=True)
        place.room.release("m")
        await place.take(Model(devices=("cpu",)), reuse=False)
        assert place.waiting.measures == []

    playing(monkeypatch, scenario)


def test_what_a_load_was_short_of_is_booked_on_top_for_each_rank_of_either_kind(monkeypatch):
    async def scenario(place):
        for devices in (("cuda:0", "cuda:1"), ("cpu",)):
            model = Model(rank_bytes=(GIB, 2 * GIB), devices=devices, host_state_memory=0)
            before = await place.take(model)
            place.room.release("m")
            after = await place.take(model, spare=100 * MIB)
            place.room.release("m")
            more = [b - a for a, b in zip(before.rank_budgets, after.rank_budgets, strict=True)]
            assert more == [100 * MIB] * 2
            booked = sum(after.reservations.values()) - sum(before.reservations.values())
            assert booked == 200 * MIB

    playing(monkeypatch, scenario)


def test_a_release_gives_everything_back_and_lets_processes_wait_again(monkeypatch):
    async def scenario(place):
        await place.take(Model())
        tended, settled = place.waiting.tended, place.waiting.settled
        place.room.release("m")
        assert place.ledger.held_by("m") == {}
        assert (place.waiting.tended, place.waiting.settled) == (tended + 1, settled + 1)
        assert [place.ledger.reserved(name) for name in place.ledger.devices] == [0, 0, 0]
        place.room.release("m")  # which nobody has by now

    playing(monkeypatch, scenario)


def test_a_pool_that_changes_is_booked_by_its_change_on_each_device(monkeypatch):
    async def scenario(place):
        fit = await place.take(Model(rank_bytes=(GIB, GIB), devices=("cuda:0", "cuda:1")))
        held = place.ledger.held_by("m")
        place.room.resized("m", {"cuda:0": -3 * MIB, "cuda:1": 2 * MIB})
        assert place.ledger.held_by("m") == held | {
            "cuda:0": held["cuda:0"] - 3 * MIB,
            "cuda:1": held["cuda:1"] + 2 * MIB,
        }
        assert fit.elsewhere == {"cpu": held["cpu"]}, "states of the host are no pool"

    playing(monkeypatch, scenario)
