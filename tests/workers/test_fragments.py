"""However long a plan or a report is, it goes through a ring."""

import os
import threading
from array import array

import msgspec
import pytest

from ipc.ring import Ring
from ipc.worker_messages import Abort, Details, Logprobs, SamplingParams, SequenceReport, StepReport
from tests.ipc.broadcast_group import Group
from tests.workers.engines import Answer
from workers.process.fragments import MESSAGE_CHARS, REPORT_BYTES, hear, records, tell
from workers.process.loop import TURN_COMMANDS, take
from workers.step.plan import NewSequence, Scheduled, StepPlan

ENTRY = Logprobs(7, -0.25, 3, [(token, -1.0 / (token + 1)) for token in range(20)])


def hashes(count: int) -> list[bytes]:
    return [os.urandom(16) for _ in range(count)]


def report(sequences: list[SequenceReport], **changes) -> StepReport:
    return StepReport(9, sequences, running=3, waiting=2, pages_free=1, **changes)


def answers(reports: list[StepReport]) -> dict[int, Answer]:
    told: dict[int, Answer] = {}
    for each in reports:
        for sequence in each.sequences:
            told.setdefault(sequence.request_id, Answer()).take(sequence)
    return told


@pytest.mark.parametrize(
    "whole",
    [
        report([SequenceReport(1, [5], "stop", Details(logprobs=[ENTRY], prompt_logprobs=[ENTRY] * 30_000))]),
        report([SequenceReport(n, [n], more=Details(prompt_logprobs=[ENTRY] * n)) for n in range(200)]),
        report([SequenceReport(n, [n], "length", Details(embedding=bytes(8 * n))) for n in range(2_000)]),
        report([SequenceReport(1, [5], "")], cached=hashes(20_000), evicted=hashes(33_333)),
        report([SequenceReport(1, [5], "")], evicted=hashes(9_001)),
    ],
    ids=["one long prompt", "many prompts", "many sequences", "pages", "one kind of pages"],
)
def test_the_parts_of_a_report_say_what_the_whole_says(whole):
    encoded = list(records(whole))
    assert len(encoded) > 1
    assert max(map(len, encoded)) <= REPORT_BYTES
    parts = [msgspec.msgpack.decode(record, type=StepReport) for record in encoded]
    assert answers(parts) == answers([whole])
    assert [page for part in parts for page in part.cached] == whole.cached
    assert [page for part in parts for page in part.evicted] == whole.evicted
    assert {(part.step, part.running, part.waiting, part.pages_free) for part in parts} == {(9, 3, 2, 1)}


def test_an_ordinary_report_is_one_record():
    whole = report([SequenceReport(n, [n], "") for n in range(256)], cached=hashes(10))
    assert list(records(whole)) == [msgspec.msgpack.encode(whole)]


@pytest.mark.parametrize(
    "whole",
    [
        SequenceReport(1, [], "length", Details(embedding=bytes(REPORT_BYTES + 1))),
        SequenceReport(1, [5], more=Details(prompt_logprobs=[Logprobs(7, -0.25, 3, [(1, -1.0)] * 40_000)])),
    ],
    ids=["a long vector", "one entry"],
)
def test_what_cannot_be_divided_is_one_record(whole):
    [record] = records(report([whole], cached=[]))
    assert msgspec.msgpack.decode(record, type=StepReport).sequences == [whole]


def test_an_error_that_is_longer_than_a_ring_is_told_in_part():
    whole = report([SequenceReport(1, [], "error", Details("x" * (2 << 20), "internal"))], cached=hashes(10))
    parts = [msgspec.msgpack.decode(record, type=StepReport) for record in records(whole)]
    [[told]] = [part.sequences for part in parts if part.sequences]
    assert (told.finish, told.details.code, told.details.message) == (
        "error",
        "internal",
        "x" * MESSAGE_CHARS,
    )
    assert [page for part in parts for page in part.cached] == whole.cached


def test_a_plan_that_is_larger_than_the_ring_reaches_every_reader():
    prompt = array("I", range(100_000)).tobytes()
    added = [NewSequence(slot, 100_000, prompt, SamplingParams()) for slot in range(7)]
    large = StepPlan(1, [], added, [Scheduled(slot, 10) for slot in range(7)])
    small = StepPlan(2, [3], [], [Scheduled(0, 1)])
    group = Group(readers=1, capacity=1 << 20)
    heard = []
    listening = threading.Thread(target=lambda: heard.extend(iter(lambda: hear(group.readers[0]), None)))
    listening.start()
    for plan in (large, small, None):
        tell(group.writer, plan, timeout=30.0)
    listening.join(30.0)
    group.close()
    assert heard == [large, small]


def test_a_turn_takes_a_bounded_number_of_commands_and_the_next_one_the_rest():
    ring = Ring.create()
    commands = [msgspec.msgpack.encode(Abort(n)) for n in range(TURN_COMMANDS + 5)]
    for command in commands:
        assert ring.try_write(command)
    assert list(take(ring, wait=False)) == commands[:TURN_COMMANDS]
    assert list(take(ring, wait=True)) == commands[TURN_COMMANDS:]
    assert list(take(ring, wait=False)) == []
    ring.close()
