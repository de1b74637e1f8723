"""What rank 0 tells every rank to do in one step: deltas only, so that a decode step is a few bytes.

Each rank keeps, per slot, the token ids, the pages and `num_computed` (how many of those tokens have their
keys and values in the pages). A plan changes that state in the order of its fields: tokens are appended, then
slots released, then added, then scheduled. After the step `num_computed` has grown by `num_tokens`; where it
reached the number of tokens, the step sampled one token. Rank 0 samples it; the others learn it from a later
plan. A step that ran out of device memory leaves that state as it was between its scheduling and its
computing: the slots and their new pages are there, and no `num_computed` has grown.

Behind the last pending token of a slot a step may feed drafts: guesses at the tokens that follow. It samples
one after the pending token and one after each draft, and keeps them as long as each draft before was right
(`verified`). `num_computed` grows by as many as are kept; what was computed of the others is written over.
Pages can be: a state cannot be cut back, so only right drafts get into one, before the next plan is followed.
A plan either has the drafts, or says how many a head of the model shall make (UNKNOWN): then they come back
with the tokens, each one that would end its sequence as UNKNOWN, which no token is.

Pages stand in tables, one for each group of layers that keep the same (`ipc.worker_messages.CacheGroup`), in
the order of the groups. All tables of a sequence have one entry for each PAGE_SIZE tokens, so the page of a
position is found in the same way in all of them; HOLE stands where nothing is kept. In a group with a state,
an entry is where the state is after the last token of that page, or, in the last entry, after the last token
so far. A step that feeds tokens `start` to `end` reads entry `(start - 1) // PAGE_SIZE`, unless it is the
first, and writes entry `(end - 1) // PAGE_SIZE`, which may have the same page. States that leave the device
and come back are moved before all that, even where the step then fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from ipc.worker_messages import (
    Constraint,
    DropAdapter,
    LoadAdapter,
    PlacedImage,
    Pooling,
    ResizePool,
    SamplingParams,
)

MOST_AHEAD = 4  # drafts of a sequence that a head of the model makes for one step
UNKNOWN = -3  # a draft that the engine makes itself, when the step begins; nothing that a step brings
HOLE = -1  # in a table of pages: no layer of the group sees that page any more, or ever did


class NewSequence(msgspec.Struct, array_like=True, frozen=True):
    """A sequence enters a slot that is empty.

    `tables` has the pages that others computed, so far the same in number in each group: they are read, and
    never written. The first PAGE_SIZE tokens for each of its entries are computed already.

    `token_ids` (uint32, little-endian) is the prompt, or after a preemption the prompt and the output so far:
    its first `prompt_len` tokens are always the prompt.
    """

    slot: int
    prompt_len: int
    token_ids: bytes
    params: SamplingParams
    constraint: Constraint | None = None
    pooling: Pooling = ""
    tables: list[list[int]] = []  # of each group; none: there are no such pages
    adapter: int = 0  # its number among those of the model, from 1; 0: none
    second: int = 0  # as of `Submit`
    images: list[PlacedImage] = []  # the same


class Scheduled(msgspec.Struct, array_like=True, frozen=True):
    """Feed the next `num_tokens` pending tokens of a slot; first `new_pages` join the ends of its tables."""

    slot: int
    num_tokens: int  # drafts included
    new_pages: list[list[int]] = []  # of each group as many; none: it needs none
    drafts: list[int] = []  # fed behind the one pending token; all or none of them UNKNOWN


class StateMove(msgspec.Struct, array_like=True, frozen=True):
    """Copy a state between the device and the host's memory."""

    state: int  # its number on the device
    place: int  # in the host's memory
    leaves: bool  # it goes to the host; else it comes back


class LookAt(msgspec.Struct, array_like=True, frozen=True):
    """Look on at an image that no step has shown yet, where it was left. Of what was seen of another one, and
    of all when a plan names none, nothing is kept but what is complete."""

    image: PlacedImage
    work: int  # multiplications, about; 0: none now


class StepPlan(msgspec.Struct, tag=0, array_like=True, frozen=True):
    """One step. `scheduled` is never empty; a slot stands in it at most once.

    `tokens` are those that rank 0 sampled and no plan has told yet, in the order of the steps, and in each of
    them in that of the sequences without a pending token: -1 for one that got none. Of drafts there are
    several tokens, and whoever has the drafts knows how many (`verified`); where the engine made them,
    `drafts` are those of the same steps.
    """

    step: int  # counts from 1 in each epoch
    released: list[int]
    added: list[NewSequence]
    scheduled: list[Scheduled]
    tokens: list[int] = []
    moves: list[StateMove] = []  # in their order, before anything is computed
    look: LookAt | None = None  # for rank 0, before that as well
    drafts: list[int] = []


Told = StepPlan | LoadAdapter | DropAdapter | ResizePool  # what rank 0 tells the others, in its order

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Told | None)


def verified(tokens: Iterator[int], drafts: Sequence[int]) -> list[int]:
    """What a step brought for one sequence: the tokens up to the first that is not as its draft has it, or
    one more than there are drafts.

    Raises:
        ValueError: there are not so many.
    """
    if not drafts and (token := next(tokens, None)) is not None:
        return [token]
    kept: list[int] = []
    for draft in (*drafts, None):
        if (token := next(tokens, None)) is None:
            raise ValueError("a step brought too few tokens")
        kept.append(token)
        if token != draft:
            break
    return kept


def drafts_of(planned: Sequence[int], made: Iterator[int]) -> Sequence[int]:
    """The drafts that were fed for a sequence, where its plan may have left them to the engine, which made
    these."""
    return [next(made) for _ in planned] if UNKNOWN in planned else planned


def encode_plan(plan: Told | None) -> bytes:
    """The record for the plan ring. None is the last one: the other ranks end."""
    return _encoder.encode(plan)


def decode_plan(record: bytes) -> Told | None:
    """The reverse of `encode_plan`; a record that is no plan is a `msgspec.MsgspecError`."""
    return _decoder.decode(record)
