"""The line for memory, played through: every wish is granted within its bound."""

import asyncio
import itertools
import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc import parked
from ipc.errors import Code, CortexError
from ipc.messages.requests import Eviction
from ipc.messages.state import Device
from neuron.memory import room
from neuron.memory.eviction import HALF_LIFE, RESIDENCY_SHARE
from neuron.memory.parking import Parking
from tests.neuron.room_play import LOAD, TOTAL, TURN, Model, Place, Slow, play


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


def test_answers_that_take_too_long_are_interrupted_go_on_and_starve_nobody(monkeypatch):
    async def scenario():
        place = Place({"a": 60, "b": 60}, wait_seconds=40.0)
        await asyncio.gather(place.users("a", 3, 100.0, 1000), place.users("b", 1, 1.0, 1000))
        assert max(place.models["b"].waits) <= LOAD + TURN + 30.0 + 2.0  # three quarters of what it may wait
        assert len(place.models["b"].waits) > 15
        assert len(place.models["a"].waits) > 15
        await place.room.close()

    play(scenario(), monkeypatch)


def test_who_has_waited_out_its_patience_gets_the_memory_as_soon_as_a_turn_is_over(monkeypatch):
    async def scenario():
        place = Place({"a": 60, "b": 60, "c": 60}, wait_seconds=4 * (LOAD + TURN + 0.3))
        running = [asyncio.create_task(place.models["a"].serve(100.0))]
        await asyncio.sleep(LOAD)
        running += [asyncio.create_task(place.models[name].serve(10.0)) for name in "bc"]
        # a is interrupted for b after three quarters of what both may wait; c has its memory after b's turn
        await asyncio.gather(*running)
        assert place.models["c"].waits == [pytest.approx(3 * (LOAD + TURN + 0.3) + LOAD + TURN + LOAD)]
        await place.room.close()

    play(scenario(), monkeypatch)


def test_no_answer_is_lost_that_has_begun_however_long_the_loads_of_others_take(monkeypatch):
    async def scenario():
        place = Place(dict.fromkeys("abc", 60), wait_seconds=120.0)

        async def ask(name):
            model = place.models[name]
            model.reload_seconds = 60.0
            while not model.waits:
                try:
                    await model.serve(100.0)
                except CortexError:
                    assert not model.waits  # it had not begun

        await asyncio.gather(*map(ask, "abc"))
        assert min(model.loads for model in place.models.values()) > 3
        await place.room.close()

    play(scenario(), monkeypatch)


@pytest.mark.parametrize(
    ("loads", "seconds", "every"),
    [((45, 60, 80, 100), 100.0, 30.0), ((100,) * 4, 5.0, 15.0)],
    ids=["long answers", "long loads"],
)
def test_each_of_many_models_has_its_turn_and_who_comes_back_when_told_is_served(
    monkeypatch, loads, seconds, every
):
    monkeypatch.setattr(room, "LOOK_SECONDS", 5.0)

    async def scenario():
        place = Place(dict.fromkeys("abcd", 60), wait_seconds=120.0)
        outcomes = {name: [] for name in "abcd"}  # how often each request was refused before it was served

        async def ask(name, refusals=0):
            try:
                await place.models[name].serve(seconds)
            except CortexError as refused:
                await asyncio.sleep(refused.retry_after)
                await ask(name, refusals + 1)
            else:
                outcomes[name].append(refusals)

        async def traffic(name, load):
            place.models[name].reload_seconds = load
            asked = []
            for _ in range(round(1500 / every)):
                asked.append(asyncio.create_task(ask(name)))
                await asyncio.sleep(every)
            await asyncio.gather(*asked)

        await asyncio.gather(*map(traffic, "abcd", loads))
        assert max(map(max, outcomes.values())) == 1
        assert all(share.count(0) > 0.4 * len(share) for share in outcomes.values())
        assert max(max(model.waits) for model in place.models.values()) <= 120.0 + 100.0 + 1.0
        await place.room.close()

    play(scenario(), monkeypatch)


def test_who_came_later_is_not_refused_with_who_waited_too_long(monkeypatch):
    async def scenario():
        place = Place({"a": 100, "b": 100}, wait_seconds=20.0)
        place.models["a"].reload_seconds = 30.0
        running = asyncio.create_task(place.models["a"].serve(1.0))
        await asyncio.sleep(1.0)
        first = asyncio.create_task(place.models["b"].serve(1.0))
        await asyncio.sleep(18.0)
        await place.models["b"].serve(1.0)
        assert "b waited 20 s" in first.exception().message
        await running
        await place.room.close()

    play(scenario(), monkeypatch)


@pytest.mark.parametrize(("back", "order"), [(70.0, "abc"), (103.0, "acb")], ids=["in time", "too late"])
def test_a_model_whose_clients_left_has_its_place_where_they_are_soon_back(monkeypatch, back, order):
    async def scenario():
        place = Place(dict.fromkeys("abc", 100), wait_seconds=100.0)
        place.models["a"].reload_seconds = 100.0
        begun = []

        async def ask(name, when):
            await asyncio.sleep(when)
            await place.models[name].serve(1.0)
            begun.append(name)

        asked = [asyncio.create_task(ask(name, when)) for name, when in (("a", 0), ("c", 60), ("b", back))]
        await asyncio.sleep(1.0)
        leaves = asyncio.create_task(place.room.take(place.models["b"], lambda place: None))
        await asyncio.sleep(1.0)
        leaves.cancel()
        await asyncio.gather(*asked)
        assert begun == list(order)
        await place.room.close()

    play(scenario(), monkeypatch)


def test_nobody_is_interrupted_before_its_turn_is_over(monkeypatch):
    async def scenario():
        place = Place({"a": 60, "b": 60}, wait_seconds=4.0)  # less than a turn
        running = asyncio.create_task(place.models["a"].serve(20.0))
        await asyncio.sleep(LOAD + 0.1)
        with pytest.raises(CortexError, match="a had not finished with"):
            await place.models["b"].serve(1.0)
        await running
        assert place.models["a"].loads == 1
        await place.room.close()

    play(scenario(), monkeypatch)


def test_a_wait_is_bounded_and_says_for_whom(monkeypatch):
    async def scenario():
        place = Place({"a": 100, "b": 100}, wait_seconds=20.0)
        monkeypatch.setattr(place.models["a"], "interrupt", lambda: None)  # as if its worker did not answer
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


def test_what_other_programs_hold_all_the_time_is_not_waited_for(monkeypatch):
    """As what a model held, where one has just ended."""

    async def scenario():
        place = Place({"a": 30, "b": 30, "next": 35, "huge": 75})

        def refresh():
            free = TOTAL - 30 - place.ledger.reserved("cuda:0")
            return [Device(id="cuda:0", kind="cuda", name="", memory_total=TOTAL, memory_free=free)]

        place.room._inventory.refresh = refresh
        for name in "ab":
            await place.models[name].serve(0.1)
        await asyncio.sleep(60)
        place.models["a"].give_way()
        again = asyncio.create_task(place.models["a"].serve(0.1))
        await asyncio.sleep(0.01)
        await place.models["next"].serve(0.1)
        await again
        assert place.models["next"].waits == [pytest.approx(LOAD, abs=0.2)]
        await asyncio.sleep(60)
        place.models["next"].give_way()
        began = asyncio.get_running_loop().time()
        with pytest.raises(CortexError):
            await place.models["huge"].serve(0.1)
        assert asyncio.get_running_loop().time() - began < 0.2
        await place.room.close()

    play(scenario(), monkeypatch)


def test_what_others_park_while_they_load_is_waited_for_and_they_do_not_pass(monkeypatch):
    async def scenario():
        place = Place({"a": 30, "b": 30, "whole": 95}, names=("cpu",))
        parking = Parking(TOTAL, place.ledger, lambda: (1 << 40, 1 << 40))
        place.room._parking = parking

        class Parked(Model):
            async def load(self):
                loan = parking.lend(self.id, "files", [10])
                await asyncio.sleep(self.reload_seconds)
                if loan is not None:
                    for fd in loan.fds:
                        os.truncate(fd, 10)
                        parked.sign(fd, bytes(parked.DIGEST))
                    parking.settle(loan, loaded=True, woken=True)

        place.models |= {name: Parked(place, name, 30) for name in "ab"}
        each = [place.users(name, 2, 1.0, 200) for name in place.models]
        await asyncio.gather(*each)
        assert len(place.models["whole"].waits) > 20
        assert max(place.models["whole"].waits) <= 4 * (TURN + 1.0 + 2 * LOAD)
        await place.room.close()
        parking.close()

    play(scenario(), monkeypatch)


@pytest.mark.parametrize("late", [0.4, 1.6])
def test_nobody_behind_takes_what_is_late_to_come_back(monkeypatch, late):
    """A driver gives what a process held back a while after it has ended."""

    async def scenario():
        place = Place({"a": 30, "b": 30, "whole": 95})
        inventory, due = place.room._inventory, {}
        release = place.room.release

        def let_go(name):
            due[object()] = (asyncio.get_running_loop().time() + late, place.ledger.held_by(name))
            release(name)

        def refresh():
            now = asyncio.get_running_loop().time()
            held = sum(sum(sizes.values()) for until, sizes in due.values() if until > now)
            free = TOTAL - held - place.ledger.reserved("cuda:0")
            return [Device(id="cuda:0", kind="cuda", name="", memory_total=TOTAL, memory_free=free)]

        inventory.refresh, place.room.release = refresh, let_go
        await asyncio.gather(*(place.users(name, 2, 1.0, 200) for name in place.models))
        assert len(place.models["whole"].waits) > 20
        assert max(place.models["whole"].waits) <= 4 * (TURN + 1.0 + 2 * LOAD)
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


def test_a_load_that_ran_out_of_memory_stands_where_it_stood(monkeypatch):
    async def scenario():
        place = Place({"a": 100, "new": 90, "other": 100})
        held = asyncio.create_task(place.models["a"].serve(20.0))
        await asyncio.sleep(LOAD + 1.0)
        new = place.models["new"]
        granted = asyncio.create_task(place.room.take(new, new.places.append))
        await asyncio.sleep(1.0)
        other = asyncio.create_task(place.models["other"].serve(1.0))
        await granted
        again = asyncio.create_task(place.room.take(new, new.places.append, spare=1))
        place.room.release("new")  # its device had less than the books say
        await again
        assert place.models["other"].status == "waiting"
        place.room.release("new")
        await asyncio.gather(held, other)
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
