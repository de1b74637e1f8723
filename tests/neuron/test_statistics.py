"""What a model shows of its worker."""

from ipc.worker_messages import MemoryUse, Ready, StepReport
from neuron.tenancy.statistics import Statistics

A, B, C = (bytes([n]) * 16 for n in range(3))


def ready(kv_pages, weights):
    return Ready(2, kv_pages, MemoryUse(weights=weights, runtime=1), 0.1)


def step(number, cached=(), evicted=(), **counts):
    values = {"running": 0, "waiting": 0, "pages_free": 7} | counts
    return StepReport(step=number, sequences=[], cached=list(cached), evicted=list(evicted), **values)


def test_a_pool_is_as_large_as_that_of_its_tightest_rank_and_all_ranks_memory_counts():
    state = Statistics([ready(20, 100), ready(18, 50)]).state(0)
    assert (state["pages_total"], state["pages_free"], state["bytes_measured"]) == (18, 18, 152)


def test_pages_that_can_be_shared_are_those_of_every_step():
    figures = Statistics([ready(20, 100)])
    figures.take([step(1, [A, B]), step(2, [C], [A]), step(3)])
    assert figures.page_hashes == {B, C}
    figures.take([step(4, [A], [B, C])])
    assert figures.page_hashes == {A}


def test_counts_are_those_of_the_newest_step():
    figures = Statistics([ready(20, 100)])
    figures.take([step(1, preemptions=1, cached_tokens=32), step(5, preemptions=2, cached_tokens=64)])
    state = figures.state(0)
    assert (state["steps"], state["preemptions"], state["cached_tokens"], state["pages_free"]) == (
        5,
        2,
        64,
        7,
    )
