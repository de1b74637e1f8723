import random

import pytest

from ipc.worker_messages import PAGE_SIZE
from workers.scheduling.page_pool import PagePool
from workers.step.pages import pages_for


def test_a_page_belongs_to_one_owner_at_a_time():
    pool, random_ = PagePool(50), random.Random(1)
    owners: list[list[int]] = []
    for _ in range(5_000):
        if owners and random_.random() < 0.5:
            pool.free(owners.pop(random_.randrange(len(owners))))
        else:
            owners.append(pool.allocate(random_.randint(0, pool.num_free)))
        held = [page for pages in owners for page in pages]
        assert len(held) == len(set(held))
        assert set(held) <= set(range(50))
        assert len(held) + pool.num_free == 50


def test_more_pages_than_are_free_is_an_error_and_takes_none():
    pool = PagePool(3)
    pool.allocate(2)
    with pytest.raises(ValueError, match="asked for 2 pages, 1 of 3"):
        pool.allocate(2)
    assert pool.num_free == 1


def test_pages_for_rounds_up():
    assert [pages_for(n) for n in (0, 1, PAGE_SIZE, PAGE_SIZE + 1)] == [0, 1, 1, 2]
