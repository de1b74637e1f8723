"""From what a plan says to the tokens of one step."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor

from ipc.worker_messages import PAGE_SIZE, Logprobs, PlacedImage, SamplingParams
from workers.step.plan import NewSequence, Scheduled
from workers.step.positions import axes, shown


@dataclass(slots=True)
class Slot:
    """A sequence as the engine knows it: what the plans said so far, and what it made of that."""

    new: NewSequence
    token_ids: array[int]
    tables: list[array[int]]  # of each cache group, the page numbers in order
    num_computed: int
    num_ahead: int = 0  # tokens at its end that were sampled, and are not known here yet
    sampling: bool = False  # the sampler knows it
    head_row: int = 0  # what a head of the model made of its last token (`HeadDrafts`), less `num_computed`
    pooled: Tensor | float = 0.0  # [hidden] float64: the last hidden state, or the sum of all so far
    vector: Callable[[], list[float]] | None = None  # waits for what that came to, of the whole prompt
    prompt_logprobs: list[Logprobs] = field(default_factory=list)

    @classmethod
    def padding(cls, pages: Sequence[int]) -> Slot:
        """What decode steps are padded with (`Step.pad`): a token, and the page that it has in each group."""
        tables = [[page] for page in pages]
        slot = cls.of(NewSequence(-1, 1, bytes(4), SamplingParams(), tables=tables), len(tables))
        slot.num_computed = 0
        return slot

    @classmethod
    def of(cls, new: NewSequence, num_groups: int) -> Slot:
        token_ids = array("q", array("I", new.token_ids))
        tables = [array("q", table) for table in new.tables or [[]] * num_groups]
        return cls(new, token_ids, tables, len(tables[0]) * PAGE_SIZE)

    @property
    def prompt(self) -> array[int]:
        return self.token_ids[: self.new.prompt_len]

    @property
    def output(self) -> array[int]:
        return self.token_ids[self.new.prompt_len :]

    @property
    def length(self) -> int:
        """Its tokens, known or not."""
        return len(self.token_ids) + self.num_ahead

    def know(self, tokens: Sequence[int]) -> None:
        """What a step brought is known: one token, below 0 where there was none; or several, of drafts of
        which all but the last one were right."""
        self.num_ahead -= 1
        self.num_computed += len(tokens) - 1
        self.token_ids.extend(tokens if tokens[-1] >= 0 else tokens[:-1])

    @property
    def tells(self) -> bool:
        """Whether its log-probabilities are asked for, which after a preemption were told already."""
        fresh = self.length == self.new.prompt_len
        return fresh and self.new.params.prompt_logprobs is not None


@dataclass(slots=True)
class Segment:
    """The tokens of one sequence in a step."""

    slot: Slot
    rows: range  # of the step
    start: int  # position of the first of them
    drafts: int = 0  # how many of them, at its end, are guesses
    mutual: bool = False  # its tokens see each other, those behind them too

    @property
    def end(self) -> int:
        """Tokens of the sequence that have keys after the step, or after this part of one."""
        return self.start + len(self.rows)

    def divided(self) -> list[Segment]:
        """The parts of it whose tokens see alike: images whose tokens see each other, and what is between
        them. One token alone sees itself either way: it is mutual, and so is told from one in decode."""
        if len(self.rows) == 1 or not self.slot.new.images:
            return [self]
        edges = [self.start, self.end]
        starts = set()
        for image in shown(self.slot.new.images, self.start, self.end):
            if image.together:
                starts.add(max(self.start, image.start))
                edges += (max(self.start, image.start), min(self.end, image.end))
        if not starts:
            return [self]
        return [
            Segment(
                self.slot,
                range(self.rows.start + start - self.start, self.rows.start + end - self.start),
                start,
                mutual=start in starts or end == start + 1,
            )
            for start, end in pairwise(sorted(set(edges)))
        ]


@dataclass(slots=True)
class Step:
    """Prefill and decode together, flattened: first the sequences with one token, then those with drafts,
    then the others."""

    segments: list[Segment]
    complete: list[int]  # slots that have no pending token after it, in the order of the plan
    sampled: list[int]  # those of them that get a token; with drafts once for each of `sampled_rows`
    token_ids: array[int]  # -1 - n: what was sampled last for slot n, and is not known yet
    positions: array[int]
    sampled_rows: array[int]  # the tokens that are followed by a new one
    # Where tokens are parts of images: the row and column of each, where `positions` has its time
    grid: tuple[array[int], array[int]] | None = None
    shows: bool = False  # whether some are
    drafts: dict[int, list[int]] = field(default_factory=dict)  # by slot

    @property
    def is_decode(self) -> bool:
        """Whether it feeds one token of each sequence and samples one for each, of the model as it is."""
        alone = not self.shows and len(self.sampled) == len(self.segments) == len(self.token_ids)
        return alone and not any(segment.slot.tells or segment.slot.new.adapter for segment in self.segments)

    def pad(self, rows: int, slot: Slot) -> list[Segment]:
        """Fill a decode step up with the first token of `slot`; what comes of that is nobody's.

        Returns:
            `segments`, and those that were added, which it does not have.
        """
        added = range(len(self.token_ids), rows)
        self.token_ids.extend(slot.token_ids[0] for _ in added)
        self.positions.extend(0 for _ in added)
        return [*self.segments, *(Segment(slot, range(row, row + 1), 0) for row in added)]


def make_step(scheduled: Sequence[Scheduled], slots: dict[int, Slot]) -> Step:
    """The tokens that a plan feeds, and what is to be done with them.

    Args:
        slots: by their numbers; the pages that the plan adds are in them already.
    """
    token_ids, positions = array("q"), array("q")
    images = [image for entry in scheduled for image in _shown(entry, slots)]
    grid = None if all(image.in_line for image in images) else (array("q"), array("q"))
    segments: list[Segment] = []
    last: dict[int, int] = {}  # slot -> row of its last token
    singles = [entry for entry in scheduled if entry.num_tokens == 1]
    several = [entry for entry in scheduled if entry.num_tokens > 1]
    several.sort(key=lambda entry: not entry.drafts)
    for entry in (*singles, *several):
        slot, row = slots[entry.slot], len(token_ids)
        start, end = slot.num_computed, slot.num_computed + entry.num_tokens
        pending = end - len(entry.drafts)
        token_ids.extend(slot.token_ids[start:pending])
        if pending > len(slot.token_ids):
            token_ids.append(-1 - entry.slot)
        if entry.drafts:
            token_ids.extend(max(draft, 0) for draft in entry.drafts)  # what is UNKNOWN is filled in later
        if slot.new.images:
            times, *across = axes(slot.new.images, start, end)
        else:
            times = range(start, end)
            across = times, times
        positions.extend(times)
        for axis, places in zip(grid or (), across, strict=False):
            axis.extend(places)
        segments.append(Segment(slot, range(row, row + entry.num_tokens), start, len(entry.drafts)))
        last[entry.slot] = len(token_ids) - 1
    drafts = {entry.slot: entry.drafts for entry in scheduled if entry.drafts}
    complete = [
        entry.slot
        for entry in scheduled
        if (slot := slots[entry.slot]).num_computed + entry.num_tokens - len(entry.drafts) == slot.length
    ]
    sampled: list[int] = []
    rows = array("q")
    for number in complete:
        if slots[number].new.pooling:
            continue
        if number not in drafts:
            sampled.append(number)
            rows.append(last[number])
            continue
        count = 1 + len(drafts[number])
        sampled += [number] * count
        rows.extend(range(last[number] + 1 - count, last[number] + 1))
    return Step(segments, complete, sampled, token_ids, positions, rows, grid, bool(images), drafts)


def _shown(entry: Scheduled, slots: dict[int, Slot]) -> list[PlacedImage]:
    """The images that what a plan feeds is a part of."""
    slot = slots[entry.slot]
    start = slot.num_computed
    return shown(slot.new.images, start, start + entry.num_tokens) if slot.new.images else []
