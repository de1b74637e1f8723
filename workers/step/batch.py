"""From what a plan says to the tokens of one step as the model sees them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ipc.worker_messages import PAGE_SIZE, Logprobs
from workers.attention.cpu import Chunk, PageRun
from workers.step.pages import pages_for
from workers.step.plan import NewSequence, Scheduled


@dataclass(slots=True)
class Slot:
    """A sequence as the engine knows it: what the plans said so far, and what it made of that."""

    new: NewSequence
    token_ids: array[int]
    tables: list[array[int]]  # of each cache group, the page numbers in order
    num_computed: int
    sampling: bool = False  # the sampler knows it
    pooled: Tensor | float = 0.0  # [hidden] float32: the last hidden state, or the sum of all so far
    prompt_logprobs: list[Logprobs] = field(default_factory=list)

    @classmethod
    def of(cls, new: NewSequence) -> Slot:
        token_ids = array("q", array("I", new.token_ids))
        tables = [array("q", table) for table in new.tables] or [array("q")]
        return cls(new, token_ids, tables, len(tables[0]) * PAGE_SIZE)

    @property
    def prompt(self) -> array[int]:
        return self.token_ids[: self.new.prompt_len]

    @property
    def output(self) -> array[int]:
        return self.token_ids[self.new.prompt_len :]

    @property
    def tells(self) -> bool:
        """Whether its log-probabilities are asked for, which after a preemption were told already."""
        fresh = len(self.token_ids) == self.new.prompt_len
        return fresh and self.new.params.prompt_logprobs is not None


@dataclass(slots=True)
class Batch:
    """Prefill and decode together, flattened: first one token of each sequence in decode, then the chunks."""

    token_ids: Tensor  # [tokens] int64
    positions: Tensor  # [tokens] int64, from 0 in each sequence
    pages: Tensor  # [tokens] int64, the page that takes each token's keys and values
    places: Tensor  # [tokens] int64, its place in that page
    opened: list[int]  # pages that get their first tokens, and are not full after the step
    num_decode: int  # tokens that `runs` is for
    runs: list[PageRun]
    chunks: list[Chunk]
    sampled: Tensor  # [sampled] int64, the tokens that are followed by a new one


@dataclass(slots=True)
class Segment:
    """The tokens of one sequence in a step."""

    slot: Slot
    rows: range  # of the batch


@dataclass(slots=True)
class Step:
    """A step on its way through the model."""

    batch: Batch
    pieces: list[Segment]
    complete: list[int]  # slots that have no pending token after it, in the order of the plan
    sampled: list[int]  # those of them that get a token


def make_step(
    scheduled: Sequence[Scheduled], slots: dict[int, Slot], run_pages: int, device: torch.device
) -> Step:
    """The tokens that a plan feeds as tensors on `device`, and what is to be done with them.

    Args:
        slots: by their numbers; the pages that the plan adds are in them already.
        run_pages: pages that attention in decode reads at once.
    """

    token_ids, positions, pages = array("q"), array("q"), array("q")
    opened: list[int] = []
    pieces: list[Segment] = []
    last: dict[int, int] = {}  # slot -> row of its last token
    for entry in scheduled:
        if entry.num_tokens == 1:
            slot, row = slots[entry.slot], len(token_ids)
            position = slot.num_computed
            token_ids.append(slot.token_ids[position])
            positions.append(position)
            pages.append(slot.tables[0][position // PAGE_SIZE])
            if position % PAGE_SIZE == 0:
                opened.append(pages[-1])
            pieces.append(Segment(slot, range(row, row + 1)))
            last[entry.slot] = row
    num_decode = len(token_ids)
    runs = _runs([piece.slot for piece in pieces], run_pages, device)
    chunks: list[Chunk] = []
    for entry in scheduled:
        if entry.num_tokens > 1:
            slot, first = slots[entry.slot], len(token_ids)
            start, end = slot.num_computed, slot.num_computed + entry.num_tokens
            token_ids.extend(slot.token_ids[start:end])
            positions.extend(range(start, end))
            pages.extend(slot.tables[0][position // PAGE_SIZE] for position in range(start, end))
            if end % PAGE_SIZE and end // PAGE_SIZE * PAGE_SIZE >= start:
                opened.append(pages[-1])
            rows = range(first, len(token_ids))
            pieces.append(Segment(slot, rows))
            chunks.append(
                Chunk(slice(first, rows.stop), _tensor(slot.tables[0][: pages_for(end)], device), end)
            )
            last[entry.slot] = rows.stop - 1
    complete = [
        entry.slot
        for entry in scheduled
        if (slot := slots[entry.slot]).num_computed + entry.num_tokens == len(slot.token_ids)
    ]
    sampled = [number for number in complete if not slots[number].new.pooling]
    position_tensor = _tensor(positions, device)
    batch = Batch(
        token_ids=_tensor(token_ids, device),
        positions=position_tensor,
        pages=_tensor(pages, device),
        places=position_tensor % PAGE_SIZE,
        opened=opened,
        num_decode=num_decode,
        runs=runs,
        chunks=chunks,
        sampled=_tensor(array("q", [last[number] for number in sampled]), device),
    )
    return Step(batch, pieces, complete, sampled)


def _runs(slots: list[Slot], run_pages: int, device: torch.device) -> list[PageRun]:
    """The pages that `slots`, each with one token in this step, attend over."""
    if not slots:
        return []
    pages = array("q")
    for slot in slots:
        pages.extend(slot.tables[0][: slot.num_computed // PAGE_SIZE + 1])
    contexts = torch.tensor([slot.num_computed + 1 for slot in slots])
    counts = (contexts + (PAGE_SIZE - 1)) // PAGE_SIZE
    sequence = torch.repeat_interleave(counts)  # [pages] of each, its row
    first = torch.arange(len(pages)) - (counts.cumsum(0) - counts)[sequence]  # its number in the sequence
    left = contexts[sequence] - first * PAGE_SIZE  # tokens of the context from there on
    beyond = torch.arange(PAGE_SIZE) >= left.unsqueeze(1)
    bias = torch.zeros(beyond.shape).masked_fill_(beyond, -torch.inf)
    parts = (
        _tensor(pages, device),
        sequence.to(device, non_blocking=True),
        bias.to(device, non_blocking=True)[:, None, None],
    )
    return [PageRun(*run) for run in zip(*(part.split(run_pages) for part in parts), strict=True)]


def _tensor(values: array[int], device: torch.device) -> Tensor:  # [len(values)] int64
    """The same numbers; on a CPU in the same memory, so that nobody may change `values` any more."""
    if not values:
        return torch.empty(0, dtype=torch.int64, device=device)
    return torch.frombuffer(values, dtype=torch.int64).to(device, non_blocking=True)
