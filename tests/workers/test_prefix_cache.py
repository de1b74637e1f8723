"""What sequences have in common is computed once, and only what is equal is shared."""

from __future__ import annotations

from array import array
from hashlib import blake2b

import pytest

from ipc.worker_messages import PAGE_SIZE
from tests.workers.simulation import Run, make_scheduler, submit
from workers.scheduling.page_pool import extend_hashes
from workers.step.engine import StepResult

TEXT = [100 + i for i in range(10 * PAGE_SIZE + 5)]


def after_one(max_tokens: int = 40, **limits: int) -> Run:
    """A run in which request 1, with the prompt TEXT and so many tokens of output, is over."""
    run = Run(make_scheduler(**limits))
    run.scheduler.submit(submit(1, TEXT, max_tokens))
    return run.to_the_end()


def test_a_second_prompt_computes_only_what_differs():
    run = after_one()
    before = run.engine.computed
    run.scheduler.submit(submit(2, TEXT[: 4 * PAGE_SIZE] + [1] * 20, max_tokens=1))
    run.to_the_end().assert_nothing_is_held()
    assert run.cached == {1: 0, 2: 4 * PAGE_SIZE}
    assert run.engine.computed - before == 20
    counts = run.scheduler.statistics()
    assert counts["cached_tokens"] == 4 * PAGE_SIZE
    assert counts["prompt_tokens"] == len(TEXT) + 4 * PAGE_SIZE + 20


@pytest.mark.parametrize("max_tokens", [27, 28, 29, 40])  # the page after the prompt's last is full at 28
def test_the_next_turn_of_a_conversation_reuses_the_answer_too(max_tokens):
    run = after_one(max_tokens)
    turn = [*TEXT, *run.output[1], *[3] * 10]
    run.scheduler.submit(submit(2, turn, max_tokens=1))
    run.to_the_end()
    assert run.cached[2] == (len(TEXT) + max_tokens - 1) // PAGE_SIZE * PAGE_SIZE, (
        "the last token was never computed"
    )


def test_at_least_the_last_token_of_a_prompt_is_computed():
    run = after_one()
    run.scheduler.submit(submit(2, TEXT[: 4 * PAGE_SIZE], max_tokens=1))
    run.to_the_end()
    assert run.cached[2] == 3 * PAGE_SIZE
    assert run.output[2] == [7]


def test_simultaneous_equal_prompts_are_computed_once():
    run = Run(make_scheduler(max_sequences=8))
    for request_id in range(8):
        run.scheduler.submit(submit(request_id, TEXT, max_tokens=5, account=str(request_id % 3)))
    run.to_the_end().assert_nothing_is_held()
    rest = len(TEXT) % PAGE_SIZE
    assert run.engine.computed == len(TEXT) + 7 * rest + 8 * 4
    assert sorted(run.cached.values()) == [0] + [len(TEXT) - rest] * 7


def test_who_waits_for_pages_of_a_less_important_prompt_lends_it_its_turn():
    run = Run(make_scheduler(max_step_tokens=64))
    run.scheduler.submit(submit(1, TEXT, max_tokens=5, priority=9))
    run.step()
    run.scheduler.submit(submit(2, [5] * 900, max_tokens=5, priority=1))
    run.scheduler.submit(submit(3, TEXT, max_tokens=5, priority=0))
    run.to_the_end()
    assert list(run.finish) == [3, 2, 1]
    assert run.cached[3] == 10 * PAGE_SIZE


def test_different_salts_share_nothing():
    run = after_one()
    run.scheduler.submit(submit(2, TEXT, max_tokens=1, cache_salt="mine"))
    run.to_the_end()
    run.scheduler.submit(submit(3, TEXT, max_tokens=1, cache_salt="mine"))
    run.to_the_end().assert_nothing_is_held()
    assert (run.cached[2], run.cached[3]) == (0, 10 * PAGE_SIZE)


@pytest.mark.parametrize("fields", [{"prompt_logprobs": 0}, {"pooling": "mean"}])
def test_who_needs_every_hidden_state_computes_every_token_and_still_lends_pages(fields):
    run = after_one()
    run.scheduler.submit(submit(2, TEXT, max_tokens=1, **fields))
    run.to_the_end()
    assert run.cached[2] == 0
    run = Run(make_scheduler())
    run.scheduler.submit(submit(1, TEXT, max_tokens=1, **fields))
    run.scheduler.submit(submit(2, TEXT, max_tokens=1))
    run.to_the_end().assert_nothing_is_held()
    assert run.cached[2] == 10 * PAGE_SIZE


def test_the_last_hidden_state_needs_only_the_end_of_a_prompt():
    run = after_one()
    run.scheduler.submit(submit(2, TEXT, max_tokens=1, pooling="last"))
    run.to_the_end()
    assert run.cached[2] == 10 * PAGE_SIZE


def test_cached_pages_count_as_free_and_make_room_the_oldest_first():
    run = after_one(kv_pages=20)
    assert run.scheduler.statistics()["pages_free"] == 20
    run.scheduler.submit(submit(2, [3] * 12 * PAGE_SIZE, max_tokens=1))
    run.to_the_end()
    run.scheduler.submit(submit(3, [3] * 12 * PAGE_SIZE, max_tokens=1))
    run.scheduler.submit(submit(4, TEXT, max_tokens=1))
    run.to_the_end().assert_nothing_is_held()
    assert run.cached[3] == 11 * PAGE_SIZE
    assert 0 < run.cached[4] < 10 * PAGE_SIZE, "its end was evicted before its beginning"


def test_a_preempted_sequence_finds_its_own_pages():
    run = Run(make_scheduler(kv_pages=8), lambda ids: StepResult([1_000 + len(ids)]))
    for request_id in range(2):
        run.scheduler.submit(submit(request_id, 70, max_tokens=110))
    run.to_the_end().assert_nothing_is_held()
    assert run.scheduler.statistics()["preemptions"] >= 1
    assert run.engine.computed < 2 * 180 + 70
    assert run.cached == {0: 0, 1: 0}, "what was computed for itself is not reported as reused"


def test_a_page_hash_is_that_of_the_salt_and_all_tokens_so_far():
    hashes: list[bytes] = []
    extend_hashes(hashes, array("I", TEXT), "salt")
    expected, parent = [], blake2b(b"salt", digest_size=16).digest()
    for start in range(0, 10 * PAGE_SIZE, PAGE_SIZE):
        tokens = b"".join(token.to_bytes(4, "little") for token in TEXT[start : start + PAGE_SIZE])
        parent = blake2b(parent + tokens, digest_size=16).digest()
        expected.append(parent)
    assert hashes == expected


def test_hashes_grow_with_the_tokens():
    grown: list[bytes] = []
    for end in range(0, len(TEXT), 7):
        extend_hashes(grown, array("I", TEXT[:end]), "")
    whole: list[bytes] = []
    extend_hashes(whole, array("I", TEXT[:end]), "")
    assert grown == whole
