import msgspec
import pytest

from ipc.worker_messages import SamplingParams
from workers.step.plan import NewSequence, Scheduled, StepPlan, decode_plan, encode_plan

PLAN = StepPlan(
    step=7,
    released=[3],
    added=[NewSequence(3, 2, b"\1\0\0\0\2\0\0\0", SamplingParams(0.7, 40, 0.9, seed=2**64 - 1))],
    scheduled=[Scheduled(0, 1), Scheduled(3, 2, [[11]])],
)


def test_a_plan_survives_the_ring():
    assert decode_plan(encode_plan(PLAN)) == PLAN


def test_the_last_plan_is_none():
    assert decode_plan(encode_plan(None)) is None


def test_a_decode_step_of_ten_sequences_is_small():
    plan = StepPlan(100_000, [], [], [Scheduled(slot, 1) for slot in range(10)])
    assert len(encode_plan(plan)) <= 64


@pytest.mark.parametrize("record", [b"", b"\xff garbage", encode_plan(PLAN)[:-1], b"\x94\x01\x90\x90\xa1x"])
def test_a_record_that_is_no_plan_is_refused(record):
    with pytest.raises(msgspec.MsgspecError):
        decode_plan(record)
