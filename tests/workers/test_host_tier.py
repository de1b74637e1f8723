"""States that leave the device come back from the host as they went, and take no more room than they may."""

from __future__ import annotations

import random
from itertools import chain

import pytest

from ipc.worker_messages import PAGE_SIZE
from tests.workers.simulation import Run, group, make_scheduler, submit
from workers.checkpoints.caches import LIVE_STATES

HYBRID = [group("full"), group("state")]
TURN = 3 * PAGE_SIZE  # tokens that a turn adds


def conversations(count: int, **changes: int) -> tuple[Run, list[list[int]]]:
    """A hybrid with room for the states of one sequence, and beginnings of so many conversations."""
    limits = {"states": LIVE_STATES, "host_states": 4 * count, "kv_pages": 400, "max_sequences": 1}
    run = Run(make_scheduler(context_length=2_000, caches=HYBRID, **limits | changes))
    return run, [[1_000 * number + i for i in range(5 * PAGE_SIZE)] for number in range(count)]


def turn(run: Run, request_id: int, text: list[int]) -> int:
    """Add a turn and its answer to a conversation; returns the tokens that were not computed again."""
    text += [request_id + i for i in range(TURN)]
    run.scheduler.submit(submit(request_id, text, max_tokens=PAGE_SIZE))
    run.to_the_end().engine.check_pages()
    text += run.output[request_id]
    return run.cached[request_id]


def test_a_conversation_goes_on_from_a_state_that_others_drove_out():
    run, texts = conversations(4)
    for number, text in enumerate(texts):
        assert turn(run, number, text) == 0
    for number, text in enumerate(texts, len(texts)):
        before = len(text)
        assert turn(run, number, text) >= before - PAGE_SIZE - 1, "all but what was not a full page"
    assert run.engine.came_back == 4
    run.assert_nothing_is_held()


def test_without_room_on_the_host_it_begins_again():
    run, texts = conversations(4, host_states=0)
    for number, text in enumerate(chain(texts, texts)):
        assert turn(run, number, text) == 0
    assert not any(plan.moves for plan in run.plans if plan)


@pytest.mark.parametrize("places", [1, 2])
def test_who_was_wanted_last_stays_and_no_more_than_the_budget(places):
    run, texts = conversations(4, host_states=places)
    for number, text in enumerate(texts):
        turn(run, number, text)
        assert len(run.scheduler.cache.host) <= places
    assert turn(run, 10, texts[-1])
    assert not turn(run, 11, texts[0])
    assert {move.place for plan in run.plans if plan for move in plan.moves} == set(range(places))


def test_a_preempted_sequence_goes_on_from_a_state_on_the_host():
    """Two that do not fit together: one waits for pages, and the other meanwhile drives out its states."""
    run, texts = conversations(2, kv_pages=36, states=2 * LIVE_STATES, max_sequences=2)
    for number, text in enumerate(texts):
        run.scheduler.submit(submit(number, text, max_tokens=16 * PAGE_SIZE))
    run.to_the_end().assert_nothing_is_held()
    assert run.finish == {0: "length", 1: "length"}
    assert run.scheduler.statistics()["preemptions"] == run.engine.came_back == 1
    assert run.engine.computed - 2 * (21 * PAGE_SIZE - 1) < 3 * PAGE_SIZE, "so little was computed twice"


def test_what_a_failed_sequence_may_have_spoilt_is_on_no_host():
    run, texts = conversations(3)
    for number, text in enumerate(texts):
        turn(run, number, text)
    assert len(run.scheduler.cache.host)
    run.scheduler.submit(submit(9, texts[0], max_tokens=5))
    run.step(fails=True)
    run.to_the_end().assert_nothing_is_held()
    assert run.finish[9] == "error"
    assert not len(run.scheduler.cache.host)
    assert turn(run, 10, texts[1]) == 0


@pytest.mark.parametrize("in_flight", [0, 1, 2])
@pytest.mark.parametrize("host_states", [1, 4, 30])
def test_whatever_comes_in_between_what_is_read_is_what_was_kept(host_states, in_flight):
    """Turns come at random, several at once, some cut off; the engine looks at what each step reads."""
    dice = random.Random(host_states)
    run, texts = conversations(8, host_states=host_states, states=7, max_sequences=3)
    run.in_flight = in_flight
    running: dict[int, int] = {}  # request -> conversation
    for request_id in range(80):
        number = dice.choice([each for each in range(len(texts)) if each not in running.values()])
        texts[number] += [request_id + i for i in range(dice.choice((1, 40, 100)))]
        texts[number] = texts[number][:1_500]
        run.scheduler.submit(submit(request_id, texts[number], max_tokens=dice.choice((1, 33, 70))))
        running[request_id] = number
        for _ in range(dice.randrange(40) if len(running) < len(texts) else 200):
            run.step(fails=dice.random() < 0.002)
        if dice.random() < 0.1:
            run.scheduler.abort(request_id)
            run.take()
        run.engine.check_pages()
        for ended in running.keys() & run.finish.keys():
            texts[running.pop(ended)] += run.output[ended]
    run.to_the_end().assert_nothing_is_held()
    assert run.engine.came_back
    assert run.finish.keys() == set(range(80))
