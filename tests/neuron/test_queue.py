import pytest

from ipc.errors import Code, CortexError
from neuron.models.queue import WaitingLine


class Clock:
    def __init__(self):
        self.time = 1000.0

    def __call__(self):
        return self.time


@pytest.fixture
def clock():
    return Clock()


def test_a_full_room_refuses_with_a_time_to_come_back(clock):
    room = WaitingLine(2, 60, clock)
    room.push("a")
    room.push("b")
    with pytest.raises(CortexError) as refused:
        room.push("c")
    assert refused.value.code == Code.QUEUE_FULL
    assert 1 <= refused.value.retry_after <= 120
    assert refused.value.details == {"waiting": 2, "limit": 2}
    assert list(room) == ["a", "b"]


def test_retry_after_follows_how_fast_the_line_moves(clock):
    room = WaitingLine(100, 600, clock)
    for number in range(60):
        room.push(number)
    for _ in range(30):
        room.depart(next(iter(room)))
        clock.time += 3.0
    assert room.retry_after() == pytest.approx(30 * 3.0, rel=0.05)


def test_a_place_that_only_awaits_its_turn_does_not_count(clock):
    room = WaitingLine(1, 60, clock)
    room.push("a", spare=1)
    room.push("b", spare=1)
    with pytest.raises(CortexError):
        room.push("c", spare=1)


def test_who_left_is_not_served(clock):
    room = WaitingLine(10, 60, clock)
    room.push("a")
    room.push("b")
    room.discard("a")
    room.discard("never came")
    assert list(room) == ["b"]


def test_waiting_ends_after_wait_seconds(clock):
    room = WaitingLine(10, 60, clock)
    room.start_clock()
    room.push("a")
    clock.time += 30
    room.push("b")
    assert room.next_deadline == 1060.0
    clock.time += 30
    assert room.expired() == ["a"]
    assert room.next_deadline == 1090.0
    assert list(room) == ["b"]


def test_time_does_not_count_while_the_model_loads(clock):
    room = WaitingLine(10, 60, clock)
    room.push("a")
    clock.time += 500
    assert room.next_deadline is None
    assert room.expired() == []
    room.start_clock()
    assert room.next_deadline == clock.time + 60
    room.stop_clock()
    assert room.next_deadline is None
