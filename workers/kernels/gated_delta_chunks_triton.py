"""Prompts through the gated delta rule on a GPU: what `workers.kernels.gated_delta.chunked` computes.

Two kernels, for some tokens of a sequence at a time. What a token of such a chunk writes depends on what
those before it in the chunk wrote, which is a triangular system: the first kernel inverts those of many
chunks at once, each by itself, and says what queries see of keys. The second takes the state of a head
through the chunks of its sequence, one after the other; a program has some columns of it in registers. All
sequences of a step are in one launch of each, and systems are in memory only between the two: of `CHUNKS` at
a time.

Inputs, states and sums are float32. What goes into a state is multiplied as three products of TensorFloat-32,
which are as precise as one of float32; what queries read of it, which is rounded to 16 bits soon, as one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from workers.checkpoints.model_config import DeltaNet
from workers.kernels.dependent_triton import wait_for_previous
from workers.kernels.gated_delta import EPS
from workers.kernels.gated_delta_triton import Places
from workers.kernels.launch import Launcher

CHUNK = 32  # tokens: half of the reference's, so that operands of float32 fit into registers
CHUNKS = 64  # whose systems are in memory at once
COLUMNS = 16  # of a head's matrix, of a program
SLICE = 32  # dimensions of keys that are multiplied at once
WARPS = 4
# Of products. Texts within a kernel are not the same to all versions of Triton.
PRECISE = tl.constexpr("tf32x3")
ROUGH = tl.constexpr("tf32")


class Chunks(NamedTuple):
    """How the prompts of a step are cut, on the device; both int64. Single tokens are in no chunk."""

    owners: Tensor  # [chunks], the sequence of each
    starts: Tensor  # [sequences + 1], how many chunks there are before those of each


class Part(NamedTuple):
    """Chunks that go through their states by one launch, and the sequences that have some of them."""

    first: int
    count: int
    first_sequence: int
    sequences: int


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr = PRECISE):
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _heads_at(y, row, there, d, head, SIZE: tl.constexpr, channels):
    """A head of each row: `[rows, len(d)]`, zeros where there is none."""
    at = y + row[:, None] * channels + head * SIZE + d[None, :]
    return tl.load(at, mask=there[:, None] & (d < SIZE)[None, :], other=0.0)


@triton.jit
def _inverse(system, i):
    """Of 1 and a matrix below the diagonal `[32, 32]`: by blocks on that, of twice as many rows each time. So
    it is forward substitution, and no power of the matrix is made, which could overflow."""
    j = i[None, :]
    inverse = tl.where(i[:, None] == j, 1.0, 0.0)
    inverse -= tl.where((i[:, None] // 2 == j // 2) & (i[:, None] > j), system, 0.0)
    for level in tl.static_range(1, 5):
        block = i[:, None] >> level
        below = tl.where((block % 2 == 1) & (block - 1 == j >> level), system, 0.0)
        inverse -= _dot(_dot(inverse, below), inverse)
    return inverse


@triton.jit(do_not_specialize=["first"])
def solve_kernel(
    y,  # [tokens, channels] float32, after the convolution
    decay,  # [tokens, HEADS] float32
    beta,  # the same
    systems,  # [chunks, HEADS, CHUNK, CHUNK] float32: what tokens write, by what they would write alone
    seen,  # the same: what queries see of keys
    starts,  # for these see `Places` and `Chunks`
    owners,
    chunk_starts,
    first,  # chunk
    channels,
    scale,
    KEY_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    EPS: tl.constexpr,
    CHUNK: tl.constexpr,
    SLICE: tl.constexpr,
):
    wait_for_previous()
    head, chunk = tl.program_id(1), first + tl.program_id(0)
    sequence, i = tl.load(owners + chunk), tl.arange(0, CHUNK)
    row = tl.load(starts + sequence) + (chunk - tl.load(chunk_starts + sequence)) * CHUNK + i
    there, key_head = row < tl.load(starts + sequence + 1), head // (HEADS // KEY_HEADS)
    products, asked = tl.zeros((CHUNK, CHUNK), tl.float32), tl.zeros((CHUNK, CHUNK), tl.float32)
    k_square, q_square = tl.zeros((CHUNK,), tl.float32), tl.zeros((CHUNK,), tl.float32)
    for begin in range(0, KEY_DIM, SLICE):
        d = begin + tl.arange(0, SLICE)
        k = _heads_at(y, row, there, d, KEY_HEADS + key_head, KEY_DIM, channels)
        q = _heads_at(y, row, there, d, key_head, KEY_DIM, channels)
        products += _dot(k, tl.trans(k))
        asked += _dot(q, tl.trans(k))
        k_square += tl.sum(k * k, 1)
        q_square += tl.sum(q * q, 1)
    k_unit, q_unit = 1.0 / tl.sqrt(k_square + EPS), scale / tl.sqrt(q_square + EPS)
    total = tl.cumsum(tl.load(decay + row * HEADS + head, mask=there, other=0.0), 0)
    written = tl.load(beta + row * HEADS + head, mask=there, other=0.0)
    apart = tl.where(i[:, None] >= i[None, :], total[:, None] - total[None, :], float("-inf"))
    between = tl.exp(apart) * k_unit[None, :]
    square = ((chunk - first) * HEADS + head).to(tl.int64) * CHUNK * CHUNK + i[:, None] * CHUNK + i[None, :]
    tl.store(seen + square, asked * between * q_unit[:, None])
    inverse = _inverse(products * between * (k_unit * written)[:, None], i)
    tl.store(systems + square, inverse * written[None, :])


@triton.jit
def _slice_at(at, there, d, PART: tl.constexpr, SIZE: tl.constexpr, SLICE: tl.constexpr):
    """Some dimensions of a head of each row, which begins at `at`; zeros where there are none."""
    mask = there[:, None]
    if SIZE < (PART + 1) * SLICE:
        mask = mask & (PART * SLICE + d < SIZE)[None, :]
    return tl.load(at + PART * SLICE, mask=mask, other=0.0)


@triton.jit
def _read(
    at, there, d, state, PRECISION: tl.constexpr, SIZE: tl.constexpr, SLICE: tl.constexpr, EPS: tl.constexpr
):
    """What is in a head's matrix for a key, or a query, of each row, of unit length; and 1 over its own."""
    x = _slice_at(at, there, d, 0, SIZE, SLICE)
    found, square = _dot(x, state[0], PRECISION), tl.sum(x * x, 1)
    for part in tl.static_range(1, 4):
        x = _slice_at(at, there, d, part, SIZE, SLICE)
        found += _dot(x, state[part], PRECISION)
        square += tl.sum(x * x, 1)
    unit = 1.0 / tl.sqrt(square + EPS)
    return found * unit[:, None], unit


@triton.jit
def _state_at(
    at, d, e, PART: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, SLICE: tl.constexpr
):
    """Where some rows of a head's matrix are, and which of them there are."""
    row = PART * SLICE + d
    return (
        at + row[:, None] * VALUE_DIM + e[None, :],
        (row < KEY_DIM)[:, None] & (e < VALUE_DIM)[None, :],
    )


@triton.jit(do_not_specialize=["first", "count", "first_sequence"])
def pass_kernel(
    y,  # for these see `solve_kernel`
    decay,
    systems,
    seen,
    matrices,  # [states, HEADS, KEY_DIM, VALUE_DIM] float32, of a layer
    out,  # [tokens, HEADS, VALUE_DIM] float32
    starts,
    read,
    written,
    chunk_starts,
    first,  # chunk
    count,  # of chunks
    first_sequence,
    stride,  # elements from one state to the next
    channels,
    scale,
    KEY_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    EPS: tl.constexpr,
    CHUNK: tl.constexpr,
    SLICE: tl.constexpr,  # a quarter of the rows of a matrix, at least
    BLOCK_V: tl.constexpr,
):
    wait_for_previous()
    sequence, head = first_sequence + tl.program_id(0), tl.program_id(1)
    i, d = tl.arange(0, CHUNK), tl.arange(0, SLICE)
    e = tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    own_first = tl.load(chunk_starts + sequence)
    begin = tl.maximum(own_first, first)
    end = tl.minimum(tl.load(chunk_starts + sequence + 1), first + count)
    start, stop = tl.load(starts + sequence), tl.load(starts + sequence + 1)
    own = matrices + head * KEY_DIM * VALUE_DIM
    left = own + tl.load(written + sequence) * stride
    # what chunks of an earlier launch left is where the state after this one goes
    source = own + tl.load(tl.where(begin == own_first, read, written) + sequence) * stride
    at, mask = _state_at(source, d, e, 0, KEY_DIM, VALUE_DIM, SLICE)
    s0 = tl.load(at, mask=mask, other=0.0)
    at, mask = _state_at(source, d, e, 1, KEY_DIM, VALUE_DIM, SLICE)
    s1 = tl.load(at, mask=mask, other=0.0)
    at, mask = _state_at(source, d, e, 2, KEY_DIM, VALUE_DIM, SLICE)
    s2 = tl.load(at, mask=mask, other=0.0)
    at, mask = _state_at(source, d, e, 3, KEY_DIM, VALUE_DIM, SLICE)
    s3 = tl.load(at, mask=mask, other=0.0)
    q_head = head // (HEADS // KEY_HEADS)
    for chunk in range(begin, end):
        row = start + (chunk - own_first) * CHUNK + i
        there = row < stop
        each = tl.load(decay + row * HEADS + head, mask=there, other=0.0)
        total, last = tl.cumsum(each, 0), tl.sum(each, 0)
        square = ((chunk - first) * HEADS + head) * CHUNK * CHUNK + i[:, None] * CHUNK + i[None, :]
        state = s0, s1, s2, s3
        q_at = y + row[:, None] * channels + q_head * KEY_DIM + d[None, :]
        k_at = q_at + KEY_HEADS * KEY_DIM
        known, k_unit = _read(k_at, there, d, state, PRECISE, KEY_DIM, SLICE, EPS)
        v = _heads_at(y + 2 * KEY_HEADS * KEY_DIM, row, there, e, head, VALUE_DIM, channels)
        change = _dot(tl.load(systems + square), v - known * tl.exp(total)[:, None])
        found, _ = _read(q_at, there, d, state, ROUGH, KEY_DIM, SLICE, EPS)
        found = found * (tl.exp(total) * scale)[:, None] + _dot(tl.load(seen + square), change, ROUGH)
        into = out + (row[:, None] * HEADS + head) * VALUE_DIM + e[None, :]
        tl.store(into, found, mask=there[:, None] & (e < VALUE_DIM)[None, :])
        change *= (k_unit * tl.exp(last - total))[:, None]
        # keys once more, which is cheaper than to keep them: they would take the registers of the products
        k = _slice_at(k_at, there, d, 0, KEY_DIM, SLICE)
        s0 = s0 * tl.exp(last) + _dot(tl.trans(k), change)
        k = _slice_at(k_at, there, d, 1, KEY_DIM, SLICE)
        s1 = s1 * tl.exp(last) + _dot(tl.trans(k), change)
        k = _slice_at(k_at, there, d, 2, KEY_DIM, SLICE)
        s2 = s2 * tl.exp(last) + _dot(tl.trans(k), change)
        k = _slice_at(k_at, there, d, 3, KEY_DIM, SLICE)
        s3 = s3 * tl.exp(last) + _dot(tl.trans(k), change)
    at, mask = _state_at(left, d, e, 0, KEY_DIM, VALUE_DIM, SLICE)
    tl.store(at, s0, mask=mask)
    at, mask = _state_at(left, d, e, 1, KEY_DIM, VALUE_DIM, SLICE)
    tl.store(at, s1, mask=mask)
    at, mask = _state_at(left, d, e, 2, KEY_DIM, VALUE_DIM, SLICE)
    tl.store(at, s2, mask=mask)
    at, mask = _state_at(left, d, e, 3, KEY_DIM, VALUE_DIM, SLICE)
    tl.store(at, s3, mask=mask)


SOLVE, PASS = Launcher(solve_kernel), Launcher(pass_kernel)


def parts_of(counts: Sequence[int], first_sequence: int) -> list[Part]:
    """Launches for sequences with so many chunks each, the first of which has that number in its step."""
    ends = [*accumulate(counts)]
    found = []
    for first in range(0, sum(counts), CHUNKS):
        count = min(CHUNKS, ends[-1] - first)
        begin, last = bisect_right(ends, first), bisect_left(ends, first + count)
        found.append(Part(first, count, first_sequence + begin, last - begin + 1))
    return found


def chunked(
    y: Tensor,  # [tokens, channels] float32, after the convolution
    decay: Tensor,  # [tokens, heads] float32
    beta: Tensor,  # the same
    matrices: Tensor,  # [states, heads, key_dim, value_dim] float32
    out: Tensor,  # [tokens, heads, value_dim] float32; rows of single tokens stay as they are
    places: Places,
    chunks: Chunks,
    parts: Sequence[Part],
    delta: DeltaNet,
) -> None:
    """All prompts of a step, from and to the states of `places`."""
    heads, scale = delta.value_heads, delta.key_dim**-0.5
    most = max(part.count for part in parts)
    systems, seen = (y.new_empty(most, heads, CHUNK, CHUNK) for _ in range(2))
    sizes = delta.key_heads, heads, delta.key_dim
    slice_of_keys = max(16, triton.next_power_of_2(triton.cdiv(delta.key_dim, 4)))
    for part in parts:
        SOLVE(
            (part.count, heads, 1),
            *(y, decay, beta, systems, seen, places.starts, *chunks),
            *(part.first, y.shape[1], scale, *sizes, EPS, CHUNK, SLICE),
            num_warps=WARPS,
            num_stages=1,
        )
        PASS(
            (part.sequences, heads, triton.cdiv(delta.value_dim, COLUMNS)),
            *(y, decay, systems, seen, matrices, out),
            *(places.starts, places.read, places.written, chunks.starts),
            *(part.first, part.count, part.first_sequence, matrices.stride(0), y.shape[1], scale),
            *(*sizes, delta.value_dim, EPS, CHUNK, slice_of_keys, COLUMNS),
            num_warps=WARPS,
            num_stages=1,
        )
