"""All promises of the scheduler together, through very many random steps."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.simulation import STORM_STEPS, Shape, Storm, replay
from workers.scheduling import fair_queue
from workers.scheduling.scheduler import Scheduler


@pytest.fixture(autouse=True, scope="module")
def impatience():
    """So that waiting too long is an everyday matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fair_queue, "PASSING", 5)
        yield


@pytest.mark.parametrize("kv_pages", [5, 12, 40])
@pytest.mark.parametrize("max_step_tokens", [7, 64, 512])
@pytest.mark.parametrize("max_sequences", [1, 4, 32])
def test_a_long_storm_leaks_nothing_and_answers_everybody(max_sequences, max_step_tokens, kv_pages):
    shape = Shape(max_sequences, max_step_tokens, context_length=300, kv_pages=kv_pages)
    Storm(shape, seed=max_sequences * max_step_tokens * kv_pages).rage(STORM_STEPS).calm()


@settings(max_examples=60, deadline=None)
@given(
    shape=st.builds(
        Shape,
        max_sequences=st.integers(1, 12),
        max_step_tokens=st.integers(1, 100),
        context_length=st.integers(2, 300),
        kv_pages=st.integers(1, 20),
    ),
    seed=st.integers(0, 2**32),
)
def test_any_shape_leaks_nothing_and_answers_everybody(shape, seed):
    Storm(shape, seed).rage(60).calm()


@pytest.mark.parametrize("seed", range(5))
def test_a_recorded_event_log_replays_to_the_same_plans(seed):
    shape = Shape(max_sequences=8, max_step_tokens=64, context_length=300, kv_pages=20)
    storm = Storm(shape, seed).rage(300).calm()
    plans, reports = replay(Scheduler(**vars(shape)), storm.run.recorded.events)
    encode = msgspec.msgpack.encode
    assert encode(plans) == encode(storm.run.plans)
    assert encode(reports) == encode(storm.run.reports)
