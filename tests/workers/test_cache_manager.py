"""What layers can see no more is given back, what all groups have is reused, and what went wrong is not."""

from __future__ import annotations

import pytest

from ipc.errors import Code
from ipc.worker_messages import PAGE_SIZE
from tests.workers.simulation import Run, group, make_scheduler, submit
from workers.scheduling.cache_manager import CHECKPOINT_TOKENS
from workers.step.engine import Extra, StepResult
from workers.step.plan import HOLE

TEXT = [100 + i for i in range(20 * PAGE_SIZE)]
WINDOW = 100  # tokens: up to five pages


def most_held(*caches, tokens: int = 2_000, **limits: int) -> int:
    """Pages that one sequence of so many tokens had at once."""
    run = Run(make_scheduler(context_length=10_000, kv_pages=500, caches=caches, **limits))
    run.scheduler.submit(submit(1, 100, max_tokens=tokens))
    run.to_the_end().assert_nothing_is_held()
    return run.engine.most_held


# --- windows --------------------------------------------------------------------------------------------


def test_a_layer_with_a_window_holds_the_pages_of_its_window_however_long_the_text():
    window = group("window", WINDOW)
    assert most_held(window) == most_held(window, tokens=4_000) == 5
    assert most_held(group("full")) == 66
    assert most_held(group("full"), window) == 66 + 5


def test_a_prompt_longer_than_the_pool_goes_through_where_all_layers_have_windows():
    run = Run(make_scheduler(context_length=5_000, kv_pages=9, caches=[group("window", WINDOW)]))
    run.scheduler.submit(submit(1, 3_000, max_tokens=500))
    run.to_the_end().assert_nothing_is_held()
    assert run.finish == {1: "length"}
    assert run.scheduler.statistics()["preemptions"] == 0


def test_what_a_window_gives_back_serves_others():
    caches = [group("window", WINDOW)]
    run = Run(make_scheduler(context_length=5_000, kv_pages=24, caches=caches, max_sequences=4))
    for request_id in range(4):
        run.scheduler.submit(submit(request_id, 100, max_tokens=1_000))
    run.to_the_end().assert_nothing_is_held()
    assert run.scheduler.statistics()["preemptions"] == 0


def test_a_pool_that_is_too_small_for_a_page_of_each_group_is_refused():
    with pytest.raises(ValueError, match="do not hold one sequence of 2 groups"):
        make_scheduler(kv_pages=1, caches=[group("full"), group("window", WINDOW)])
    with pytest.raises(ValueError, match="1 states"):
        make_scheduler(caches=[group("state")], states=1)


# --- reuse ----------------------------------------------------------------------------------------------


def test_a_prefix_is_reused_as_far_as_every_group_has_what_it_needs():
    run = Run(make_scheduler(caches=[group("full"), group("window", WINDOW)]))
    run.scheduler.submit(submit(1, TEXT, max_tokens=1))
    run.to_the_end()
    cache = run.scheduler.cache
    run.scheduler.submit(submit(2, [*TEXT, 5, 6], max_tokens=1))
    tables = run.step().added[0].tables
    assert [table.count(HOLE) for table in tables] == [0, 16], "of a window only what is in sight is shared"
    assert run.cached == {1: 0, 2: len(TEXT)}
    run.to_the_end()
    cache.pages.withdraw([*cache.pages.cached(1)][10:11])  # with all that follow
    run.scheduler.submit(submit(3, [*TEXT, 5, 6], max_tokens=1))
    run.to_the_end().assert_nothing_is_held()
    assert run.cached[3] == 10 * PAGE_SIZE


HYBRID = [group("full"), group("state")]


def cached_of(run: Run, request_id: int, prompt: list[int], max_tokens: int = 1) -> int:
    """Tokens of its prompt that a request need not compute, once it is through."""
    run.scheduler.submit(submit(request_id, prompt, max_tokens=max_tokens))
    run.to_the_end().assert_nothing_is_held()
    return run.cached[request_id]


def test_a_state_is_kept_where_a_prompt_ends_but_for_what_the_next_turn_writes_otherwise():
    run = Run(make_scheduler(max_step_tokens=5 * PAGE_SIZE, caches=HYBRID, states=10))
    prompt = TEXT[: 12 * PAGE_SIZE + 3]
    assert cached_of(run, 1, prompt) == 0
    assert cached_of(run, 2, [*prompt[:-5], *[7] * 50]) == 11 * PAGE_SIZE


def test_the_second_turn_of_a_long_conversation_reuses_nearly_all_of_it():
    run = Run(make_scheduler(context_length=30_000, kv_pages=2_000, caches=HYBRID, states=6))
    prompt = [100 + i % 997 for i in range(20_000)]
    assert cached_of(run, 1, prompt, 700) == 0
    assert (
        cached_of(run, 2, [*prompt[:-5], 1, 2, *[7] * 300], 10) >= 19_950
    )  # its answer was written otherwise
    assert cached_of(run, 3, [*prompt, *run.output[1], 7]) >= 20_670


def test_of_a_long_text_a_state_is_kept_every_so_often_and_none_between():
    run = Run(make_scheduler(context_length=9_000, kv_pages=600, caches=HYBRID, states=20))
    prompt = [100 + i % 997 for i in range(7_000)]
    cached_of(run, 1, prompt, 1_500)
    kept = len(run.scheduler.cache.states.cached(1))
    assert kept == 3 + 1 + 1, "at 2,048, 4,096 and 6,144 tokens, where the prompt and the answer end"
    assert cached_of(run, 2, [*prompt[:5_000], 9, 9]) == 2 * CHECKPOINT_TOKENS


def test_where_texts_were_seen_to_part_a_state_is_kept_for_the_next():
    run = Run(make_scheduler(caches=HYBRID, states=10))
    common = TEXT[: 10 * PAGE_SIZE + 7]
    assert cached_of(run, 1, [*common, *[5] * 100]) == 0
    assert cached_of(run, 2, [*common, *[6] * 100]) == 0, "here it was seen"
    assert cached_of(run, 3, [*common, *[7] * 100]) == 10 * PAGE_SIZE


def test_answers_to_one_prompt_share_all_of_it_but_its_end():
    run = Run(make_scheduler(caches=HYBRID, states=10))
    for request_id in range(3):
        run.scheduler.submit(submit(request_id, TEXT[:500], max_tokens=5))
    run.to_the_end().assert_nothing_is_held()
    assert [run.cached[request_id] for request_id in range(3)] == [0, 480, 480]


def test_a_preempted_sequence_goes_on_from_a_state_that_was_kept():
    run = Run(make_scheduler(caches=HYBRID, states=10, kv_pages=40))
    for request_id in range(2):
        run.scheduler.submit(submit(request_id, 300, max_tokens=400))
    run.to_the_end().assert_nothing_is_held()
    assert run.scheduler.statistics()["preemptions"] == 1
    assert 0 < run.engine.computed - 2 * 699 <= 699 - 256, "of its prompt all but the end was there"


def test_the_next_turn_of_a_conversation_finds_the_state_of_its_answer():
    run = Run(make_scheduler(caches=[group("full"), group("state")], states=10))
    run.scheduler.submit(submit(1, TEXT[:40], max_tokens=60))
    run.to_the_end()
    run.scheduler.submit(submit(2, [*TEXT[:40], *run.output[1], 3], max_tokens=1))
    run.to_the_end().assert_nothing_is_held()
    assert run.cached[2] == 3 * PAGE_SIZE


def test_states_are_as_many_as_sequences_need_however_long_they_are():
    run = Run(make_scheduler(context_length=5_000, caches=[group("full"), group("state")], states=6))
    for request_id in range(3):
        run.scheduler.submit(submit(request_id, 100, max_tokens=500))
    run.to_the_end().assert_nothing_is_held()
    assert run.scheduler.statistics()["preemptions"] == 0
    assert all(len(output) == 500 for output in run.output.values())


# --- what ended in error --------------------------------------------------------------------------------


def broken(code: str):
    """A sampler that fails for texts that end with 13."""
    error = StepResult([-1], {0: Extra("error", code, "broken")})
    return lambda token_ids: error if token_ids[-1] == 13 else StepResult([7])


@pytest.mark.parametrize("code", [Code.INTERNAL, Code.BAD_REQUEST])
def test_what_a_sequence_computed_that_ended_in_error_is_never_cached(code):
    run = Run(make_scheduler(), broken(code))
    run.scheduler.submit(submit(1, [*TEXT, 13], max_tokens=5))
    while not run.finish:
        assert run.step() is not None
    assert run.finish == {1: "error"}
    assert run.scheduler.statistics()["pages_cached"] == 0
    assert not run.hashes, "whoever was told of its pages is told that they are gone"
    run.assert_nothing_is_held()


def test_nothing_is_shared_that_was_computed_from_it():
    run = Run(make_scheduler(max_step_tokens=2 * PAGE_SIZE), broken(Code.INTERNAL))
    run.scheduler.submit(submit(1, [*TEXT[: 6 * PAGE_SIZE], 13], max_tokens=5))
    for _ in range(2):
        run.step()
    run.scheduler.submit(submit(2, [*TEXT[: 4 * PAGE_SIZE], *[5] * 100], max_tokens=40, priority=-1))
    run.step()
    assert run.cached[2] == 4 * PAGE_SIZE, "it begins with pages of the other"
    while 1 not in run.finish:
        run.step()
    assert 2 not in run.finish
    run.to_the_end().assert_nothing_is_held()
    assert run.scheduler.statistics()["pages_cached"] == 0


def test_a_request_that_leaves_itself_no_token_takes_nothing_from_others():
    run = Run(make_scheduler(), broken(Code.BAD_REQUEST))
    run.scheduler.submit(submit(1, TEXT[: 6 * PAGE_SIZE], max_tokens=5))
    run.to_the_end()
    run.scheduler.submit(submit(2, [*TEXT[: 6 * PAGE_SIZE], *[5] * 100, 13], max_tokens=5))
    run.to_the_end()
    assert (run.cached[2], run.finish[2]) == (6 * PAGE_SIZE, "error")
    assert run.scheduler.statistics()["pages_cached"] == 6
    run.scheduler.submit(submit(3, TEXT, max_tokens=1))
    run.to_the_end().assert_nothing_is_held()
    assert run.cached[3] == 6 * PAGE_SIZE


def test_what_broke_upon_shared_pages_takes_these_with_it():
    run = Run(make_scheduler(), broken(Code.INTERNAL))
    run.scheduler.submit(submit(1, TEXT[: 6 * PAGE_SIZE], max_tokens=5))
    run.to_the_end()
    run.scheduler.submit(submit(2, [*TEXT[: 6 * PAGE_SIZE], 13], max_tokens=5))
    run.to_the_end().assert_nothing_is_held()
    assert run.scheduler.statistics()["pages_cached"] == 0
