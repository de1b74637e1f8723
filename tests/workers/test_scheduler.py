"""What the scheduler promises, each promise alone; `test_storms.py` has them all together."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import pytest

from ipc.errors import Code
from ipc.worker_messages import PAGE_SIZE, Logprobs
from tests.workers.simulation import END, Run, group, make_scheduler, submit
from workers.scheduling.page_pool import extend_hashes
from workers.step.engine import Extra, StepResult
from workers.step.pages import pages_for


def at_length(length: int, result: StepResult) -> Callable[[list[int]], StepResult]:
    """A sampler that answers 7, but `result` to a sequence of that length."""
    return lambda token_ids: result if len(token_ids) == length else StepResult([7])


# --- how sequences end ----------------------------------------------------------------------------------


def test_max_tokens_ends_with_length():
    run = Run(make_scheduler())
    run.scheduler.submit(submit(1, 5, max_tokens=3))
    run.to_the_end().assert_nothing_is_held()
    assert run.output == {1: [7, 7, 7]}
    assert run.finish == {1: "length"}


def test_the_stop_token_is_reported_and_ends_with_stop():
    run = Run(make_scheduler(), at_length(8, StepResult([END])))
    run.scheduler.submit(submit(1, 5))
    run.to_the_end().assert_nothing_is_held()
    assert run.output == {1: [7, 7, 7, END]}
    assert run.finish == {1: "stop"}


def test_the_context_ends_with_length_and_holds_no_token_more():
    run = Run(make_scheduler(context_length=20))
    run.scheduler.submit(submit(1, 5))
    run.to_the_end().assert_nothing_is_held()
    assert len(run.output[1]) == 15
    assert run.finish == {1: "length"}


def test_a_sequence_that_alone_fills_the_pool_ends_with_length():
    run = Run(make_scheduler(kv_pages=2))
    run.scheduler.submit(submit(1, 5))
    run.to_the_end().assert_nothing_is_held()
    assert len(run.output[1]) == 2 * PAGE_SIZE - 5
    assert run.finish == {1: "length"}


def test_a_sequence_that_began_elsewhere_goes_on_as_if_it_had_not_and_only_says_what_is_new():
    seen = []

    def sampler(token_ids: list[int]) -> StepResult:
        seen.append(len(token_ids))
        return StepResult([7])

    run = Run(make_scheduler(), sampler)
    run.scheduler.submit(submit(1, 5, max_tokens=6, output=array("I", [7, 7, 7]).tobytes()))
    run.to_the_end().assert_nothing_is_held()
    assert (run.output, run.finish) == ({1: [7, 7, 7]}, {1: "length"})
    assert seen == [8, 9, 10]


def test_what_began_elsewhere_and_has_no_room_left_is_refused():
    run = Run(make_scheduler())
    run.scheduler.submit(submit(1, 5, max_tokens=3, output=array("I", [7, 7, 7]).tobytes()))
    (report,) = run.scheduler.take_reports()
    assert (report.finish, report.details.code) == ("error", Code.CONTEXT_LENGTH_EXCEEDED)


def test_the_first_report_has_the_hashes_of_the_marked_pages():
    run = Run(make_scheduler())
    run.scheduler.submit(submit(1, 3 * PAGE_SIZE + 1, max_tokens=2, marks=[2, 0]))
    run.to_the_end()
    hashes: list[bytes] = []
    extend_hashes(hashes, array("I", [11] * (3 * PAGE_SIZE)), "")
    first, *later = run.reports
    assert (first.details.marks, [report.details.marks for report in later]) == (
        (hashes[2], hashes[0]),
        [()] * len(later),
    )


@pytest.mark.parametrize(
    ("result", "output", "finish", "message"),
    [
        (StepResult([9], {0: Extra(finish="stop")}), [7, 9], "stop", ""),
        (StepResult([-1], {0: Extra(finish="stop")}), [7], "stop", ""),
        (StepResult([-1], {0: Extra("error", Code.BAD_REQUEST, "no such grammar")}), [7], "error", "no such"),
    ],
)
def test_the_engine_may_end_a_sequence_with_or_without_a_token(result, output, finish, message):
    run = Run(make_scheduler(), at_length(6, result))
    run.scheduler.submit(submit(1, 5))
    run.to_the_end().assert_nothing_is_held()
    assert (run.output, run.finish) == ({1: output}, {1: finish})
    assert run.reports[-1].details.message.startswith(message)
    assert run.reports[-1].details.code == (Code.BAD_REQUEST if finish == "error" else "")


def test_logprobs_travel_with_their_token():
    some, prompt = Logprobs(9, -0.5, 1, []), [Logprobs(11, -2.0, 3, [])]
    run = Run(
        make_scheduler(), at_length(6, StepResult([9], {0: Extra(logprobs=some, prompt_logprobs=prompt)}))
    )
    run.scheduler.submit(submit(1, 5, max_tokens=3))
    run.to_the_end()
    assert [report.details.logprobs for report in run.reports] == [[], [some], []]
    assert [report.details.prompt_logprobs for report in run.reports] == [[], prompt, []]


def test_a_pooled_sequence_ends_with_its_embedding_and_no_token():
    run = Run(make_scheduler())
    run.scheduler.submit(submit(1, 100, max_tokens=1, pooling="mean"))
    run.to_the_end().assert_nothing_is_held()
    assert (run.output, run.finish) == ({1: []}, {1: "stop"})
    assert run.reports[-1].details.embedding == b"1234"


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "code", "message"),
    [
        (0, 5, Code.BAD_REQUEST, "the prompt is empty"),
        (3, 0, Code.BAD_REQUEST, "max_tokens is 0"),
        (
            50,
            5,
            Code.CONTEXT_LENGTH_EXCEEDED,
            "the prompt has 50 tokens, and prompt and answer together may have 50",
        ),
        (96, 5, Code.CONTEXT_LENGTH_EXCEEDED, "the prompt has 96 tokens"),
    ],
)
def test_a_request_that_can_never_run_is_answered_with_error(prompt, max_tokens, code, message):
    run = Run(make_scheduler(context_length=50, kv_pages=3))
    run.scheduler.submit(submit(1, prompt, max_tokens))
    run.to_the_end().assert_nothing_is_held()
    assert run.finish == {1: "error"}
    assert run.reports[0].details.message.startswith(message)
    assert run.reports[0].details.code == code


def test_a_request_id_that_is_open_is_refused():
    run = Run(make_scheduler())
    run.scheduler.submit(submit(1, 5))
    with pytest.raises(ValueError, match="1 is open already"):
        run.scheduler.submit(submit(1, 5))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (StepResult([]), "samples 1 tokens, and 0 came back"),
        (StepResult([7, 7]), "samples 1 tokens, and 2 came back"),
        (StepResult([-1]), "request 1 has no token, and does not end"),
    ],
)
def test_a_result_that_is_not_of_the_plan_is_an_error(result, message):
    run = Run(make_scheduler())
    run.scheduler.submit(submit(1, 5))
    run.scheduler.plan()
    with pytest.raises(ValueError, match=message):
        run.scheduler.observe(result)


def test_abort_frees_pages_before_the_next_step():
    run = Run(make_scheduler())
    run.scheduler.submit(submit(1, 40))
    run.scheduler.submit(submit(2, 40))
    run.step()
    run.step()
    run.scheduler.abort(1)
    plan = run.step()
    assert run.finish == {1: "aborted"}
    assert len(plan.released) == 1
    [left] = plan.scheduled
    assert run.scheduler.cache.pages.num_free == 100 - pages_for(run.engine.slots[left.slot].num_computed)


def test_abort_of_a_waiting_request_ends_it_without_a_step():
    run = Run(make_scheduler())
    run.scheduler.submit(submit(1, 40))
    run.scheduler.abort(1)
    assert run.step() is None
    assert run.finish == {1: "aborted"}
    run.assert_nothing_is_held()


def test_abort_of_an_ended_request_says_nothing():
    run = Run(make_scheduler())
    run.scheduler.submit(submit(1, 5, max_tokens=1))
    run.to_the_end()
    run.scheduler.abort(1)
    run.scheduler.abort(99)
    assert run.scheduler.take_reports() == []


# --- one budget for prompts and decode ------------------------------------------------------------------


def test_running_sequences_decode_while_a_long_prompt_joins_in_chunks():
    run = Run(make_scheduler(max_step_tokens=64))
    run.scheduler.submit(submit(1, 5))
    run.step()
    run.scheduler.submit(submit(2, 200))
    while not run.output.get(2):
        before = len(run.output[1])
        plan = run.step()
        assert len(run.output[1]) == before + 1
        assert plan.scheduled[0].num_tokens == 1
        assert sum(entry.num_tokens for entry in plan.scheduled) <= 64
    reports = [report for report in run.reports if report.request_id == 2]
    assert len(reports) == 2, "the first chunk is told once, later ones are not"


def test_prompts_take_no_more_than_the_chunk_while_others_decode_and_all_they_can_otherwise():
    run = Run(make_scheduler(max_step_tokens=64))
    run.scheduler.submit(submit(1, 90, max_tokens=30))
    assert [entry.num_tokens for entry in run.step(chunk=8).scheduled] == [64]
    run.step(chunk=8)
    run.scheduler.submit(submit(2, 20))
    run.scheduler.submit(submit(3, 20))
    taken = []
    while run.scheduler.decode_tokens < 3:
        run.step(chunk=8)
        taken.append(run.scheduler.prefill_tokens)
    assert taken == [8, 8, 8, 8, 8, 0]


def test_the_budget_bounds_the_running_sequences():
    run = Run(make_scheduler(max_sequences=8, max_step_tokens=3))
    for request_id in range(8):
        run.scheduler.submit(submit(request_id, 2, max_tokens=20))
    run.to_the_end().assert_nothing_is_held()
    assert all(len(output) == 20 for output in run.output.values())


# --- when pages run out ---------------------------------------------------------------------------------


def test_out_of_pages_the_youngest_resumes_with_prompt_and_output():
    run = Run(make_scheduler(kv_pages=6, max_step_tokens=256), lambda ids: StepResult([1_000 + len(ids)]))
    for request_id in range(3):
        run.scheduler.submit(submit(request_id, 30, max_tokens=100))
    preempted = 0
    while (plan := run.step()) is not None:
        for new in plan.added:
            ids = list(array("I", new.token_ids))
            preempted += len(ids) > new.prompt_len
            assert ids[30:] == [1_000 + n for n in range(30, len(ids))]
    assert preempted == run.scheduler.statistics()["preemptions"] >= 1
    assert list(run.finish) == [0, 1, 2], "the oldest is never the one to wait"
    assert all(output == [1_000 + n for n in range(30, 130)] for output in run.output.values())
    run.assert_nothing_is_held()


def test_out_of_pages_the_least_important_waits_however_old_it_is():
    run = Run(make_scheduler(kv_pages=6, max_step_tokens=256))
    for request_id, priority in enumerate((5, 0, 0)):
        run.scheduler.submit(submit(request_id, 30, max_tokens=100, priority=priority))
    run.to_the_end().assert_nothing_is_held()
    assert run.scheduler.statistics()["preemptions"] >= 1
    assert list(run.finish)[-1] == 0


def test_who_is_preempted_is_not_asked_for_the_logprobs_of_its_prompt_again():
    run = Run(make_scheduler(kv_pages=6, max_step_tokens=256))
    for request_id in range(3):
        run.scheduler.submit(submit(request_id, 30, max_tokens=100, prompt_logprobs=5))
    added = []
    while (plan := run.step()) is not None:
        added += plan.added
    assert [new.params.prompt_logprobs for new in added] == [5, 5, 5] + [None] * (len(added) - 3)
    assert len(added) > 3


def test_a_pool_that_is_far_too_small_is_not_wasted_on_computing_again():
    run = Run(make_scheduler(kv_pages=64, max_step_tokens=512, max_sequences=32))
    for request_id in range(32):
        run.scheduler.submit(submit(request_id, 40, max_tokens=100))
    run.to_the_end()
    assert all(len(output) == 100 for output in run.output.values())
    assert run.engine.computed < 1.3 * 32 * 140


@pytest.mark.parametrize("cached", [False, True])
def test_who_would_soon_be_preempted_is_not_admitted(cached):
    run = Run(make_scheduler(kv_pages=8, max_step_tokens=256))
    if cached:
        run.scheduler.submit(submit(9, [12] * 100, max_tokens=1))
        run.to_the_end()
    run.scheduler.submit(submit(1, 100, max_tokens=20))
    run.scheduler.submit(submit(2, 100, max_tokens=20))
    assert len(run.step().added) == 1
    run.to_the_end().assert_nothing_is_held()
    assert run.scheduler.statistics()["preemptions"] == 0


def test_two_prompts_that_wait_for_each_others_pages_both_get_through():
    run = Run(make_scheduler(kv_pages=8, max_step_tokens=32))
    run.scheduler.submit(submit(1, 20, max_tokens=130))
    run.step()
    run.scheduler.submit(submit(2, 200, max_tokens=5))
    run.scheduler.submit(submit(3, 200, max_tokens=5, account="other"))
    run.to_the_end().assert_nothing_is_held()
    assert [len(run.output[request_id]) for request_id in (1, 2, 3)] == [130, 5, 5]


# --- when a step gets no memory -------------------------------------------------------------------------


def test_a_step_without_memory_preempts_the_largest_and_nobody_notices():
    run = Run(make_scheduler(), lambda ids: StepResult([1_000 + len(ids)]))
    run.scheduler.submit(submit(1, 5, max_tokens=20))
    run.step()
    run.scheduler.submit(submit(2, 60, max_tokens=20))
    run.step(fails=True)
    assert len(run.scheduler.decoding) == 1
    run.to_the_end().assert_nothing_is_held()
    assert run.output == {1: [1_000 + n for n in range(5, 25)], 2: [1_000 + n for n in range(60, 80)]}
    assert run.scheduler.statistics()["out_of_memory"] == run.scheduler.statistics()["preemptions"] == 1


def test_a_sequence_that_never_gets_memory_ends_and_the_others_go_on():
    run = Run(make_scheduler())
    run.scheduler.submit(submit(1, 5, max_tokens=20))
    run.step()
    run.scheduler.submit(submit(2, 60, max_tokens=20))
    run.step(fails=True)
    run.step(fails=True)
    assert run.finish == {2: "error"}
    assert (run.reports[-1].details.code, run.reports[-1].details.message) == (
        Code.INSUFFICIENT_MEMORY,
        "no memory",
    )
    run.to_the_end().assert_nothing_is_held()
    assert run.finish == {2: "error", 1: "length"}


def test_a_sequence_that_is_alone_and_gets_no_memory_ends():
    run = Run(make_scheduler())
    run.scheduler.submit(submit(1, 60))
    run.step(fails=True)
    assert run.finish == {1: "error"}
    run.to_the_end().assert_nothing_is_held()


def test_a_good_step_in_between_forgives():
    run = Run(make_scheduler())
    run.scheduler.submit(submit(1, 5, max_tokens=50))
    run.step()
    run.scheduler.submit(submit(2, 60, max_tokens=20))
    for _ in range(3):
        run.step(fails=True)
        run.step()
    run.to_the_end().assert_nothing_is_held()
    assert run.finish == {2: "length", 1: "length"}


def test_a_step_without_memory_forgets_what_nobody_uses():
    run = Run(make_scheduler())
    run.scheduler.submit(submit(1, 100, max_tokens=1))
    run.to_the_end()
    assert run.scheduler.statistics()["pages_cached"] == 3
    run.scheduler.submit(submit(2, 5))
    run.step(fails=True)
    assert run.scheduler.statistics()["pages_cached"] == 0
    assert not run.hashes


def test_who_never_comes_further_than_where_memory_ran_out_ends_though_steps_before_go_well():
    """With a state, whose steps all begin again, it would be in the way of the other one to its end."""
    run = Run(make_scheduler(max_step_tokens=40, caches=[group("full"), group("state")], states=8))
    run.scheduler.submit(submit(1, 5, max_tokens=200))
    run.step()
    run.scheduler.submit(submit(2, 200, max_tokens=3))
    while not run.scheduler.is_empty:
        run.step(fails=any(120 < 40 + each.num_computed <= 200 for each in run.scheduler.prefilling))
    run.assert_nothing_is_held()
    assert run.finish == {1: "length", 2: "error"}
    assert run.scheduler.statistics()["out_of_memory"] < 6
