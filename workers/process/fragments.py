"""Plans and reports that are larger than what a ring takes at once travel in parts.

A plan may bring several long prompts, and a report the log-probabilities of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import msgspec

from ipc.worker_messages import Details, SequenceReport, StepReport
from workers.step.plan import Told, decode_plan, encode_plan

PART_BYTES = 128 << 10  # of a plan in one record; a ring has room for a few
REPORT_BYTES = 32 << 10  # of a report: it holds up the neuron's event loop for some milliseconds
MESSAGE_CHARS = 4096  # of an error in a report that is too long

encode = msgspec.msgpack.Encoder().encode


class PlanWriter(Protocol):
    def write(self, record: bytes, timeout: float) -> None: ...


class PlanReader(Protocol):
    def read(self, timeout: float | None) -> bytes | None: ...


def tell(plans: PlanWriter, plan: Told | None, timeout: float) -> None:
    """Send a plan or an order to the other ranks. A record's first byte says whether more of it follows."""
    record = encode_plan(plan)
    for start in range(0, len(record), PART_BYTES):
        end = start + PART_BYTES
        plans.write(bytes((end < len(record),)) + record[start:end], timeout)


def hear(plans: PlanReader) -> Told | None:
    """Wait for what `tell` sends next."""
    record = plans.read(None)
    whole = record[1:]
    while record[0]:
        record = plans.read(None)
        whole += record[1:]
    return decode_plan(whole)


def records(report: StepReport) -> Iterator[bytes]:
    """A report, encoded; a large one as several that say the same together.

    What one sequence has of one token stays whole, but for the text of an error.
    """
    record = encode(report)
    smaller = halve(report) if len(record) > REPORT_BYTES else ()
    if not smaller:
        yield record
    for each in smaller:
        yield from records(each)


def halve(report: StepReport) -> tuple[StepReport, ...]:
    """Two reports for a large one: pages apart from sequences, or half of them, or half of a prompt.

    One where the text of an error is what can be shortened; none where nothing can.
    """

    def part(sequences: list[SequenceReport], cached: list[bytes], evicted: list[bytes]) -> StepReport:
        return msgspec.structs.replace(report, sequences=sequences, cached=cached, evicted=evicted)

    sequences, cached, evicted = report.sequences, report.cached, report.evicted
    if sequences and (cached or evicted):
        return part([], cached, evicted), part(sequences, [], [])
    if not sequences:
        halves = [(each[: len(each) // 2], each[len(each) // 2 :]) for each in (cached, evicted)]
        (cached, more_cached), (evicted, more_evicted) = halves
        return part([], cached, evicted), part([], more_cached, more_evicted)
    if len(sequences) > 1:
        middle = len(sequences) // 2
        return part(sequences[:middle], [], []), part(sequences[middle:], [], [])
    [whole] = sequences
    said = whole.details

    def saying(**changes: Any) -> SequenceReport:
        return msgspec.structs.replace(whole, more=msgspec.structs.replace(said, **changes))

    middle = len(said.prompt_logprobs) // 2
    if not middle:
        if len(said.message) <= MESSAGE_CHARS:
            return ()
        return (part([saying(message=said.message[:MESSAGE_CHARS])], [], []),)
    early = SequenceReport(whole.request_id, [], more=Details(prompt_logprobs=said.prompt_logprobs[:middle]))
    late = saying(prompt_logprobs=said.prompt_logprobs[middle:])
    return part([early], [], []), part([late], [], [])
