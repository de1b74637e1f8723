"""States that leave the device come back from the host as they went, and take no more room than they may."""

from __future__ import annotations

import random
from array import array
from itertools import chain

import pytest

from ipc.worker_messages import PAGE_SIZE
from tests.workers.simulation import Run, group, make_scheduler, submit
from workers.checkpoints.caches import LIVE_STATES
from workers.scheduling.host_tier import HostTier
from workers.scheduling.page_pool import PagePool
from workers.scheduling.sequence import Sequence
from workers.step.plan import HOLE

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


def test_who_was_wanted_last_stays_though_it_came_first():
    tier, states = HostTier(2), PagePool(4, 1)

    def here() -> set[bytes]:
        return {digest for digest in (b"a", b"b", b"c", b"d", b"e") if (0, digest) in tier}

    tier.keep(0, 0, b"a")
    tier.keep(1, 0, b"b")
    tier.bring_back(0, b"a", states)
    tier.keep(2, 0, b"c")
    assert here() == {b"a", b"c"}
    tier.keep(3, 0, b"a")  # which is there already
    tier.keep(1, 0, b"d")
    assert here() == {b"a", b"d"}
    tier.make_way(0, b"d")
    tier.keep(1, 0, b"e")
    assert here() == {b"a", b"e"}
    assert [move.state for move in tier.take_moves() if move.leaves] == [0, 1, 2, 1, 1]


def test_what_an_answer_only_passes_drives_nobody_out():
    run, texts = conversations(6, states=3 * LIVE_STATES, host_states=20, max_sequences=3)
    for number, text in enumerate(texts):
        turn(run, number, text)
    for number in range(3):  # long answers to others
        text = [50_000 + 1_000 * number + i for i in range(5 * PAGE_SIZE)]
        run.scheduler.submit(submit(10 + number, text, max_tokens=20 * PAGE_SIZE))
    run.to_the_end()
    assert all(turn(run, 20 + number, text) for number, text in enumerate(texts))


def test_what_comes_back_is_paid_for_as_if_it_were_computed():
    run, texts = conversations(2)
    turn(run, 0, texts[0])
    turn(run, 1, texts[1])
    cache = run.scheduler.cache
    tokens = [*texts[0], 7]
    again = Sequence(
        submit(2, tokens, max_tokens=1), array("I", tokens), len(tokens), len(tokens) + 1, None, 0
    )
    found = cache.find(again)
    assert found[1][-1] == HOLE
    assert cache.cost(again, found).states == cache.cost(again, []).states + 1


def test_a_preempted_sequence_goes_on_from_a_state_on_the_host():
    """Two that do not fit together: one waits for pages, and the other meanwhile drives out its states."""
    limits = {"kv_pages": 36, "states": 2 * LIVE_STATES, "host_states": 40, "max_sequences": 2}
    run, texts = conversations(2, **limits)
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
