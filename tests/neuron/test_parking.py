"""What is parked: within its budget, in the ledger, and gone when somebody needs its memory."""

import asyncio
import errno
import mmap
import os
from types import SimpleNamespace

import pytest

from ipc import parked
from ipc.errors import CortexError
from ipc.messages.state import Device
from ipc.worker_messages import MemoryUse, Ready
from neuron.admission.request_queue import RequestQueue
from neuron.config import Memory, ModelSettings, NeuronConfig, Queue
from neuron.description import describe
from neuron.memory.fit import Fit
from neuron.memory.ledger import Ledger
from neuron.memory.outlook import Prospect
from neuron.memory.parking import SPARE_SHARE, Parking, automatic_budget
from neuron.memory.room import Room
from neuron.models.manager import ModelManager
from neuron.processes.backoff import Backoff
from neuron.processes.group import WorkerGroup
from neuron.tenancy.launcher import Launcher, parked_identity
from neuron.tenancy.renewal import Renewal
from neuron.tenancy.tenancy import Tenancy
from tests.doubles import stands_for
from tests.neuron.doubles import described
from tests.neuron.folders import write_checkpoint
from workers.checkpoints.shares import Split

TOTAL = 1 << 20  # bytes of the host
HEAD = parked.HEAD


class Place:
    """A host, and what is parked on it."""

    def __init__(self, budget, *, devices=("cpu",)):
        self.ledger = Ledger(
            Device(id=name, kind="cpu", name="", memory_total=TOTAL, memory_free=TOTAL) for name in devices
        )
        self.elsewhere = 0  # bytes that other programs have
        self.told = []
        self.worth = {}
        self.used = []  # the last one was used last
        self.parking = Parking(
            budget,
            self.ledger,
            self._host,
            self.told.append,
            worth=lambda name: self.worth.get(name, 0.0),
            used=lambda name: self.used.index(name) if name in self.used else -1,
        )

    def _host(self):
        return TOTAL, TOTAL - self.elsewhere - self.parking.held

    def park(self, model, size=100 * 1024, *, identity="files", ranks=1):
        """As a load does that is ready."""
        loan = self.parking.lend(model, identity, [size] * ranks)
        if loan is not None:
            for fd in loan.fds:
                fill(fd, size)
            self.parking.settle(loan, loaded=True)
        return loan

    @property
    def models(self):
        return {name for name in "abcdef" if self.parking.bytes_of(name)}


def fill(fd, size):
    os.truncate(fd, size)
    parked.sign(fd, bytes(parked.DIGEST))


@pytest.fixture
def place():
    place = Place(300 * 1024)
    yield place
    place.parking.close()
    assert place.ledger.reserved("cpu") == 0


def test_what_a_load_filled_is_lent_to_the_next_one_and_cannot_be_changed(place):
    first = place.park("a", ranks=2)
    again = place.parking.lend("a", "files", [1, 1])
    assert again is first
    assert again.whole
    for fd in again.fds:
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
    place.parking.settle(again, loaded=True, woken=True)
    assert place.parking.bytes_of("a") == place.ledger.reserved("cpu") == 200 * 1024
    assert place.told == ["a"]


def test_what_was_used_longest_ago_leaves_when_the_budget_is_short(place):
    for name in "abc":
        place.park(name)
    place.used = ["b", "c", "a"]
    place.park("d")
    assert place.models == {"a", "c", "d"}
    assert place.parking.held == 300 * 1024 == place.ledger.reserved("cpu")


def test_what_saves_least_for_its_bytes_leaves_and_nothing_does_for_what_saves_less(place):
    place.worth = {"a": 5.0, "b": 1.0, "c": 3.0, "d": 0.5, "e": 2.0, "f": 3.5}
    for name in "abcd":
        place.park(name)
    assert place.models == {"a", "b", "c"}
    place.park("e")
    assert place.models == {"a", "c", "e"}
    place.park("f", 200 * 1024)  # two would have to leave, which save more together
    assert place.models == {"a", "c", "e"}


def test_what_never_fits_is_not_parked_and_nobody_leaves_for_it(place):
    place.park("a")
    assert place.park("b", 301 * 1024) is None
    assert place.models == {"a"}
    assert Place(0).park("a", 1) is None


def test_nothing_is_parked_in_memory_that_others_hold(place):
    place.elsewhere = TOTAL - 200 * 1024
    assert place.park("a") is not None
    assert place.park("b") is None
    place.elsewhere = 0
    place.ledger.reserve("model", {"cpu": TOTAL - 150 * 1024})
    assert place.park("c") is None
    place.ledger.release("model")


def test_what_may_have_no_new_memory_comes_back_from_what_it_has_parked_before(place):
    assert place.parking.lend("b", "files", [1], new=False) is None
    parked_before = place.park("a")
    assert place.parking.lend("a", "files", [1], new=False) is parked_before
    place.parking.settle(parked_before, loaded=True, woken=True)
    assert place.parking.lend("a", "other files", [1], new=False) is None
    assert not place.models


def test_other_files_are_other_weights(place):
    old = place.park("a", identity="files")
    new = place.parking.lend("a", "other files", [100])
    assert new is not old
    assert not new.whole
    assert place.parking.bytes_of("a") == 0
    assert os.fstat(new.fds[0]).st_size == 0
    place.parking.settle(new, loaded=False)


@pytest.mark.parametrize("half", ["nothing", "unsigned", "one rank"])
def test_a_load_that_did_not_get_there_leaves_no_half(place, half):
    loan = place.parking.lend("a", "files", [1000, 1000])
    if half != "nothing":
        os.truncate(loan.fds[0], 5000)
    if half == "one rank":
        fill(loan.fds[0], 5000)
    place.parking.settle(loan, loaded=half == "one rank")
    assert place.parking.bytes_of("a") == place.parking.held == 0
    assert place.told == []


def test_memory_that_a_worker_can_still_write_is_not_kept(place):
    loan = place.parking.lend("a", "files", [1000])
    fill(loan.fds[0], 5000)
    with mmap.mmap(loan.fds[0], 5000):  # so it cannot be sealed
        place.parking.settle(loan, loaded=True)
    assert place.parking.held == place.ledger.reserved("cpu") == 0
    assert place.told == []


def test_descriptors_that_could_not_all_be_had_are_given_back(place, monkeypatch):
    made = []

    def create(name, create=parked.create):
        if made:
            raise OSError(errno.EMFILE, "too many")
        made.append(create(name))
        return made[0]

    monkeypatch.setattr(parked, "create", create)
    assert place.parking.lend("a", "files", [1, 1]) is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(made[0])


def test_weights_that_a_wake_could_not_use_are_read_again_from_files(place):
    place.park("a")
    loan = place.parking.lend("a", "files", [1])
    place.parking.settle(loan, loaded=True, woken=False)
    assert place.models == set()
    assert place.told == ["a", "a"]


def test_a_model_that_needs_the_memory_gets_it_and_its_own_weights_leave_last(place):
    for name in "ba":
        place.park(name)
    free = place.ledger.free("cpu")
    assert place.parking.booked("cpu") == 200 * 1024
    place.parking.make_way("b", {"cpu": free})
    assert place.models == {"a", "b"}
    place.parking.make_way("b", {"cpu": free + 1})
    assert place.models == {"b"}
    place.parking.make_way("b", {"cpu": free + 200 * 1024})
    assert place.models == set()
    place.ledger.reserve("b", {"cpu": free + 200 * 1024})
    place.ledger.release("b")


def test_what_a_load_reads_or_fills_does_not_leave(place):
    place.park("a")
    reading, filling = place.parking.lend("a", "files", [1]), place.parking.lend("b", "files", [100 * 1024])
    assert place.parking.booked("cpu") == 0
    assert place.parking.coming("cpu") == 200 * 1024
    place.parking.make_way("c", {"cpu": TOTAL})
    assert place.park("c", 150 * 1024) is None
    place.elsewhere = TOTAL
    place.parking.relieve()
    assert place.models == {"a"}
    place.parking.settle(reading, loaded=True, woken=True)
    place.parking.settle(filling, loaded=False)
    assert (place.parking.booked("cpu"), place.parking.coming("cpu")) == (100 * 1024, 0)


def test_a_host_that_runs_short_gets_its_memory_back(place):
    for name in "abc":
        place.park(name)
    place.parking.relieve()
    assert place.models == {"a", "b", "c"}
    place.elsewhere = TOTAL - 300 * 1024  # nothing is free
    place.parking.relieve()
    assert place.models == {"b", "c"}
    assert TOTAL - place.elsewhere - place.parking.held >= SPARE_SHARE * TOTAL


def test_a_neuron_that_may_not_use_the_cpu_parks_all_the_same_and_books_nothing():
    place = Place(300 * 1024, devices=("cuda:0",))
    place.park("a")
    assert place.models == {"a"}
    assert place.parking.booked("cpu") == place.parking.coming("cpu") == 0
    place.parking.make_way("b", {"cuda:0": TOTAL})
    assert place.models == {"a"}
    place.parking.close()


@pytest.mark.parametrize(("devices", "budget"), [(["cpu"], 0), (["cuda:0", "cpu"], 500), (["cuda:1"], 500)])
def test_where_nobody_says_half_of_what_is_free_is_parked_beside_a_gpu(devices, budget):
    assert automatic_budget(devices, 1000) == budget


@stands_for(WorkerGroup)
class Group(WorkerGroup):
    """Whose one rank reads files slowly, or what is parked."""

    def __init__(self, fds):
        self.fds = fds

    def start(self):
        self.woken = parked.digest_of(self.fds[0]) is not None
        if not self.woken:
            fill(self.fds[0], 1000)

    async def ready(self, deadline):
        await asyncio.sleep(0.0 if self.woken else 0.05)
        return [Ready(1, 1, MemoryUse(), 0.0, woken=self.woken)]


@stands_for(Launcher)
class Loads(Launcher):
    def lend(self, settings, description, fit):
        return self.parking.lend(description.id, "files", [1000])

    def group(self, *args, parking_fds=(), **told):
        return Group(parking_fds)


def test_a_return_is_thought_to_take_as_long_as_the_last_one_did_of_it_or_of_another(place):
    launcher = Loads(NeuronConfig(), 1, parking=place.parking)
    room = Room(Memory(), place.ledger, None, None, print)
    fit = Fit(("cpu",), {}, (0,), 1, 1, 1000)

    def tenancy(name):
        told = dict.fromkeys(("on_loading", "on_steps", "on_death", "changed"), print)
        renewal = Renewal(ModelSettings(id=name), described(id=name), print)
        return Tenancy(renewal, room, launcher, Backoff(), RequestQueue(Queue(), 1), **told)

    async def scenario():
        one, other = tenancy("a"), tenancy("b")
        assert one.reload_seconds == 0
        for each in (one, other):
            await each.epochs.start(fit)
            assert each.bytes_parked
            assert each.reload_seconds == each.epochs.load_seconds > 0  # as long as nothing came back
        await other.epochs.start(fit)
        assert other.reload_seconds == other.epochs.wake_seconds
        share = min(1.0, other.epochs.wake_seconds / other.epochs.load_seconds)
        assert one.reload_seconds == share * one.epochs.load_seconds
        place.parking.drop("a")
        assert one.reload_seconds == one.epochs.load_seconds

    asyncio.run(scenario())


def test_a_load_whose_ranks_share_it_otherwise_is_not_thought_to_come_back(place, tmp_path):
    settings = ModelSettings(id="a", ranks=2)
    description = describe(settings, write_checkpoint(tmp_path, num_attention_heads=8, num_key_value_heads=4))
    launcher = Launcher(NeuronConfig(), 1, parking=place.parking)
    told = dict.fromkeys(("on_loading", "on_steps", "on_death", "changed"), print)
    renewal = Renewal(settings, description, print)
    room = Room(Memory(), place.ledger, None, None, print)
    tenancy = Tenancy(renewal, room, launcher, Backoff(), RequestQueue(Queue(), 1), **told)
    even, uneven = (Fit(("cpu", "cpu"), {}, (0, 0), 1, 1, 1000, split=Split(way)) for way in ((1, 1), (1, 3)))
    tenancy.epochs.load_seconds, tenancy.epochs.wake_seconds = 9.0, 1.0
    assert not tenancy.wakes(even)  # nothing is there
    place.park("a", identity=parked_identity(settings, description, even), ranks=2)
    assert [tenancy.wakes(fit) for fit in (even, uneven)] == [True, False]
    assert [tenancy.seconds_of_load(wakes=wakes) for wakes in (True, False)] == [1.0, 9.0]
    assert [launcher.lend(settings, description, fit).whole for fit in (even, uneven)] == [True, False]


def test_a_quote_promises_what_is_parked_only_to_the_fit_that_takes_it():
    async def prospect(tenant):
        return Prospect(planned.pop(), seconds=2.0)

    manager = ModelManager.__new__(ModelManager)
    manager.room = SimpleNamespace(prospect=prospect)
    even, uneven = (Fit(("cpu", "cpu"), {}, (0, 0), 1, 1, 1000, split=Split(way)) for way in ((1, 1), (1, 3)))
    tenant = SimpleNamespace(wakes=even.__eq__, seconds_of_load=lambda *, wakes: 1.0 if wakes else 9.0)
    requests = SimpleNamespace(waiting=0)
    model = SimpleNamespace(status="unloaded", bytes_parked=1000, tenant=tenant, requests=requests)
    planned = [uneven, even]
    quotes = [asyncio.run(manager.quote(model, 7)) for _ in range(2)]
    assert [(each.parked, each.seconds) for each in quotes] == [(True, 3.0), (False, 11.0)]


def test_what_is_parked_is_named_where_a_booking_is_refused(place):
    place.park("a")
    with pytest.raises(CortexError, match="parked a"):
        place.ledger.reserve("b", {"cpu": TOTAL})
