"""What rank 0 tells every rank to do in one step: deltas only, so that a decode step is a few bytes.

Each rank keeps, per slot, the token ids, the pages and `num_computed` (how many of those tokens have their
keys and values in the pages). A plan changes that state in the order of its fields: slots are released, then
added, then scheduled. After the step `num_computed` has grown by `num_tokens`; where it reached the number of
tokens, the step sampled one token, which every rank appends itself, because all ranks sample the same one.
"""

from __future__ import annotations

import msgspec


class NewSequence(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A sequence enters a slot that is empty, with nothing computed.

    `token_ids` (uint32, little-endian) is the prompt, or after a preemption the prompt and the output so far:
    its first `prompt_len` tokens are always the prompt.
    """

    slot: int
    prompt_len: int
    token_ids: bytes
    temperature: float  # 0 is greedy
    top_k: int  # 0 is off
    top_p: float
    seed: int  # unsigned 64 bits


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
