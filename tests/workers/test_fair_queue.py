"""Priorities, accounts and order of arrival; and nobody waits for ever."""

from __future__ import annotations

import pytest

from ipc.worker_messages import PlacedImage
from tests.workers.simulation import Run, make_scheduler, submit
from workers.scheduling import fair_queue
from workers.scheduling.fair_queue import PASSING


def order_of_first_tokens(run: Run) -> list[int]:
    run.to_the_end().assert_nothing_is_held()
    return list(dict.fromkeys(report.request_id for report in run.reports if report.token_ids))


def one_at_a_time(**fields: int) -> Run:
    return Run(make_scheduler(max_sequences=1, kv_pages=1_000, **fields))


def test_the_smaller_priority_is_sooner():
    run = one_at_a_time()
    for request_id, priority in enumerate((3, 0, 2, -1, 0)):
        run.scheduler.submit(submit(request_id, 5, max_tokens=2, priority=priority))
    assert order_of_first_tokens(run) == [3, 1, 4, 2, 0]


def test_in_an_account_the_first_that_came_is_the_first_served():
    run = one_at_a_time()
    for request_id in range(5):
        run.scheduler.submit(submit(request_id, 50 - 9 * request_id, max_tokens=2))
    assert order_of_first_tokens(run) == [0, 1, 2, 3, 4]


def test_accounts_take_turns_by_tokens_served():
    run = one_at_a_time()
    for request_id in range(40):
        run.scheduler.submit(submit(request_id, 300, max_tokens=1, account="long"))
    for request_id in range(100, 140):
        run.scheduler.submit(submit(request_id, 99, max_tokens=1, account="short"))
    served = {"long": 0, "short": 0}
    for request_id in order_of_first_tokens(run)[:40]:
        served["long" if request_id < 100 else "short"] += 301 if request_id < 100 else 100
        assert abs(served["long"] - served["short"]) <= 301


def test_accounts_take_turns_within_a_step():
    run = Run(make_scheduler(max_sequences=2))
    for request_id in range(8):
        run.scheduler.submit(
            submit(request_id, 5, max_tokens=1, account="first" if request_id < 4 else "later")
        )
    run.step()
    assert sorted(run.output) == [0, 4]


def test_a_look_at_an_image_counts_as_the_tokens_that_it_is_worth_and_once():
    shared = list(range(100, 164))
    run = Run(make_scheduler(max_sequences=1, max_step_tokens=24, kv_pages=1_000))
    images = [PlacedImage(b"a", 10, 1, 20, cost=1000), PlacedImage(b"b", 40, 1, 10, cost=300)]
    served = []
    for request_id in (1, 2):  # the second finds the first image, and not all of the other, in the cache
        run.scheduler.submit(submit(request_id, shared[:46] + [request_id] * 9, 1, images=images))
        [account] = run.scheduler.queue._accounts.values()
        while run.scheduler.queue._accounts:
            run.step()
            served.append(account.served)
    assert served == [24 + 1000, 48 + 1300, 55 + 1 + 1300, 55 - 32 + 1 + 300]


def test_a_step_that_failed_is_not_paid_for():
    run = Run(make_scheduler())
    images = [PlacedImage(b"a", 5, 1, 20, cost=200), PlacedImage(b"b", 70, 1, 20, cost=1000)]
    run.scheduler.submit(submit(1, 100, max_tokens=1, images=images))
    run.step()
    [account] = run.scheduler.queue._accounts.values()
    before = account.served
    run.step(fails=True)
    assert account.served == before == 64 + 200


def test_an_account_that_was_served_more_waits_even_if_it_paused():
    run = Run(make_scheduler(max_sequences=2, kv_pages=1_000))
    run.scheduler.submit(submit(0, 5, max_tokens=700, account="steady"))
    for request_id in range(1, 4):
        run.scheduler.submit(submit(request_id, 300, max_tokens=1, account="bursts"))
        while request_id not in run.finish:
            run.step()
    run.scheduler.submit(submit(4, 5, max_tokens=1, account="bursts"))
    run.scheduler.submit(submit(5, 5, max_tokens=1, account="steady"))
    assert order_of_first_tokens(run) == [0, 1, 2, 3, 5, 4]


def test_output_counts_as_prompts_do():
    run = one_at_a_time()
    run.scheduler.submit(submit(1, 5, max_tokens=500, account="writer"))
    run.scheduler.submit(submit(2, 5, max_tokens=5, account="writer"))
    for request_id in range(3, 8):
        run.scheduler.submit(submit(request_id, 90, max_tokens=5, account="reader"))
    assert order_of_first_tokens(run) == [1, 3, 4, 5, 6, 7, 2]


def test_a_long_prompt_and_one_of_another_account_share_the_budget():
    run = Run(make_scheduler(max_step_tokens=50))
    run.scheduler.submit(submit(1, 900, max_tokens=1, account="long"))
    for _ in range(4):
        run.step()
    run.scheduler.submit(submit(2, 100, max_tokens=1, account="short"))
    for _ in range(6):
        run.step()
    assert run.finish == {2: "length"}


def test_who_returns_saved_up_no_claim_and_lost_none():
    run = one_at_a_time()
    run.scheduler.submit(submit(0, 100, max_tokens=1, account="away"))
    run.to_the_end()
    for request_id in range(1, 11):
        run.scheduler.submit(submit(request_id, 99, max_tokens=1, account="here"))
    for _ in range(12):
        run.step()
    done = len(run.finish)
    for request_id in range(100, 110):
        run.scheduler.submit(submit(request_id, 99, max_tokens=1, account="away"))
    later = [request_id < 100 for request_id in order_of_first_tokens(run)[done + 1 :]]
    longest = max(len(list(run)) for run in _runs(later[: 2 * (10 - done)]))
    assert longest <= 2, "they alternate from where they meet"


def _runs(values: list[bool]) -> list[list[bool]]:
    runs: list[list[bool]] = [[]]
    for value in values:
        if runs[-1] and runs[-1][-1] != value:
            runs.append([])
        runs[-1].append(value)
    return runs


@pytest.mark.parametrize("more_important", [{"priority": -1}, {"priority": 0}])
def test_a_stream_of_more_important_requests_passes_a_request_so_often_and_no_more(more_important):
    run = one_at_a_time()
    run.scheduler.submit(submit(0, 5, max_tokens=1, priority=-5))
    run.scheduler.submit(submit(1, 5, max_tokens=3, priority=7))
    request_id, answered = 2, 0
    while 1 not in run.finish:
        while run.scheduler.statistics()["waiting"] < 4:
            run.scheduler.submit(submit(request_id, 5, max_tokens=1, **more_important))
            request_id += 1
        run.step()
        answered = len(run.finish)
        assert answered <= PASSING + 5
    assert answered > PASSING


def test_who_waited_too_long_is_not_preempted_by_the_more_important_again(monkeypatch):
    monkeypatch.setattr(fair_queue, "PASSING", 8)
    run = Run(make_scheduler(max_sequences=4, kv_pages=12))
    run.scheduler.submit(submit(0, 40, max_tokens=300, priority=7))
    request_id, runs_from_now_on = 1, False
    while 0 not in run.finish:
        while run.scheduler.statistics()["waiting"] < 4:
            run.scheduler.submit(submit(request_id, 40, max_tokens=150))
            request_id += 1
        run.step()
        assert request_id < 30
        patient = run.scheduler._open.get(0)
        if patient is not None:
            runs = patient.slot is not None
            assert runs or not runs_from_now_on
            runs_from_now_on = runs and run.scheduler.queue._departures - patient.first_since > 8
    assert run.scheduler.statistics()["preemptions"] > 0


def test_accounts_that_nobody_knows_any_longer_take_no_memory():
    run = one_at_a_time()
    for request_id in range(100):
        run.scheduler.submit(submit(request_id, 5, max_tokens=1, account=str(request_id)))
        run.step()
    run.to_the_end()
    assert not run.scheduler.queue._accounts
