"""The next step is planned and sent while one runs, and nobody gets another answer for that."""

from __future__ import annotations

import pytest

from tests.workers.simulation import END, Run, make_scheduler, submit
from workers.step.engine import Extra, StepResult


def count(token_ids: list[int]) -> StepResult:
    """An answer that tells its place, and ends at 20 tokens."""
    return StepResult([END if len(token_ids) == 20 else 1_000 + len(token_ids)])


def test_a_step_feeds_the_token_that_the_one_before_it_will_bring():
    run = Run(make_scheduler(), count, in_flight=1)
    run.scheduler.submit(submit(1, 5, max_tokens=4))
    plans = [run.send(), run.send()]
    assert [plan.scheduled[0].num_tokens for plan in plans] == [5, 1]
    assert not run.output
    run.observe()
    assert run.output == {1: [1_005]}
    run.to_the_end().assert_nothing_is_held()
    assert run.output == {1: [1_005, 1_006, 1_007, 1_008]}
    assert len([plan for plan in run.plans if plan]) == 4, "no step is sent beyond `max_tokens`"


def test_what_is_computed_after_a_stop_is_reported_to_nobody():
    run = Run(make_scheduler(), count, in_flight=1)
    run.scheduler.submit(submit(1, 18))
    run.scheduler.submit(submit(2, 3, max_tokens=30))
    run.to_the_end().assert_nothing_is_held()
    assert run.output[1] == [1_018, 1_019, END]
    assert run.finish == {1: "stop", 2: "stop"}
    assert run.engine.computed > 18 + 2 + 3 + 17, "it was sent once more"


@pytest.mark.parametrize("finish", ["stop", "error"])
def test_the_engine_ends_a_sequence_whose_next_step_is_on_its_way(finish):
    over = StepResult([-1], {0: Extra(finish=finish, code="internal" if finish == "error" else "")})
    run = Run(make_scheduler(), lambda ids: over if len(ids) == 70 else StepResult([7]), in_flight=1)
    run.scheduler.submit(submit(1, 60))
    run.scheduler.submit(submit(2, 5, max_tokens=40))
    run.to_the_end().assert_nothing_is_held()
    assert (run.output[1], run.finish[1]) == ([7] * 10, finish)
    assert len(run.output[2]) == 40
    assert run.scheduler.statistics()["pages_cached"] == (1 + 2 * (finish == "stop"))


def test_an_abort_with_steps_in_flight_frees_slot_and_pages_at_once():
    run = Run(make_scheduler(max_sequences=1), count, in_flight=1)
    run.scheduler.submit(submit(1, 5))
    run.scheduler.submit(submit(2, 5, max_tokens=3))
    run.send()
    run.send()
    run.recorded.abort(1)
    assert run.scheduler.cache.pages.num_free == run.scheduler.cache.pages.total
    plan = run.send()
    assert (plan.released, len(plan.added)) == ([0], 1), "its slot is another's in the next step"
    run.to_the_end().assert_nothing_is_held()
    assert run.finish == {1: "aborted", 2: "length"}
    assert run.output == {1: [], 2: [1_005, 1_006, 1_007]}


def test_a_step_that_fails_takes_those_after_it_along():
    run = Run(make_scheduler(), count, in_flight=2)
    run.scheduler.submit(submit(1, 5, max_tokens=10))
    run.step()
    run.scheduler.submit(submit(2, 12, max_tokens=6))
    run.send(fails=True)
    run.send()
    run.send()
    run.to_the_end().assert_nothing_is_held()
    assert run.output == {1: [1_005 + n for n in range(10)], 2: [1_012 + n for n in range(6)]}
    assert run.scheduler.statistics()["out_of_memory"] == 1


def test_nobody_is_preempted_for_pages_that_a_step_in_flight_gives_back():
    run = Run(make_scheduler(kv_pages=4, max_sequences=2), lambda ids: StepResult([7]), in_flight=1)
    run.scheduler.submit(submit(1, 30, max_tokens=34))
    run.scheduler.submit(submit(2, 30, max_tokens=34))
    run.to_the_end().assert_nothing_is_held()
    assert run.scheduler.statistics()["preemptions"] == 0


def test_preemption_waits_for_the_steps_in_flight_and_loses_no_token():
    def place(ids: list[int]) -> StepResult:
        return StepResult([1_000 + len(ids)])

    run = Run(make_scheduler(kv_pages=6, max_step_tokens=256), place, in_flight=1)
    for request_id in range(3):
        run.scheduler.submit(submit(request_id, 30, max_tokens=100))
    run.to_the_end().assert_nothing_is_held()
    assert run.scheduler.statistics()["preemptions"] >= 1
    assert all(output == [1_000 + n for n in range(30, 130)] for output in run.output.values())
    assert run.engine.computed < 3 * 130 + 3 * 100


def test_each_plan_tells_the_tokens_that_came_since_the_last_one():
    run = Run(make_scheduler(), count)
    run.scheduler.submit(submit(1, 5, max_tokens=4))
    run.to_the_end()
    assert [plan.tokens for plan in run.plans if plan] == [[], [1_005], [1_006], [1_007]]
    run = Run(make_scheduler(), count, in_flight=1)
    run.scheduler.submit(submit(1, 5, max_tokens=4))
    run.to_the_end()
    assert [plan.tokens for plan in run.plans if plan] == [[], [], [1_005], [1_006]]
