"""How many may wait, and how long; and how long that will be."""

import pytest

from ipc.errors import Code, CortexError
from neuron.admission.bounds import MOST_BYTES, Bounds
from neuron.admission.service_rate import LONGEST, SHORTEST, ServiceRate
from neuron.config import Queue


class Clock:
    def __init__(self):
        self.time = 1000.0

    def __call__(self):
        return self.time


@pytest.fixture
def clock():
    return Clock()


def bounds(clock, limit=10, account_limit=10):
    return Bounds(limit, account_limit, 60, clock)


def refused(room, item, account="a", spare=0):
    with pytest.raises(CortexError) as error:
        room.enter(item, account, spare)
    assert error.value.code == Code.QUEUE_FULL
    return error.value


def test_a_full_line_refuses_and_says_how_full_it_is(clock):
    room = bounds(clock, limit=2)
    room.enter("a", "one")
    room.enter("b", "two")
    error = refused(room, "c", "three")
    assert error.details == {"waiting": 2, "limit": 2}
    assert "queue.limit" in error.message
    assert list(room) == ["a", "b"]


def test_one_account_cannot_fill_the_line(clock):
    room = bounds(clock, limit=4, account_limit=2)
    room.enter(1, "flood")
    room.enter(2, "flood")
    error = refused(room, 3, "flood")
    assert error.details == {"waiting": 2, "limit": 2}
    assert "queue.account_limit" in error.message
    room.enter(4, "other")
    room.leave(1)
    room.enter(5, "flood")
    assert list(room) == [2, 4, 5]


def test_what_waits_has_only_so_many_bytes_of_images(clock):
    room = bounds(clock)
    room.enter("alone", "a", size=MOST_BYTES + 1)
    room.enter("text", "a")
    with pytest.raises(CortexError) as refused:
        room.enter("image", "b", size=1)
    assert refused.value.code == Code.QUEUE_FULL
    assert "images" in refused.value.message
    room.leave("alone")
    room.enter("image", "b", size=MOST_BYTES)
    with pytest.raises(CortexError):
        room.enter("other", "b", size=1)
    assert list(room) == ["text", "image"]


@pytest.mark.parametrize(("limit", "own", "most"), [(512, None, 256), (1, None, 1), (5, None, 3), (8, 8, 8)])
def test_one_account_may_have_half_of_the_line_unless_told_otherwise(limit, own, most):
    assert Queue(limit=limit, account_limit=own).most_of_one_account == most


def test_a_place_that_only_awaits_its_turn_does_not_count(clock):
    room = bounds(clock, limit=1, account_limit=1)
    room.enter(1, "a", spare=1)
    room.enter(2, "a", spare=1)
    refused(room, 3, "a", spare=1)


def test_who_left_waits_no_more(clock):
    room = bounds(clock)
    room.enter(1, "a")
    room.enter(2, "a")
    room.leave(1)
    room.leave(1)
    room.leave("never came")
    assert list(room) == [2]


def test_waiting_ends_after_wait_seconds(clock):
    room = bounds(clock)
    room.start_clock()
    room.enter(1, "a")
    clock.time += 30
    room.enter(2, "a")
    assert room.next_deadline == 1060.0
    assert room.expired() is None
    clock.time += 30
    assert room.expired() == 1
    room.leave(1)
    assert (room.expired(), room.next_deadline) == (None, 1090.0)


def test_time_does_not_count_while_the_model_loads(clock):
    room = bounds(clock)
    room.enter(1, "a")
    clock.time += 500
    assert room.next_deadline is None
    assert room.expired() is None
    room.start_clock()
    assert room.next_deadline == clock.time + 60
    room.stop_clock()
    assert room.next_deadline is None


# --- the rate --------------------------------------------------------------------------------------------


def served(rate, times):
    for time in times:
        rate.count(time)


def test_retry_after_is_how_long_the_line_takes_at_the_rate_that_was_measured():
    rate = ServiceRate()
    rate.begin(100.0)
    served(rate, [103.0 + 3 * turn for turn in range(30)])
    assert rate.retry_after(30, 190.0, guess=0.1) == pytest.approx(90.0)
    assert rate.seconds(1, 190.0) == pytest.approx(3.0)


def test_the_rate_is_that_of_the_last_turns():
    rate = ServiceRate()
    rate.begin(0.0)
    served(rate, range(1, 101))
    served(rate, [100 + 0.25 * turn for turn in range(1, 101)])
    assert rate.seconds_each(125.0) == pytest.approx(0.25)


def test_a_line_that_stands_still_is_not_fast_for_long():
    rate = ServiceRate()
    rate.begin(0.0)
    served(rate, [1.0, 2.0])
    assert rate.seconds_each(2.5) == pytest.approx(1.0)
    assert rate.seconds_each(62.0) > 20


def test_turns_while_nobody_waits_say_nothing():
    rate = ServiceRate()
    served(rate, [1.0, 1.1, 1.2])
    assert rate.seconds(5, 2.0) is None
    rate.begin(10.0)
    served(rate, [14.0, 18.0])
    rate.end(18.0)
    served(rate, [18.1, 18.2])
    assert rate.seconds(5, 1000.0) == pytest.approx(20.0)  # as it was when somebody waited last


@pytest.mark.parametrize(("turns", "guess"), [(0, 0.0), (1, 0.0), (10**6, 10.0)])
def test_retry_after_is_never_0_and_has_an_end(turns, guess):
    assert SHORTEST <= ServiceRate().retry_after(turns, 0.0, guess) <= LONGEST
    rate = ServiceRate()
    rate.begin(0.0)
    served(rate, [1e-6])
    assert SHORTEST <= rate.retry_after(turns, 2e-6, guess) <= LONGEST


def test_where_nothing_was_measured_a_guess_counts():
    assert ServiceRate().retry_after(20, 0.0, guess=2.0) == pytest.approx(40.0)
