"""The pool of one model: what it gives up, what it takes, and what goes wrong with either."""

from __future__ import annotations

import asyncio

import pytest

from ipc.errors import Code, CortexError
from ipc.worker_messages import PAGE_SIZE, CacheGroup, PoolReport
from neuron.memory.cache_plan import CachePlan
from neuron.memory.fit import Fit
from neuron.processes.answers import Answers
from neuron.tenancy import pool
from neuron.tenancy.pool import Group, Pool
from tests.doubles import stands_for
from tests.neuron.harness import until

CACHES = CachePlan((CacheGroup(kind="full", layers=[0], bytes_per_token=100_000),))
PAGE = 100_000 * PAGE_SIZE  # bytes
CONTEXT = 20  # pages
LEAST = CONTEXT + 1 + (128 << 20) // PAGE  # and what it keeps over that


@stands_for(Group)
class Ranks:
    """Two, which do what they are told when `answer` is called."""

    def __init__(self):
        self.orders = []
        self.answers = Answers(2, "pool")

    def resize(self, kept, usable):
        self.orders.append((kept, usable))
        return self.answers.begin(0)

    async def answer(self, kept, code=""):
        for rank in range(2):
            self.answers.take(0, rank, PoolReport(kept, code if rank else "", "no memory" if code else ""))
        for _ in range(5):
            await asyncio.sleep(0)


def fit(pages=100, **changes):
    facts = {"devices": ("cuda:0", "cuda:1"), "reservations": {}, "rank_budgets": (), "most_pages": 500}
    return Fit(
        kv_pages=pages, context_length=CONTEXT * PAGE_SIZE, rank_caches=(CACHES,) * 2, **facts | changes
    )


def opened(**changes):
    """A pool, its group, and what the room is told."""
    told = []
    each, group = Pool(lambda *news: told.append(news)), Ranks()
    each.open(fit(**changes), group, resizable=True)
    return each, group, told


def test_it_can_spare_all_but_one_whole_context_of_its_own():
    async def scenario():
        each, _, _ = opened()
        assert each.share.spare == 100 - LEAST
        assert each.share.page_bytes == {"cuda:0": PAGE, "cuda:1": PAGE}
        assert each.share.lacking == 0
        each.close()
        assert each.share is None

    asyncio.run(scenario())


def test_what_it_gives_up_is_coming_until_all_ranks_have_given_it():
    async def scenario():
        each, group, told = opened()
        each.resize(-30)
        await asyncio.sleep(0)
        assert each.coming == {"cuda:0": 30 * PAGE, "cuda:1": 30 * PAGE}
        assert each.share is None
        assert group.orders == [(70, 70)]
        await group.answer(70)
        assert told == [(70, {"cuda:0": -30 * PAGE, "cuda:1": -30 * PAGE})]
        assert each.coming == {}
        assert (each.share.spare, each.share.lacking) == (70 - LEAST, 30)
        each.close()

    asyncio.run(scenario())


def test_sequences_use_what_comes_only_when_all_ranks_have_it():
    async def scenario():
        each, group, told = opened(wanted_pages=150, shrinks={"other": 1})
        assert each.share.lacking == 50
        each.resize(50)
        await asyncio.sleep(0)
        assert group.orders == [(150, 100)]
        await group.answer(150)
        assert group.orders == [(150, 100), (150, 150)]
        assert not told
        await group.answer(150)
        assert told == [(150, {})]
        assert each.share.lacking == 0
        each.close()

    asyncio.run(scenario())


def test_a_rank_without_memory_leaves_all_as_they_were_and_it_is_not_tried_again():
    async def scenario():
        each, group, told = opened(wanted_pages=150, shrinks={"other": 1})
        each.resize(50)
        await asyncio.sleep(0)
        await group.answer(150, Code.INSUFFICIENT_MEMORY)
        assert group.orders == [(150, 100), (100, 100)]
        await group.answer(100)
        assert told == [(100, {"cuda:0": -50 * PAGE, "cuda:1": -50 * PAGE})]
        assert each.share.lacking == 0
        each.close()

    asyncio.run(scenario())


def test_memory_that_a_rank_did_not_give_back_stays_booked():
    async def scenario():
        each, group, told = opened()
        each.resize(-30)
        await asyncio.sleep(0)
        await group.answer(70, Code.INSUFFICIENT_MEMORY)
        assert told == [(70, {})]
        assert (each.share.spare, each.share.lacking) == (70 - LEAST, 0)
        each.close()

    asyncio.run(scenario())


def test_one_that_takes_too_long_is_counted_on_no_more_and_booked_when_it_is_done(monkeypatch):
    monkeypatch.setattr(pool, "RESIZE_SECONDS", 0.01)

    async def scenario():
        each, group, told = opened()
        each.resize(-30)
        await asyncio.sleep(0.05)
        await until(lambda: not each.coming)
        assert each.share is None
        await group.answer(70)
        assert told == [(70, {"cuda:0": -30 * PAGE, "cuda:1": -30 * PAGE})]
        each.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("pages", [-30, 50])
def test_a_group_that_ends_meanwhile_leaves_nothing_open(pages):
    async def scenario():
        each, group, told = opened(wanted_pages=150, shrinks={"other": 1})
        each.resize(pages)
        await asyncio.sleep(0)
        group.answers.end(CortexError(Code.WORKER_DIED, "killed"))
        each.close()
        await asyncio.sleep(0.01)
        assert told == ([(100, dict.fromkeys(("cuda:0", "cuda:1"), -50 * PAGE))] if pages > 0 else [])
        assert each.coming == {}
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


def test_what_it_was_to_grow_by_goes_with_the_whole_booking_of_a_model_that_leaves():
    async def scenario():
        each, _, told = opened(wanted_pages=150, shrinks={"other": 1})
        each.resize(50)
        each.forget()
        assert not told

    asyncio.run(scenario())


def test_the_next_group_wants_what_this_one_gave_up():
    async def scenario():
        each, group, _ = opened()
        each.resize(-30)
        await asyncio.sleep(0)
        await group.answer(70)
        each.close()
        each.open(fit(70), Ranks(), resizable=True)
        assert each.share.lacking == 30
        each.forget()
        each.open(fit(70), Ranks(), resizable=True)
        assert each.share.lacking == 0
        each.forget()

    asyncio.run(scenario())


def test_a_pool_of_one_size_gives_nothing():
    each = Pool(lambda *news: None)
    each.open(fit(), Ranks.__new__(Ranks), resizable=False)
    assert each.share is None
    with pytest.raises(ValueError, match="cannot change"):
        each.resize(-1)
