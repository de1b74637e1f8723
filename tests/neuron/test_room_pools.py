"""Pools that shrink for other models, and grow again."""

import asyncio

import pytest

from tests.neuron.room_play import LOAD, RESIZE, Place, play


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
    monkeypatch.setattr("tests.neuron.room_play.RESIZE", 3.0)

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
