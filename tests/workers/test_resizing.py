"""A pool that shrinks and grows while answers are written costs none of them a token."""

from __future__ import annotations

import pytest

from ipc.worker_messages import PoolReport, ResizePool
from tests.workers.engines import GPU, make_runner
from tests.workers.harness import Workers
from tests.workers.oracle import greedy
from workers.checkpoints.reading import read_card

PAGES, FEW, CONTEXT = 64, 8, 200
LIMITS = {
    "resizable": True,
    "kv_pages": PAGES,
    "max_step_tokens": 32,
    "context_length": CONTEXT,
    "simulated": None,
}


@pytest.mark.parametrize(
    ("device", "world_size"), [("cpu", 1), ("cpu", 2), pytest.param("cuda:0", 1, marks=GPU)]
)
def test_answers_in_a_pool_that_shrinks_and_grows_are_those_of_transformers(tiny, device, world_size):
    folder, oracle = tiny("qwen3_tied")
    model = {
        "engine": "transformer",
        "card": read_card(folder),
        "dtype": "float32",
        "device": device,
        **LIMITS,
    }
    prompts = [[(i * k) % 131 for i in range(90 + k)] for k in range(1, 7)]
    with Workers(world_size=world_size, **model) as workers:
        assert all(ready.resizable and ready.kv_pages == PAGES for ready in workers.ready())
        for request_id, prompt in enumerate(prompts):
            workers.submit(request_id, prompt, 100)
        while not all(answer.token_ids for answer in workers.answers.values()):
            workers.next_step()
        assert workers.resize(FEW, FEW) == [PoolReport(FEW)] * world_size
        for _ in range(5):
            workers.next_step()
        assert workers.steps[-1].preemptions
        assert workers.steps[-1].pages_free <= FEW
        assert workers.resize(PAGES, FEW) == [PoolReport(PAGES)] * world_size
        workers.next_step()
        assert workers.steps[-1].pages_free <= FEW
        assert workers.resize(PAGES, PAGES) == [PoolReport(PAGES)] * world_size
        for prompt, answer in zip(prompts, workers.collect(), strict=True):
            assert answer.finish == "length"
            assert answer.token_ids == greedy(oracle, prompt, answer.token_ids)
        assert workers.steps[-1].pages_free == PAGES


def test_a_pool_that_nobody_uses_changes_at_once(tiny):
    model = {"engine": "transformer", "card": read_card(tiny("qwen3_tied").folder), **LIMITS}
    with Workers(**model) as workers:
        workers.ready()
        first = workers.generate(150, 4)
        assert workers.resize(FEW, FEW) == [PoolReport(FEW)]
        again = workers.generate(150, 4)
        assert again.token_ids == first.token_ids


def test_memory_that_is_not_there_leaves_a_pool_as_it_is(tiny, monkeypatch):
    runner = make_runner(tiny("qwen3_tied").folder, resizable=True)
    loaded = runner.load(lambda fraction, message: None)
    before = runner.cache.nbytes

    def refuse(first, last):
        raise MemoryError("the card is full")

    monkeypatch.setattr(runner.cache._reserve, "keep", refuse)
    report = runner.resize(ResizePool(loaded.kv_pages + 1, loaded.kv_pages))
    assert report == PoolReport(loaded.kv_pages, "insufficient_memory", "the card is full")
    assert runner.cache.nbytes == before
    monkeypatch.undo()
    runner.close()
