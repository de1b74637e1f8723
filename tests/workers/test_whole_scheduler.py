"""What is computed as a whole goes through one step, within its budget and in its turn."""

from __future__ import annotations

from array import array

import pytest

from ipc.errors import Code
from ipc.worker_messages import Submit
from workers.scheduling.whole import WholeScheduler
from workers.step.engine import Extra, StepResult


def scheduler(*lengths: int, accounts: str = "", **limits: int) -> WholeScheduler:
    """One in which texts of these lengths wait; `accounts` has a letter for each."""
    made = WholeScheduler(**{"max_sequences": 4, "max_step_tokens": 20, "context_length": 15} | limits)
    for number, length in enumerate(lengths):
        account = accounts[number] if accounts else ""
        ids = array("I", [number] * length).tobytes()
        made.submit(Submit(number, ids, 1, pooling="mean", account=account))
    return made


def planned(made: WholeScheduler) -> list[int]:
    """The requests of the next step; nothing where there is none."""
    plan = made.plan()
    if plan is None:
        return []
    assert [entry.slot for entry in plan.scheduled] == [new.slot for new in plan.added]
    assert [entry.num_tokens for entry in plan.scheduled] == [new.prompt_len for new in plan.added]
    return [array("I", new.token_ids)[0] for new in plan.added]


def result(count: int) -> StepResult:
    return StepResult([-1] * count, {index: Extra(embedding=bytes([index])) for index in range(count)})


def finished(made: WholeScheduler) -> dict[int, str]:
    return {report.request_id: report.finish for report in made.take_reports()}


def test_a_step_has_whole_texts_within_its_budget_and_in_their_order():
    made = scheduler(10, 9, 2, 15, 1, 1, 1, 1)
    assert planned(made) == [0, 1]  # the next has two tokens, and there is room for one
    assert planned(made) == [2, 3, 4, 5]  # while the first step runs; no more than four sequences
    made.observe(result(2))
    made.observe(result(4))
    assert finished(made) == dict.fromkeys(range(6), "stop")
    assert planned(made) == [6, 7]
    made.observe(result(2))
    assert planned(made) == []
    assert made.statistics()["prompt_tokens"] == 40


def test_accounts_take_turns():
    made = scheduler(6, 6, 6, 6, 6, accounts="aaabb", max_step_tokens=12)
    assert planned(made) == [0, 3]
    assert planned(made) == [1, 4]


def test_what_can_never_be_computed_is_answered_at_once():
    made = scheduler(16, 0, 15)
    made.submit(Submit(9, array("I", [1]).tobytes(), 1))
    codes = {report.request_id: report.details.code for report in made.take_reports()}
    assert codes == {0: Code.CONTEXT_LENGTH_EXCEEDED, 1: Code.BAD_REQUEST, 9: Code.NOT_SUPPORTED}
    assert planned(made) == [2]
    with pytest.raises(ValueError, match="open already"):
        made.submit(Submit(2, array("I", [1]).tobytes(), 1, pooling="mean"))


def test_who_is_aborted_gets_one_report_waiting_or_in_a_step():
    made = scheduler(10, 10, 10)
    assert planned(made) == [0, 1]
    made.abort(1)
    made.abort(2)
    made.abort(2)
    made.observe(result(2))
    reports = [(report.request_id, report.finish) for report in made.take_reports()]
    assert reports == [(1, "aborted"), (2, "aborted"), (0, "stop")]
    assert planned(made) == []
    assert made.statistics()["waiting"] == made.statistics()["running"] == 0


def test_a_step_without_memory_is_tried_again_by_halves_and_who_is_alone_fails():
    made = scheduler(5, 5, 5, 5)
    assert planned(made) == [0, 1, 2, 3]
    made.step_failed("none left")
    assert planned(made) == [0, 1]
    assert planned(made) == [2, 3]  # sent before the first is known to fail
    made.step_failed("none left")
    assert planned(made) == [0]
    made.step_failed("none left")
    assert finished(made) == {0: "error"}
    assert planned(made) == [1]
    made.observe(result(1))
    assert planned(made) == [2, 3]
    made.observe(result(2))
    assert finished(made) == {1: "stop", 2: "stop", 3: "stop"}
    assert made.statistics()["out_of_memory"] == 3


def test_an_engine_that_forgets_one_is_broken():
    made = scheduler(5, 5)
    planned(made)
    with pytest.raises(ValueError, match="request 1 has no vector"):
        made.observe(StepResult([-1, -1], {0: Extra(embedding=b"x")}))
