"""CPU threads follow what is free, and come back."""

from __future__ import annotations

import pytest

from tests.workers.engines import logits_of
from tests.workers.test_model import load
from workers.execution import threads
from workers.execution.threads import Threads, Use, use


class Machine:
    """Cores that somebody uses, in a time of its own."""

    def __init__(self, monkeypatch, cores: int, most: int) -> None:
        self.now, self.busy, self.own = 100.0, 0.0, 0.0
        self.looks = True
        self.changes: list[int] = []
        monkeypatch.setattr(threads.time, "monotonic", lambda: self.now)
        self.threads = Threads(most, cores, self.look, self.changes.append)

    def look(self) -> Use | None:
        return Use(self.now, self.busy, self.own) if self.looks else None

    def steps(self, seconds: float, others: float, own: float = 1.0) -> None:
        """Steps of 10 ms each, beside others that use so many cores."""
        for _ in range(int(seconds * 100)):
            self.threads.follow()
            self.now += 0.01
            self.busy += 0.01 * (others + own)
            self.own += 0.01 * own


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch, 4, 4)


def test_on_a_quiet_machine_all_threads_stay(machine):
    machine.steps(5, others=0.1, own=3.8)
    assert machine.changes == []


def test_cores_that_others_use_are_left_to_them_and_taken_again(machine):
    machine.steps(3, others=2.0)
    assert machine.changes == [2]
    machine.steps(3, others=4.0)
    assert machine.changes == [2, 1]
    machine.steps(3, others=0.0)
    assert machine.changes == [2, 1, 4]


def test_a_use_that_is_neither_here_nor_there_changes_nothing_back_and_forth(machine):
    for _ in range(10):
        machine.steps(1, others=1.4)
        machine.steps(1, others=1.6)
    assert len(machine.changes) <= 2


def test_a_pause_is_no_measure_of_the_steps_after_it(machine):
    machine.steps(1, others=0.0)
    machine.now += 60
    machine.busy += 240
    machine.steps(1, others=0.0)
    assert machine.changes == []


def test_more_cores_than_threads_leave_room_for_others(monkeypatch):
    machine = Machine(monkeypatch, cores=8, most=2)
    machine.steps(3, others=6.0)
    assert machine.changes == []


def test_where_the_kernel_says_nothing_the_number_stays(machine):
    machine.looks = False
    machine.steps(3, others=4.0)
    assert machine.changes == []


@pytest.mark.parametrize("exact", [False, True])
def test_an_engine_looks_before_each_step_unless_a_thread_may_change_no_bit(tiny, exact, monkeypatch):
    runner = load(tiny("qwen3_tied").folder, exact=exact)
    steps: list[int] = []
    monkeypatch.setattr(Threads, "follow", lambda self: steps.append(self.most))
    logits_of(runner, [1, 2, 3])
    assert len(steps) == (0 if exact else 1)


def test_what_the_kernel_says_holds_for_this_process():
    before = use()
    if before is None:
        pytest.skip("there is no /proc/stat")
    while (now := use()).own < before.own + 0.2:
        pass
    assert now.at > before.at
    assert now.busy - before.busy >= 0.1  # in ticks of 10 ms


@pytest.mark.parametrize("cores", [1, 2, 16])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("others", [0, 1, 6, 15.5])
def test_threads_of_all_ranks_follow_free_cores_to_less_than_one_too_many_each(ranks, cores, others):
    most = max(1, cores // ranks)
    each = Threads(most, cores)
    for _ in range(10):
        free = max(0.0, cores - others)
        own = min(each.count, free / ranks)  # all of them compute at once, and share what is left to them
        busy = min(cores, others) + ranks * own
        each.count = each.wanted(Use(0.0, 0.0, 0.0), Use(1.0, busy, own))
    assert each.wanted(Use(0.0, 0.0, 0.0), Use(1.0, 0.0, 0.0)) <= most  # while the others are idle
    assert ranks * (each.count - 1) < max(1, free)
