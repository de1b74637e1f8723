"""The heartbeat page: always readable, never torn, even when its writer stopped in the middle."""

import os
import signal
import time

import pytest

from ipc.heartbeat import STATES, HeartbeatPage

ATTACH = """
import os, signal
from ipc.heartbeat import HeartbeatPage
page = HeartbeatPage.attach(argv[0], 2)
"""


@pytest.fixture
def page():
    page = HeartbeatPage.create(2)
    yield page
    page.close()


def test_what_a_rank_says_is_what_is_read(page):
    before = time.monotonic()
    page.beat(1, state="loading", step=0, epoch=3, memory=1 << 40)
    beat = page.read(1)
    assert (beat.state, beat.epoch, beat.step, beat.memory, beat.pid) == (
        "loading",
        3,
        0,
        1 << 40,
        os.getpid(),
    )
    assert before - 1e-6 <= beat.time <= time.monotonic()


def test_epoch_and_memory_stay_until_they_are_said_anew(page):
    page.beat(0, state="loading", step=0, epoch=3, memory=7)
    page.beat(0, state="stepping", step=1)
    assert page.read(0)[:3] == ("stepping", 3, 1)
    page.beat(0, state="ready", step=1, memory=9)
    assert page.read(0).memory == 9


def test_a_rank_that_never_beat_reads_as_starting_at_time_zero(page):
    assert page.read(0) == ("starting", 0, 0, 0.0, 0, 0, 0, 0.0)


def test_an_unknown_state_is_an_error_and_changes_nothing(page):
    page.beat(0, state="ready", step=5)
    with pytest.raises(KeyError, match="dancing"):
        page.beat(0, state="dancing", step=6)
    assert page.read(0).step == 5


BEAT_FOREVER = """
from ipc.heartbeat import STATES
import itertools
for step in itertools.count():
    page.beat(1, state=STATES[step % len(STATES)], step=step, memory=step * 3, epoch=step * 5)
"""


def test_beats_are_never_torn(spawn, page):
    child = spawn(ATTACH + BEAT_FOREVER, page.fd, fds=(page.fd,))
    while page.read(1).time == 0.0 and child.poll() is None:
        os.sched_yield()
    last, refused = -1, 0
    for _ in range(20000):
        try:
            beat = page.read(1)
        except RuntimeError:  # a writer that never rests can be too fast for a reader with less of a core
            refused += 1
            continue
        assert (beat.memory, beat.epoch) == (beat.step * 3, beat.step * 5)
        assert beat.state == STATES[beat.step % len(STATES)]
        assert beat.step >= last
        last = beat.step
    assert last > 0
    assert refused < 10_000


DIE_IN_THE_MIDDLE = """
page.beat(1, state="stepping", step=41)
page._fence = lambda: os.kill(os.getpid(), signal.SIGKILL)
page.beat(1, state="ready", step=42)
"""


def test_a_rank_killed_in_the_middle_of_a_beat_leaves_the_one_before(spawn, page):
    child = spawn(ATTACH + DIE_IN_THE_MIDDLE, page.fd, fds=(page.fd,))
    assert child.wait(20) == -signal.SIGKILL
    assert (page.read(1).state, page.read(1).step) == ("stepping", 41)


def test_memory_that_holds_no_page_is_refused():
    small = HeartbeatPage.create(1)
    with pytest.raises(ValueError, match="no heartbeat page of 2 ranks"):
        HeartbeatPage.attach(small.fd, 2)
    small.close()


@pytest.mark.usefixtures("no_descriptors_left")
def test_close_leaves_no_descriptor_and_may_come_twice():
    page = HeartbeatPage.create(4)
    page.close()
    page.close()


def test_collectives_stay_until_they_are_said_anew(page):
    page.beat(0, state="stepping", step=1, collectives=(60, 0.25))
    page.beat(0, state="ready", step=1)
    beat = page.read(0)
    assert (beat.collectives, beat.collective_seconds) == (60, 0.25)
    assert page.read(1).collectives == 0
