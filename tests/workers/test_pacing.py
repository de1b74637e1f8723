"""Prompts ride along without holding up the streams, on any device."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.scheduling.pacing import FIRST_CHUNK, GROWTH, MIXED, SMALLEST_CHUNK, Pace


def join(pace: Pace, *, decode: float, token, prompt: int) -> list[float]:
    """Feed a prompt as a scheduler would; `token(position)` is what a token there takes. Seconds per step."""
    steps, done = [], 0
    while done < prompt:
        chunk = min(pace.chunk(), prompt - done)
        seconds = decode + sum(token(done + i) for i in range(chunk))
        pace.observe(8, chunk, seconds)
        steps.append(seconds)
        done += chunk
    return steps


@pytest.mark.parametrize("decode", [0.002, 0.1])
@pytest.mark.parametrize("token", [1e-6, 5e-6, 4e-5])
def test_a_long_prompt_never_makes_a_step_three_times_as_long(decode, token):
    pace = Pace(4096)
    pace.observe(0, 400, 400 * token)  # the prompts of the streams
    for _ in range(20):
        pace.observe(8, 0, decode)
    steps = join(pace, decode=decode, token=lambda position: token * (1 + position / 8192), prompt=16_384)
    assert max(steps) <= 3 * decode


def test_a_prompt_uses_the_time_that_it_may():
    pace = Pace(4096)
    pace.observe(8, 0, 0.1)
    steps = join(pace, decode=0.1, token=lambda _: 1e-4, prompt=16_384)
    assert len(steps) < 25  # 1,000 tokens in the 100 ms that a step may take more


def test_when_nobody_waits_a_step_takes_all_it_can():
    pace = Pace(4096)
    assert pace.chunk() == 4096
    pace.observe(0, 4096, 1.0)
    assert pace.chunk() == 4096


def test_one_slow_step_is_no_reason_to_crawl():
    pace = Pace(4096)
    for _ in range(15):
        pace.observe(8, 0, 0.01)
    for _ in range(10):
        pace.observe(8, 100, 0.02)
    pace.observe(8, 100, 1.0)  # the machine was busy with something else
    slow = pace.chunk()
    for _ in range(10):
        chunk = pace.chunk()
        pace.observe(8, chunk, 0.01 + chunk * 1e-4)
    assert slow == SMALLEST_CHUNK
    if not pace.chunk():  # a look at the streams alone
        pace.observe(8, 0, 0.01)
    assert pace.chunk() > 80


def test_a_look_at_an_image_never_makes_a_step_three_times_as_long():
    """Unless a piece of it alone takes as long."""
    pace, decode, each = Pace(4096), 0.02, 1e-11
    pace.observe(8, 0, decode)
    steps, left, piece = [], 10**11, 10**8
    while left > 0:
        done = min(left, -(-pace.work() // piece) * piece)  # pieces are not divided
        left -= done
        steps.append(decode + done * each)
        pace.observe(8, 0, steps[-1], done)
    assert max(steps) <= 3 * decode
    assert len(steps) < 100, "and has a half of the time"


def test_what_an_image_takes_is_not_taken_for_the_cost_of_a_prompt():
    pace = Pace(4096)
    assert pace.work() is None, "nobody waits"
    pace.observe(8, 0, 0.1)
    for _ in range(8):
        pace.observe(8, pace.chunk(), 0.1 + pace.chunk() * 1e-4)
    before = pace.chunk()
    pace.observe(0, 2048, 10.0, 10**10)
    assert pace.chunk() == before


def test_streams_that_get_slower_leave_more_time_to_a_prompt():
    pace, decode, chunks = Pace(4096), 0.01, []
    pace.observe(8, 0, decode)
    for _ in range(1_000):
        chunk = pace.chunk()
        pace.observe(8, chunk, decode + chunk * 1e-3)
        chunks.append(chunk)
        decode *= 1.002
    assert chunks[20] == pytest.approx(10, abs=3)
    assert max(chunks[-40:]) > 40
    assert chunks.count(0) == pytest.approx(1_000 / 33, abs=2)


seconds = st.floats(0, 100, allow_subnormal=False)


@given(st.lists(st.tuples(st.integers(0, 256), st.integers(0, 4096), seconds)))
def test_a_chunk_is_never_over_the_limit_and_empty_only_after_many(steps):
    pace, last, mixed = Pace(512), 0, 0
    for decode_tokens, prompt_tokens, seconds in steps:
        pace.observe(decode_tokens, prompt_tokens, seconds)
        mixed = mixed + 1 if decode_tokens and prompt_tokens else 0
        chunk = pace.chunk()
        assert (0 if mixed >= MIXED else 1) <= chunk <= 512
        if decode_tokens and prompt_tokens:
            last = prompt_tokens
            assert chunk <= max(FIRST_CHUNK, GROWTH * last) or chunk == 512
