"""What came of a launch: the tokens that count, and what is told with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ipc.worker_messages import Logprobs
from workers.sampling.draws import BROKEN, NOTHING
from workers.sampling.logprobs import named
from workers.sampling.slot import SamplingSlot
from workers.step.plan import UNKNOWN


@dataclass(slots=True)
class Sampled:
    """What was chosen."""

    tokens: list[int]  # one a row that counts; -1 where nothing is allowed, or a logit is not finite
    broken: set[int] = field(default_factory=set)  # of those without a token, those of the latter kind
    logprobs: dict[int, Logprobs] = field(default_factory=dict)  # by index, where they were asked for
    drafts: list[int] = field(default_factory=list)  # that only the device knew


@dataclass(slots=True)
class Launched:
    """What is being chosen."""

    tokens: Tensor  # [rows] int64, where the logits are; below 0: none (`NOTHING`, `BROKEN`)
    ahead: bool  # the next tokens of these sequences can be chosen before these are known
    result: Callable[[], Sampled]  # waits for them; to be called once


def outcome(
    rows: list[SamplingSlot],
    fetch: Callable[[], list[float]],
    asking: Sequence[int] = (),
    drafted: bool = False,
    made: int = 0,
) -> Sampled:
    """What came of a launch; its sequences get to know their tokens, behind which some drafts are told."""
    told = fetch()
    drafts = _learnt(rows, told[len(rows) : len(rows) + made]) if made else []
    del told[len(rows) : len(rows) + made]
    tokens = told[: len(rows)] if not asking else [*map(int, told[: len(rows)])]
    slots, places = rows, range(len(rows))  # where in what counts each row stands
    if drafted:
        kept = _kept(rows, tokens)
        slots, places = list(kept.values()), {row: place for place, row in enumerate(kept)}
        tokens = [tokens[row] for row in kept]
    sampled = Sampled(tokens, drafts=drafts)
    for place, (slot, token) in enumerate(zip(slots, tokens, strict=True)):
        if token >= 0:
            slot.push(token)
        else:
            tokens[place] = -1
            if token == BROKEN:
                sampled.broken.add(place)
    if asking:
        width = (len(told) - len(rows)) // len(asking)
        for row, start in zip(asking, range(len(rows), len(told), width), strict=True):
            if row in places and (token := tokens[places[row]]) >= 0:
                entry = named(told[start : start + width], token, rows[row].params.logprobs)
                sampled.logprobs[places[row]] = entry
    return sampled


def _kept(rows: list[SamplingSlot], chosen: list[int]) -> dict[int, SamplingSlot]:
    """The rows that count, in their order, and the sequences that they are of: those up to the first draft
    that is wrong.

    Where a row behind a draft is not finite, right or not, its keys and values may not be either, and what
    attends beside them, or will, may have taken that over: then the first row of its sequence is `BROKEN`.
    """
    if BROKEN in chosen:
        own = 0
        for row, slot in enumerate(rows):
            if slot.behind is None:
                own = row
            elif chosen[row] == BROKEN:
                chosen[own] = BROKEN
    kept: dict[int, SamplingSlot] = {}
    sequence, last = rows[0], NOTHING  # the token of the row before, if that counts
    for row, slot in enumerate(rows):
        if slot.behind is None:
            sequence = slot
        elif slot.behind == last:
            sequence.length += 1
        else:
            last = NOTHING
            continue
        kept[row], last = sequence, chosen[row]
    return kept


def _learnt(rows: list[SamplingSlot], drafts: list[float]) -> list[int]:
    """What the drafts turned out to be. One that ends its sequence, behind which nothing may count, is as
    good as a wrong one: the token itself is sampled before it."""
    known: list[int] = []
    for row, draft in zip((row for row in rows if row.behind is not None), drafts, strict=True):
        row.behind = UNKNOWN if draft in row.params.stop_ids else int(draft)
        known.append(row.behind)
    return known
