"""The line for memory, played through on a clock that costs no time: loads, answers and turns take what they
say, and every wish is granted within its bound."""

import asyncio
import itertools
import random
import selectors
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import neuron.memory.room
from ipc.errors import Code, CortexError
from ipc.messages.requests import Eviction
from ipc.messages.state import Device
from neuron.config import Memory
from neuron.memory.cache_plan import CachePlan
from neuron.memory.devices import Inventory
from neuron.memory.eviction import HALF_LIFE, RESIDENCY_SHARE, Holder, PoolShare, RecentUse
from neuron.memory.fit import Need
from neuron.memory.ledger import Ledger
from neuron.memory.room import Room, Tenant
from tests.doubles import stands_for
from tests.neuron.doubles import NoStandby

TOTAL = 100  # bytes of the one device
TURN = 5.0
LOAD = 2.0
RESIZE = 0.1


class Instant(selectors.SelectSelector):
    """Waits by moving a clock."""

    now = 0.0

    def select(self, timeout=None):
        ready = super().select(0)
        if not ready and timeout:
            self.now += timeout
        return ready


class Loop(asyncio.SelectorEventLoop):
    def __init__(self):
        self.clock = Instant()
        super().__init__(self.clock)

    def time(self):
        return self.clock.now


def play(scenario, monkeypatch):
    """Run `scenario` on a clock of its own."""
    loop = Loop()
    clock = types.SimpleNamespace(monotonic=loop.time)
    with monkeypatch.context() as patch:
        patch.setattr(neuron.memory.room, "time", clock)
        patch.setattr(neuron.memory.room.asyncio, "to_thread", at_once)
        try:
            return loop.run_until_complete(asyncio.wait_for(scenario, 100_000))
        finally:
            loop.close()


async def at_once(function, *args):
    return function(*args)


@stands_for(Inventory)
class Untouched(Inventory):
    """Devices of which nobody else has anything."""

    def __init__(self, names):
        self.devices = [
            Device(id=name, kind="cuda", name="", memory_total=TOTAL, memory_free=TOTAL) for name in names
        ]
        self.ledger = Ledger(self.devices)

    def refresh(self):
        self.devices = [
            replace(device, memory_free=TOTAL - self.ledger.reserved(device.id)) for device in self.devices
        ]
        return self.devices


@stands_for(Tenant)
class Model:
    """As `ManagedModel` is to a room: it loads, serves, drains and ends."""

    def __init__(self, place, name, size, *, pin=False, priority=100, spare=0):
        self.place, self.id, self.size, self.pin, self.priority = place, name, size, pin, priority
        self.use = RecentUse()
        self.status = "unloaded"
        self.last_used = 0.0
        self.reload_seconds = LOAD
        self.open = self.running = 0  # requests
        self.ready_at = 0.0
        self.loads = 0
        self.changed = asyncio.Event()
        self.task = None
        self.places = []
        self.resizes = []
        self.waits = []
        self.error = None
        self.spare, self.lacking, self.given = spare, 0, 0  # bytes of its pool, which has a page a byte

    def need(self, runtime):
        return Need(
            model=self.id,
            rank_bytes=(self.size,),
            caches=CachePlan(),
            context_length=32,
            max_sequences=1,
            priority=self.priority,
            devices=self.place.devices.get(self.id),
        )

    def holder(self, reserved):
        now = asyncio.get_running_loop().time()
        return Holder(
            self.id,
            {name: size - self.given for name, size in reserved.items()},
            pool=PoolShare(dict.fromkeys(reserved, 1), self.spare, self.lacking) if self.can_change else None,
            coming=dict.fromkeys(reserved, self.given) if self.given else {},
            changes=bool(self.given),
            priority=self.priority,
            last_used=self.last_used,
            pinned=self.pin,
            busy=self.status in ("waiting", "loading") or self.open > 0,
            leaving=self.status == "draining",
            reload_seconds=self.reload_seconds,
            recent_use=self.use.at(now),
            recent_requests=self.use.requests(now),
        )

    @property
    def turn_ends(self):
        return self.ready_at + TURN if self.status in ("ready", "draining") else None

    @property
    def seconds_to_leave(self):
        return 1.0

    @property
    def can_change(self):
        return self.status == "ready" and not self.given and bool(self.spare or self.lacking)

    def resize(self, pages):
        assert self.can_change
        assert -self.spare <= pages <= self.lacking
        self.resizes.append(pages)
        self.spare += pages
        self.lacking -= pages
        if pages < 0:
            self.given = -pages
            asyncio.get_running_loop().call_later(RESIZE, self.has_shrunk)

    def has_shrunk(self):
        given, self.given = self.given, 0
        self.place.room.resized(self.id, {"cuda:0": -given})

    def give_way(self):
        if self.status == "ready":
            self.status = "draining"
            self.check()

    def stay(self):
        if self.status == "draining":
            self.become("ready")

    def become(self, status):
        self.status = status
        self.changed.set()
        self.changed = asyncio.Event()

    def check(self):
        """A model that drains ends with its last request."""
        if self.status == "draining" and not self.running:
            self.become("unloaded")
            self.place.room.release(self.id)

    async def bring_up(self):
        try:
            await self.place.room.take(self, self.places.append)
        except CortexError as error:
            self.error = error
            self.become("unloaded")
            return
        self.status = "loading"
        self.loads += 1
        await self.load()
        self.ready_at = asyncio.get_running_loop().time()
        self.become("ready")
        self.place.room.look()

    async def load(self):
        await asyncio.sleep(self.reload_seconds)

    async def serve(self, seconds):
        """One request: how long it waited to begin."""
        loop = asyncio.get_running_loop()
        began = self.last_used = loop.time()
        self.error = None
        self.open += 1
        try:
            await self.ready()
            self.waits.append(loop.time() - began)
            self.running += 1
            await asyncio.sleep(seconds)
            self.running -= 1
        finally:
            self.open -= 1
        self.last_used = loop.time()
        self.use.add(self.last_used)
        self.check()
        self.place.room.look()

    async def ready(self):
        while self.status != "ready":
            if self.status == "unloaded":
                self.become("waiting")
                self.task = asyncio.create_task(self.bring_up())
            await self.changed.wait()
            if self.error is not None:
                raise self.error


class Slow(NoStandby):
    """Processes that take so many seconds to make way."""

    def __init__(self, seconds):
        self.seconds = seconds

    async def make_way(self, amounts, *, reuse):
        await asyncio.sleep(self.seconds)


class Place:
    """A room and the models of a test; `sizes` by name, of TOTAL bytes on each of the `names`."""

    def __init__(
        self,
        sizes,
        *,
        wait_seconds=1000.0,
        pinned=(),
        names=("cuda:0",),
        devices=None,
        priorities=None,
        spares=None,
    ):
        inventory = Untouched(names)
        self.devices = devices or {}
        priorities = priorities or {}
        memory = Memory(wait_seconds=wait_seconds, turn_seconds=TURN)
        self.room = Room(memory, inventory.ledger, inventory, NoStandby(), self.check)
        self.ledger = inventory.ledger
        self.models = {
            name: Model(
                self,
                name,
                size,
                pin=name in pinned,
                priority=priorities.get(name, 100),
                spare=(spares or {}).get(name, 0),
            )
            for name, size in sizes.items()
        }

    def check(self):
        assert all(self.ledger.reserved(device) <= TOTAL for device in self.ledger.devices)

    async def users(self, name, count, seconds, until):
        """So many who ask for one answer after the other."""

        async def user():
            while asyncio.get_running_loop().time() < until:
                await self.models[name].serve(seconds)

        await asyncio.gather(*(user() for _ in range(count)))


def test_steady_traffic_on_one_model_does_not_starve_another_and_back(monkeypatch):
    async def scenario():
        place = Place({"a": 60, "b": 60})
        await asyncio.gather(place.users("a", 5, 1.0, 300), place.users("b", 1, 1.0, 300))
        bound = TURN + 1.0 + LOAD  # the turn of the other, its last answer, and the load
        for model in place.models.values():
            assert max(model.waits) <= 2 * LOAD + bound
            assert len(model.waits) > 20
        await place.room.close()

    play(scenario(), monkeypatch)


@given(
    sizes=st.dictionaries(st.sampled_from("abcdef"), st.integers(10, 100), min_size=2, max_size=6),
    users=st.integers(1, 4),
    seconds=st.floats(0.1, 5.0),
    strategy=st.sampled_from(["cost", "lru", "priority"]),
)
@settings(max_examples=15, deadline=None)
def test_everybody_who_fits_is_served_within_a_bound_whatever_the_mix(sizes, users, seconds, strategy):
    async def scenario():
        place = Place(sizes)
        place.room.eviction = Eviction(strategy=strategy)
        await asyncio.gather(*(place.users(name, users, seconds, 80) for name in sizes))
        # Each of those before it: the turns of all that hold memory, their last answers, and its load.
        bound = (len(sizes) + 1) * (TURN + seconds + 2 * LOAD + 1.0)
        for model in place.models.values():
            assert max(model.waits) <= bound
        await place.room.close()

    with pytest.MonkeyPatch.context() as patch:
        play(scenario(), patch)


def test_a_short_load_passes_a_long_one_that_came_little_before_it_and_no_other(monkeypatch):
    async def scenario():
        place = Place({"held": 100, "long": 100, "early": 100, "late": 100})
        place.models["long"].reload_seconds = 10.0
        begun = []

        async def ask(name, after, seconds=1.0):
            await asyncio.sleep(after)
            await place.models[name].serve(seconds)
            begun.append(name)

        await asyncio.gather(
            *(ask("held", 0.0, 12.0), ask("long", LOAD + 0.1)),
            *(ask("early", LOAD + 1.0), ask("late", LOAD + 9.0)),
        )
        assert begun == ["held", "early", "long", "late"]
        await place.room.close()

    play(scenario(), monkeypatch)


def test_idle_models_leave_at_once_and_the_least_recently_used_first(monkeypatch):
    async def scenario():
        place = Place({"a": 40, "b": 40, "c": 40})
        for name in "abac":
            await place.models[name].serve(1.0)
        assert [model.status for model in place.models.values()] == ["ready", "unloaded", "ready"]
        assert place.models["c"].waits == [pytest.approx(LOAD)]
        await place.room.close()

    play(scenario(), monkeypatch)


def test_a_wish_that_others_stand_before_is_told_its_place(monkeypatch):
    async def scenario():
        place = Place({"a": 100, "b": 100, "c": 100})
        running = asyncio.create_task(place.models["a"].serve(50.0))
        await asyncio.sleep(LOAD + 1)
        rest = [asyncio.create_task(place.models[name].serve(1.0)) for name in "bc"]
        await asyncio.sleep(1)
        assert [(place.models[name].places[-1].position) for name in "bc"] == [1, 2]
        assert place.models["b"].places[-1].holders == ("a",)
        await asyncio.gather(running, *rest)
        assert place.models["c"].places[-1].position == 1
        await place.room.close()

    play(scenario(), monkeypatch)


def test_a_small_wish_passes_a_large_one_where_it_takes_nothing_from_it(monkeypatch):
    async def scenario():
        place = Place({"a": 50, "large": 60, "small": 10, "medium": 45})
        running = asyncio.create_task(place.models["a"].serve(50.0))
        await asyncio.sleep(LOAD + 1)
        large = asyncio.create_task(place.models["large"].serve(1.0))
        await asyncio.sleep(1)
        await place.models["small"].serve(1.0)
        assert place.models["small"].waits == [pytest.approx(LOAD)]
        medium = asyncio.create_task(place.models["medium"].serve(1.0))  # what large waits for
        await asyncio.sleep(10)
        assert place.models["medium"].status == place.models["large"].status == "waiting"
        await asyncio.gather(running, large, medium)
        await place.room.close()

    play(scenario(), monkeypatch)


def test_a_wait_is_bounded_and_says_for_whom(monkeypatch):
    async def scenario():
        place = Place({"a": 100, "b": 100}, wait_seconds=20.0)
        running = asyncio.create_task(place.models["a"].serve(100.0))
        await asyncio.sleep(LOAD + 1)
        with pytest.raises(CortexError, match="a had not finished with") as refused:
            await place.models["b"].serve(1.0)
        assert refused.value.code == Code.INSUFFICIENT_MEMORY
        assert asyncio.get_running_loop().time() == pytest.approx(LOAD + 21, abs=1.0)
        await asyncio.sleep(1)
        assert place.models["a"].status == "ready"
        await running
        await place.room.close()

    play(scenario(), monkeypatch)


def test_what_comes_free_after_its_time_is_not_granted_to_a_wish(monkeypatch):
    async def scenario():
        devices = {"a": ("cuda:0",), "b": ("cuda:1",), "first": ("cuda:0",), "second": ("cuda:1",)}
        place = Place(
            dict.fromkeys(devices, 100), wait_seconds=20.0, names=("cuda:0", "cuda:1"), devices=devices
        )
        await asyncio.gather(place.models["a"].ready(), place.models["b"].ready())
        holding = [asyncio.create_task(place.models[name].serve(15.0)) for name in "ab"]
        monkeypatch.setattr(place.room, "_lender", Slow(10.0))
        served = [asyncio.create_task(place.models[name].serve(1.0)) for name in ("first", "second")]
        await asyncio.wait([*holding, *served])
        assert served[0].exception() is None
        assert "waited 20 s" in served[1].exception().message
        await place.room.close()

    play(scenario(), monkeypatch)


def test_what_only_a_pinned_model_could_make_room_for_is_refused_at_once(monkeypatch):
    async def scenario():
        place = Place({"pinned": 60, "b": 60}, pinned=["pinned"])
        await place.models["pinned"].serve(1.0)
        began = asyncio.get_running_loop().time()
        with pytest.raises(CortexError, match="is pinned"):
            await place.models["b"].serve(1.0)
        assert asyncio.get_running_loop().time() - began < 1.0
        await place.room.close()

    play(scenario(), monkeypatch)


def test_memory_that_comes_back_late_is_waited_for(monkeypatch):
    async def scenario():
        place = Place({"a": 100, "b": 100})
        await place.models["a"].serve(1.0)
        inventory, lag = place.room._inventory, itertools.count()

        def refresh():  # the driver says for a second that all is still taken
            free = 0 if asyncio.get_running_loop().time() < ended + 1.0 else TOTAL
            next(lag)
            return [Device(id="cuda:0", kind="cuda", name="", memory_total=TOTAL, memory_free=free)]

        ended = asyncio.get_running_loop().time()
        inventory.refresh = refresh
        await place.models["b"].serve(1.0)
        assert place.models["b"].waits[0] == pytest.approx(1.0 + LOAD, abs=0.6)
        await place.room.close()

    play(scenario(), monkeypatch)


def test_a_random_life_leaves_nothing_booked(monkeypatch):
    async def scenario():
        place, chance = Place(dict.fromkeys("abcd", 40)), random.Random(1)

        async def visitor():
            await asyncio.sleep(chance.uniform(0, 100))
            request = asyncio.create_task(place.models[chance.choice("abcd")].serve(chance.uniform(0.1, 3)))
            await asyncio.wait([request])

        await asyncio.gather(*(visitor() for _ in range(200)))
        for model in place.models.values():
            model.give_way()
        assert place.ledger.reserved("cuda:0") == 0
        await place.room.close()

    play(scenario(), monkeypatch)


def test_a_prospect_says_whom_it_would_cost_something(monkeypatch):
    async def scenario():
        place = Place({"a": 100, "b": 100})
        await place.models["a"].serve(1.0)
        at_once = await place.room.prospect(place.models["b"])
        assert at_once.verdict == "evicts"
        assert at_once.loss == pytest.approx(LOAD)
        await asyncio.sleep(HALF_LIFE)
        later = await place.room.prospect(place.models["b"])
        assert later.loss == pytest.approx(LOAD / 2, rel=0.15)
        await place.room.close()

    play(scenario(), monkeypatch)


def test_a_swap_between_equals_waits_for_the_residency_of_the_other_and_says_so(monkeypatch):
    async def scenario():
        place = Place({"a": 60, "b": 60})
        place.room.eviction = Eviction(min_residency_seconds=30.0)
        await place.models["a"].serve(1.0)
        prospect = await place.room.prospect(place.models["b"])
        assert (prospect.verdict, prospect.fit.victims) == ("waits", ("a",))
        assert prospect.seconds == pytest.approx(30.0 - 1.0)
        for _ in range(3):
            for name in "ba":
                await place.models[name].serve(0.1)
        waits = [wait for model in place.models.values() for wait in model.waits[-3:]]
        assert min(waits) == pytest.approx(30.0 - 0.1 + LOAD, abs=1.0)
        await place.room.close()

    play(scenario(), monkeypatch)


def test_two_that_swap_all_the_time_stay_for_a_share_of_what_their_load_took(monkeypatch):
    async def scenario():
        place = Place({"a": 60, "b": 60})
        for model in place.models.values():
            model.reload_seconds = 80.0
        await place.models["a"].serve(1.0)
        await place.models["b"].serve(1.0)
        assert place.models["b"].waits == [pytest.approx(RESIDENCY_SHARE * 80.0 - 1.0 + 80.0, abs=1.0)]
        await place.room.close()

    play(scenario(), monkeypatch)


def test_a_higher_class_waits_for_no_residency_and_a_lower_one_displaces_nobody_above(monkeypatch):
    async def scenario():
        place = Place({"low": 60, "high": 60}, priorities={"high": 200})
        place.room.eviction = Eviction(min_residency_seconds=1000.0)
        await place.models["low"].serve(1.0)
        await place.models["high"].serve(1.0)
        assert place.models["high"].waits == [pytest.approx(LOAD)]
        for strategy in ("cost", "lru", "priority"):
            place.room.eviction = Eviction(strategy=strategy)
            with pytest.raises(CortexError, match="has priority 200, above its 100"):
                await place.models["low"].serve(1.0)
        assert place.models["high"].status == "ready"
        await place.room.close()

    play(scenario(), monkeypatch)


def test_what_costs_least_to_bring_back_leaves_and_the_quote_and_the_log_say_the_same(monkeypatch, caplog):
    async def scenario():
        place = Place({"slow": 50, "quick": 50, "new": 50})
        place.models["slow"].reload_seconds = 60.0
        await place.models["slow"].serve(1.0)
        await place.models["quick"].serve(1.0)  # used last, and back soonest
        await asyncio.sleep(10)
        quoted = await place.room.prospect(place.models["new"])
        assert quoted.fit.victims == ("quick",)
        with caplog.at_level("INFO", "neuron.memory.room"):
            await place.models["new"].serve(1.0)
        assert [place.models[name].status for name in ("slow", "quick")] == ["ready", "unloaded"]
        [line] = [record.getMessage() for record in caplog.records if "making room" in record.getMessage()]
        assert "model=new strategy=cost leave=quick (2.00 s to load x 0.8" in line
        assert "stay=slow (60.00 s to load" in line
        await place.room.close()

    play(scenario(), monkeypatch)


def test_a_load_that_ran_out_of_memory_has_one_idle_model_more_leave(monkeypatch):
    async def scenario():
        place = Place({"a": 30, "b": 30, "new": 30})
        for name in "ab":
            await place.models[name].serve(1.0)
        await asyncio.sleep(60)
        new = place.models["new"]
        await place.room.take(new, new.places.append)
        place.room.release("new")  # its device had less than the books say
        await place.room.take(new, new.places.append, spare=1)
        await asyncio.sleep(5)
        assert [place.models[name].status for name in "ab"] == ["unloaded", "ready"]
        await place.room.close()

    play(scenario(), monkeypatch)


def test_wishes_for_other_devices_do_not_wait_for_each_other(monkeypatch):
    async def scenario():
        where = {"a": ("cuda:0",), "b": ("cuda:0",), "c": ("cuda:1",)}
        place = Place(dict.fromkeys("abc", 80), names=("cuda:0", "cuda:1"), devices=where)
        busy = asyncio.create_task(place.models["a"].serve(50.0))
        await asyncio.sleep(LOAD + 1)
        waiting = asyncio.create_task(place.models["b"].serve(1.0))
        await asyncio.sleep(1)
        await place.models["c"].serve(1.0)
        assert place.models["c"].waits == [pytest.approx(LOAD)]
        assert place.models["b"].status == "waiting"
        await asyncio.gather(busy, waiting)
        await place.room.close()

    play(scenario(), monkeypatch)


def test_a_model_that_leaves_while_another_wish_is_granted_disturbs_nobody(monkeypatch, caplog):
    async def scenario():
        where = {"a": ("cuda:0",), "b": ("cuda:0",), "c": ("cuda:1",)}
        place = Place(dict.fromkeys("abc", 80), names=("cuda:0", "cuda:1"), devices=where)
        await place.models["a"].serve(1.0)
        monkeypatch.setattr(place.room, "_lender", Slow(1.0))
        both = [asyncio.create_task(place.models[name].serve(1.0)) for name in "cb"]
        await asyncio.sleep(0.5)
        place.models["a"].become("unloaded")
        place.room.release("a")
        await asyncio.gather(*both)
        await place.room.close()

    play(scenario(), monkeypatch)
    assert "cannot be served" not in caplog.text


def test_a_pool_shrinks_for_another_model_and_nobody_leaves(monkeypatch):
    async def scenario():
        place = Place({"a": 80, "b": 30}, spares={"a": 50}, pinned=("a",))
        a, b = place.models.values()
        running = asyncio.create_task(a.serve(1000.0))
        await asyncio.sleep(LOAD + 1)
        await b.serve(1.0)
        assert b.waits == [pytest.approx(LOAD + RESIZE)]
        assert (a.status, a.loads, a.resizes) == ("ready", 1, [-10])
        assert place.ledger.held_by("a") == {"cuda:0": 70}
        running.cancel()
        await place.room.close()

    play(scenario(), monkeypatch)


def test_what_a_pool_gave_up_comes_back_when_it_is_free(monkeypatch):
    async def scenario():
        place = Place({"a": 80, "b": 30}, spares={"a": 50})
        a, b = place.models.values()
        await a.serve(1.0)
        await b.serve(1.0)
        b.give_way()
        await asyncio.sleep(1.0)
        assert a.resizes == [-10, 10]
        assert place.ledger.held_by("a") == {"cuda:0": 80}
        await place.room.close()

    play(scenario(), monkeypatch)


def test_a_pool_grows_into_what_is_free_and_not_by_a_little(monkeypatch):
    async def scenario():
        place = Place({"a": 50, "b": 49})
        a, b = place.models.values()
        a.lacking = 40
        await b.serve(1.0)
        await a.serve(1.0)
        assert not a.resizes  # one byte is free, of 40
        b.give_way()
        await asyncio.sleep(1.0)
        assert a.resizes == [40]
        assert place.ledger.held_by("a") == {"cuda:0": 90}
        await place.room.close()

    play(scenario(), monkeypatch)


def test_two_who_come_at_once_are_not_promised_the_same_pages(monkeypatch):
    async def scenario():
        place = Place({"a": 90, "b": 30, "c": 30}, spares={"a": 60})
        a, b, c = place.models.values()
        await a.serve(1.0)
        await asyncio.gather(b.serve(1.0), c.serve(1.0))
        assert [model.status for model in place.models.values()] == ["ready"] * 3
        assert sum(a.resizes) == -50
        await place.room.close()

    play(scenario(), monkeypatch)


def test_a_pool_that_does_not_shrink_in_time_is_not_waited_for(monkeypatch):
    async def scenario():
        place = Place({"a": 80, "b": 30}, spares={"a": 50})
        a, b = place.models.values()
        await a.serve(1.0)
        a.has_shrunk = lambda: None  # nothing comes of it, as with a step that goes on for minutes
        asyncio.get_running_loop().call_later(10.0, setattr, a, "given", 0)
        a.resize = lambda pages: (setattr(a, "given", -pages), setattr(a, "spare", 0))
        await b.serve(1.0)
        assert a.status == "unloaded"
        assert 10.0 <= b.waits[0] - LOAD < 11.0
        await place.room.close()

    play(scenario(), monkeypatch)


def test_who_is_behind_one_for_whom_a_pool_shrinks_waits_and_is_not_refused(monkeypatch):
    async def scenario():
        place = Place({"a": 90, "b": 30, "c": 30}, spares={"a": 25}, pinned=("a",))
        a, b, c = place.models.values()
        await a.serve(1.0)
        await asyncio.gather(b.serve(1.0), c.serve(1.0))  # not both fit beside it
        assert (b.error, c.error) == (None, None)
        assert (a.status, a.loads, sum(a.resizes)) == ("ready", 1, -20)
        await place.room.close()

    play(scenario(), monkeypatch)


def test_nobody_leaves_while_a_pool_shrinks_however_long_that_takes(monkeypatch):
    monkeypatch.setattr("tests.neuron.test_room.RESIZE", 3.0)

    async def scenario():
        place = Place({"a": 80, "b": 30}, spares={"a": 50})
        a, b = place.models.values()
        await a.serve(1.0)
        loading = asyncio.create_task(b.serve(1.0))
        await asyncio.sleep(2.0)
        place.room.look()
        await asyncio.sleep(0.1)
        assert (a.status, a.resizes) == ("ready", [-10])
        await loading
        assert a.status == "ready"
        await place.room.close()

    play(scenario(), monkeypatch)
