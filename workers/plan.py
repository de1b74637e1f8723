"""What rank 0 tells every rank to do in one step: deltas only, so that a decode step is a few bytes.

Each rank keeps, per slot, the token ids, the pages and `num_computed` (how many of those tokens have their
keys and values in the pages). A plan changes that state in the order of its fields: slots are released, then
added, then scheduled. After the step `num_computed` has grown by `num_tokens`; where it reached the number of
tokens, the step sampled one token, which every rank appends itself, because all ranks sample the same one.
A step that ran out of device memory leaves that state as it was between its scheduling and its computing: the
slots and their new pages are there, and no `num_computed` has grown.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ipc.worker_messages import Constraint, SamplingParams


class NewSequence(msgspec.Struct, array_like=True, frozen=True):
    """A sequence enters a slot that is empty. The first `len(pages) * PAGE_SIZE` tokens are computed already.

    `token_ids` (uint32, little-endian) is the prompt, or after a preemption the prompt and the output so far:
    its first `prompt_len` tokens are always the prompt.
    """

    slot: int
    prompt_len: int
    token_ids: bytes
    params: SamplingParams
    constraint: Constraint | None = None
    pooling: Literal["", "last", "mean"] = ""
    pages: list[int] = []  # shared with other sequences: they are read, never written


class Scheduled(msgspec.Struct, array_like=True, frozen=True):
    """Feed the next `num_tokens` pending tokens of a slot, after `new_pages` joined the end of its pages."""

    slot: int
    num_tokens: int
    new_pages: list[int] = []


class StepPlan(msgspec.Struct, array_like=True, frozen=True):
    """One step. `scheduled` is never empty; a slot stands in it at most once."""

    step: int  # counts from 1 in each epoch
    released: list[int]
    added: list[NewSequence]
    scheduled: list[Scheduled]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(StepPlan | None)


def encode_plan(plan: StepPlan | None) -> bytes:
    """The record for the plan ring. None is the last one: the other ranks end."""
    return _encoder.encode(plan)


def decode_plan(record: bytes) -> StepPlan | None:
    """The reverse of `encode_plan`; a record that is no plan is a `msgspec.MsgspecError`."""
    return _decoder.decode(record)
