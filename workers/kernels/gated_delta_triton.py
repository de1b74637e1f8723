"""What `workers.kernels.gated_delta` computes, on a GPU. The reference of each kernel stands there.

A convolution is one launch for all tokens of a step, and one for what the next tokens see of it. Few tokens
of each of several sequences are one launch: a program has some columns of a head's matrix, which it reads
once and writes once. Prompts of more tokens are in `workers.kernels.gated_delta_chunks_triton`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.checkpoints.model_config import DeltaNet
from workers.kernels.dependent_triton import wait_for_previous
from workers.kernels.gated_delta import EPS
from workers.kernels.launch import Launcher

CHANNELS = 256  # of a program of the convolution
COLUMNS = 32  # of a head's matrix, of a program
WARPS = 4


class Places(NamedTuple):
    """Where a step's sequences have their rows and states, on the device; all int64."""

    starts: Tensor  # [sequences + 1], of their rows
    ends: Tensor  # [sequences], behind the last of these that gets into the state that is left; no later than
    # the start of the next sequence
    read: Tensor  # [sequences], the states that they begin with
    written: Tensor  # [sequences], where their states go


@triton.jit
def _window(mixed, kept, row, start, c, channels, mask, KERNEL: tl.constexpr):
    """The inputs of a row of the step, of a sequence whose first is `start`; before that, kept ones."""
    fresh = tl.load(mixed + row * channels + c, mask=mask & (row >= start), other=0.0).to(tl.float32)
    old = (KERNEL - 1 + row - start) * channels + c
    return fresh + tl.load(kept + old, mask=mask & (row < start), other=0.0)


@triton.jit
def convolve_kernel(
    mixed,  # [tokens, channels]
    weight,  # [channels, KERNEL]
    bias,  # [channels]
    kept,  # [states, KERNEL - 1, channels] float32, of a layer
    y,  # [tokens, channels] float32
    owners,
    starts,
    read,
    stride,  # elements from one state to the next
    channels,
    KERNEL: tl.constexpr,
    BIASED: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    wait_for_previous()
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = c < channels
    sequence = tl.load(owners + row)
    start, before = tl.load(starts + sequence), kept + tl.load(read + sequence) * stride
    total = tl.zeros([BLOCK], tl.float32)
    for place in tl.static_range(KERNEL):
        value = _window(mixed, before, row + place - (KERNEL - 1), start, c, channels, mask, KERNEL)
        total += value * tl.load(weight + c * KERNEL + place, mask=mask, other=0.0).to(tl.float32)
    if BIASED:
        total += tl.load(bias + c, mask=mask, other=0.0).to(tl.float32)
    if SILU:
        total = total / (1.0 + tl.exp(-total))
    tl.store(y + row * channels + c, total, mask=mask)


@triton.jit
def keep_inputs_kernel(
    mixed,
    kept,
    starts,
    ends,
    read,
    written,
    stride,
    channels,
    KERNEL: tl.constexpr,
    PLACES: tl.constexpr,  # a power of 2, at least KERNEL - 1
    BLOCK: tl.constexpr,
):
    """The last inputs of each sequence, for its next token. All are read before one is written."""
    wait_for_previous()
    sequence = tl.program_id(0).to(tl.int64)
    c = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    place = tl.arange(0, PLACES)[:, None]
    mask = (c < channels) & (place < KERNEL - 1)
    start, end = tl.load(starts + sequence), tl.load(ends + sequence)
    row = end - (KERNEL - 1) + place
    before, after = kept + tl.load(read + sequence) * stride, kept + tl.load(written + sequence) * stride
    value = _window(mixed, before, row, start, c, channels, mask, KERNEL)
    tl.debug_barrier()
    tl.store(after + place * channels + c, value, mask=mask)


@triton.jit
def recur_kernel(
    y,  # [tokens, channels] float32, after the convolution
    decay,  # [tokens, HEADS] float32
    beta,  # the same
    matrices,  # [states, HEADS, KEY_DIM, VALUE_DIM] float32, of a layer
    out,  # [tokens, HEADS, VALUE_DIM] float32
    starts,
    ends,
    read,
    written,
    stride,
    channels,
    scale,
    KEY_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    wait_for_previous()
    sequence, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d, e = tl.arange(0, BLOCK_K), tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    there = d < KEY_DIM
    at = head * KEY_DIM * VALUE_DIM + d[:, None] * VALUE_DIM + e[None, :]
    mask = there[:, None] & (e < VALUE_DIM)[None, :]
    state = tl.load(matrices + tl.load(read + sequence) * stride + at, mask=mask, other=0.0)
    end = tl.load(ends + sequence)
    for row in range(tl.load(starts + sequence), tl.load(starts + sequence + 1)):
        inputs = y + row * channels + head // (HEADS // KEY_HEADS) * KEY_DIM + d
        q = tl.load(inputs, mask=there, other=0.0)
        k = tl.load(inputs + KEY_HEADS * KEY_DIM, mask=there, other=0.0)
        q = q * (scale / tl.sqrt(tl.sum(q * q, axis=0) + EPS))
        k = k * (1.0 / tl.sqrt(tl.sum(k * k, axis=0) + EPS))
        v_at = y + row * channels + 2 * KEY_HEADS * KEY_DIM + head * VALUE_DIM + e
        v = tl.load(v_at, mask=e < VALUE_DIM, other=0.0)
        state *= tl.exp(tl.load(decay + row * HEADS + head))
        change = (v - tl.sum(state * k[:, None], axis=0)) * tl.load(beta + row * HEADS + head)
        state += k[:, None] * change[None, :]
        if row + 1 == end:
            tl.store(matrices + tl.load(written + sequence) * stride + at, state, mask=mask)
        found = tl.sum(state * q[:, None], axis=0)
        tl.store(out + (row * HEADS + head) * VALUE_DIM + e, found, mask=e < VALUE_DIM)


CONVOLVE, KEEP_INPUTS, RECUR = map(Launcher, (convolve_kernel, keep_inputs_kernel, recur_kernel))


def convolve(
    mixed: Tensor,
    weight: Tensor,
    kept: Tensor,
    owners: Tensor,
    places: Places,
    silu: bool = True,
    bias: Tensor | None = None,
) -> Tensor:
    """All tokens of a step through a layer's convolution.

    Args:
        mixed: `[tokens, channels]`.
        weight: `[channels, kernel]`.
        kept: `[states, kernel - 1, channels]` float32.
        owners: `[tokens]` int64, the sequence of each.
        silu: what comes out goes through that.
        bias: `[channels]`.

    Returns:
        `[tokens, channels]` float32.
    """
    (tokens, channels), kernel = mixed.shape, weight.shape[1]
    y = torch.empty(tokens, channels, dtype=torch.float32, device=mixed.device)
    CONVOLVE(
        (tokens, triton.cdiv(channels, CHANNELS), 1),
        *(mixed, weight, weight if bias is None else bias, kept, y, owners, places.starts, places.read),
        *(kept.stride(0), channels, kernel, bias is not None, silu, CHANNELS),
        num_warps=WARPS,
    )
    return y


def keep_inputs(mixed: Tensor, kept: Tensor, places: Places) -> None:
    """Let the next tokens of sequences see the last inputs before their ends; for the rest see `convolve`."""
    channels, places_before = mixed.shape[1], kept.shape[1]
    KEEP_INPUTS(
        (len(places.read), triton.cdiv(channels, CHANNELS), 1),
        *(mixed, kept, *places, kept.stride(0), channels),
        *(places_before + 1, triton.next_power_of_2(places_before), CHANNELS),
        num_warps=WARPS,
    )


def recur(
    y: Tensor,  # [tokens, channels] float32
    decay: Tensor,  # [tokens, heads] float32
    beta: Tensor,  # the same
    matrices: Tensor,  # [states, heads, key_dim, value_dim] float32
    out: Tensor,  # [tokens, heads, value_dim] float32
    places: Places,
    sequences: int,
    delta: DeltaNet,
) -> None:
    """As `workers.kernels.gated_delta.recur`, token after token of the first `sequences` of `places`."""
    columns = min(COLUMNS, triton.next_power_of_2(delta.value_dim))
    RECUR(
        (sequences, delta.value_heads, triton.cdiv(delta.value_dim, columns)),
        *(y, decay, beta, matrices, out, *places),
        *(matrices.stride(0), y.shape[1], delta.key_dim**-0.5),
        *(delta.key_heads, delta.value_heads, delta.key_dim, delta.value_dim, EPS),
        *(triton.next_power_of_2(delta.key_dim), columns),
        num_warps=WARPS,
    )
