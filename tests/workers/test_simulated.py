from array import array
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from ipc.errors import Code, CortexError
from ipc.heartbeat import HeartbeatPage
from ipc.worker_messages import (
    CacheGroup,
    FailurePlan,
    PlacedImage,
    RingHandle,
    SamplingParams,
    SimulatedSpec,
    WorkerSpec,
)
from workers.process import simulated
from workers.process.simulated import SimulatedEngine
from workers.step.engine import OutOfDeviceMemory
from workers.step.plan import HOLE, LookAt, NewSequence, Scheduled, StepPlan

ANSWER = [11, 12, 13]


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves by sleeping only, and by `oversleep` more each time."""
    clock = SimpleNamespace(now=100.0, oversleep=0.0)

    def sleep(seconds: float) -> None:
        assert seconds >= 0
        clock.now += seconds + clock.oversleep

    monkeypatch.setattr(simulated, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    return clock


@pytest.fixture
def heartbeat():
    page = HeartbeatPage.create(4)
    yield page
    page.close()


def engine(heartbeat: HeartbeatPage, *, rank=0, world_size=1, epoch=1, **changes: Any) -> SimulatedEngine:
    spec = WorkerSpec(
        model="test",
        engine="simulated",
        epoch=epoch,
        rank=rank,
        world_size=world_size,
        device="cpu",
        threads=1,
        context_length=100,
        max_sequences=4,
        max_step_tokens=100,
        kv_pages=10,
        simulated=SimulatedSpec(**{"answer": ANSWER} | changes),
        reports=RingHandle(memory_fd=-1, data_fd=-1, space_fd=-1),
        heartbeat_fd=-1,
    )
    return SimulatedEngine(spec, heartbeat)


def new(slot: int, tokens: int, prompt_len: int) -> NewSequence:
    return NewSequence(slot, prompt_len, array("I", [5] * tokens).tobytes(), SamplingParams())


def plan(step: int, *scheduled: Scheduled, added: tuple[NewSequence, ...] = ()) -> StepPlan:
    return StepPlan(step, [], list(added), list(scheduled))


def test_the_answer_repeats_and_each_sequence_has_its_own_place_in_it(heartbeat):
    sim = engine(heartbeat)
    assert sim.execute(plan(1, Scheduled(0, 5), added=(new(0, 5, 5),))).tokens == [11]
    assert sim.execute(plan(2, Scheduled(0, 1), Scheduled(1, 3), added=(new(1, 4, 4),))).tokens == [12]
    assert sim.execute(plan(3, Scheduled(0, 1), Scheduled(1, 1))).tokens == [13, 11]
    assert sim.execute(plan(4, Scheduled(0, 1), Scheduled(1, 1))).tokens == [11, 12]


def test_an_image_is_seen_at_once(heartbeat):
    look = LookAt(PlacedImage(b"digest", 1, 1, 1), 1)
    sim, step = engine(heartbeat), plan(1, Scheduled(0, 5), added=(new(0, 5, 5),))
    assert sim.execute(msgspec.structs.replace(step, look=look)).seen


def test_a_preempted_sequence_goes_on_where_it_was(heartbeat):
    assert engine(heartbeat).execute(plan(1, Scheduled(0, 7), added=(new(0, 7, prompt_len=5),))).tokens == [
        13
    ]


@pytest.mark.parametrize(
    ("kind", "table", "finds"),
    [
        ("full", [1, 2, 3, 4], True),
        ("full", [HOLE, 2, 3, 4], False),
        ("window", [HOLE, HOLE, 3, 4], True),
        ("window", [HOLE, HOLE, HOLE, 4], False),
        ("state", [HOLE, HOLE, 3, 4], True),
        ("state", [HOLE, HOLE, HOLE, 4], False),
        ("state", [1, 2, 3, HOLE], False),
        ("latent", [1, 2, 3, HOLE], False),
    ],
)
def test_a_plan_without_a_page_that_a_layer_needs_is_refused(heartbeat, kind, table, finds):
    window = 20 if kind == "window" else 0
    sim = engine(heartbeat, caches=[CacheGroup(kind=kind, layers=[0], window=window)])
    begun = msgspec.structs.replace(new(0, 100, 100), tables=[table[:3]])
    step = plan(1, Scheduled(0, 4, [table[3:]]), added=(begun,))
    if finds:
        assert sim.execute(step).tokens == [11]
    else:
        with pytest.raises(RuntimeError, match=f"a {kind} group"):
            sim.execute(step)


def test_other_ranks_sample_nothing_and_wait_for_the_tokens_of_the_first(heartbeat):
    sim = engine(heartbeat, rank=1)
    assert sim.execute(plan(1, Scheduled(0, 5), added=(new(0, 5, 5),))).tokens == []
    told = msgspec.structs.replace(plan(2, Scheduled(0, 1)), tokens=[11])
    assert sim.execute(told).tokens == []
    with pytest.raises(RuntimeError, match="0 tokens of 1"):
        sim.execute(plan(3, Scheduled(0, 1)))


def test_step_and_prefill_take_the_time_of_the_spec(heartbeat, clock):
    sim = engine(heartbeat, step_seconds=0.02, prefill_tokens_per_second=1_000)
    sim.execute(plan(1, Scheduled(0, 50), added=(new(0, 50, 50),)))
    assert clock.now == pytest.approx(100.05)
    sim.execute(plan(2, Scheduled(0, 1), Scheduled(1, 10), added=(new(1, 10, 10),)))
    assert clock.now == pytest.approx(100.08)


def test_late_sleeps_and_scheduling_add_nothing_to_steps_that_follow_each_other(heartbeat, clock):
    sim = engine(heartbeat, step_seconds=0.02)
    clock.oversleep = 0.001
    sim.execute(plan(1, Scheduled(0, 1), added=(new(0, 1, 1),)))
    for step in range(2, 102):
        clock.now += 0.002
        sim.execute(plan(step, Scheduled(0, 1)))
    assert clock.now == pytest.approx(100.0 + 101 * 0.02 + 0.001)


def test_a_step_after_a_pause_takes_its_whole_time(heartbeat, clock):
    sim = engine(heartbeat, step_seconds=0.02)
    sim.execute(plan(1, Scheduled(0, 1), added=(new(0, 1, 1),)))
    clock.now = 200.0
    sim.execute(plan(2, Scheduled(0, 1)))
    assert clock.now == pytest.approx(200.02)


def test_a_load_takes_its_time_and_tells_its_progress(heartbeat, clock):
    fractions = []
    sim = engine(heartbeat, load_seconds=2.0, memory_bytes=12345)
    assert sim.load(lambda fraction, message: fractions.append(fraction)).memory.total == 12345
    assert clock.now == pytest.approx(102.0)
    assert fractions == sorted(fractions)
    assert fractions[0] == 0.0
    assert fractions[-1] == 1.0
    assert len(fractions) > 10


def test_a_load_fails_with_the_message_of_the_plan(heartbeat):
    sim = engine(heartbeat, failure=FailurePlan(fail_load="no such shard"))
    with pytest.raises(CortexError, match="no such shard") as caught:
        sim.load(lambda fraction, message: None)
    assert caught.value.code == Code.MODEL_LOAD_FAILED


def test_an_empty_answer_is_refused(heartbeat):
    with pytest.raises(CortexError, match="answer of at least one token"):
        engine(heartbeat, answer=[])


def test_a_failure_comes_at_its_step(heartbeat):
    sim = engine(heartbeat, failure=FailurePlan(error_at_step=2))
    sim.execute(plan(1, Scheduled(0, 1), added=(new(0, 1, 1),)))
    with pytest.raises(RuntimeError, match="step 2"):
        sim.execute(plan(2, Scheduled(0, 1)))


def test_a_step_without_memory_leaves_the_slots_as_the_plan_says(heartbeat):
    sim = engine(heartbeat, failure=FailurePlan(out_of_memory_at_step=2))
    sim.execute(plan(1, Scheduled(0, 5), added=(new(0, 5, 5),)))
    with pytest.raises(OutOfDeviceMemory, match="step 2"):
        sim.execute(plan(2, Scheduled(0, 1), Scheduled(1, 3), added=(new(1, 3, 3),)))
    assert sim.execute(plan(3, Scheduled(0, 1), Scheduled(1, 3))).tokens == [12, 11]


@pytest.mark.parametrize(
    ("rank", "epoch", "failure", "fails"),
    [
        (0, 1, FailurePlan(error_at_step=1), True),
        (0, 9, FailurePlan(error_at_step=1), True),
        (0, 1, FailurePlan(rank=1, error_at_step=1), False),
        (1, 1, FailurePlan(rank=1, error_at_step=1), True),
        (0, 2, FailurePlan(error_at_step=1, epochs=2), True),
        (0, 3, FailurePlan(error_at_step=1, epochs=2), False),
        (0, 1, FailurePlan(error_at_step=1, epochs=0), False),
    ],
)
def test_a_failure_is_for_one_rank_and_for_the_first_epochs(heartbeat, rank, epoch, failure, fails):
    sim = engine(heartbeat, rank=rank, epoch=epoch, failure=failure)
    first = plan(1, Scheduled(0, 1), added=(new(0, 1, 1),))
    if fails:
        with pytest.raises(RuntimeError, match="simulated failure"):
            sim.execute(first)
    else:
        assert sim.execute(first).tokens == [11]


def test_ranks_wait_for_each_other_in_a_step(heartbeat, clock, monkeypatch):
    sim = engine(heartbeat, rank=0, world_size=3)
    for rank in (1, 2):
        heartbeat.beat(rank, state="stepping", step=1)
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(heartbeat.read(0).state)
        heartbeat.beat(len(waits), state="collective", step=1)  # one comes at each look

    monkeypatch.setattr(simulated.time, "sleep", sleep)
    sim.execute(plan(1, Scheduled(0, 1), added=(new(0, 1, 1),)))
    assert waits == ["collective", "collective"]


@pytest.mark.parametrize(
    ("state", "step"), [("collective", 1), ("ready", 1), ("stopping", 1), ("stepping", 2), ("collective", 2)]
)
def test_a_rank_that_went_on_has_arrived(heartbeat, clock, state, step):
    clock.oversleep = 3_000.0
    heartbeat.beat(1, state=state, step=step)
    assert engine(heartbeat, world_size=2).execute(
        plan(1, Scheduled(0, 1), added=(new(0, 1, 1),))
    ).tokens == [11]


def test_a_rank_that_never_comes_is_an_error_at_last(heartbeat, clock):
    sim = engine(heartbeat, rank=0, world_size=2)
    clock.oversleep = 60.0
    with pytest.raises(TimeoutError, match="rank 1 did not come to step 0"):
        sim.prove()
