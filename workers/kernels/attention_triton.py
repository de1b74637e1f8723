"""Causal attention over paged keys and values on a GPU: one kernel for prompts, single tokens and several.

A program has some rows of queries of one sequence that share a key head: tokens times the heads of a group,
one under the other, so that keys are read once for all of them. It walks along the keys that these rows see
in blocks, with a running softmax (FlashAttention, https://arxiv.org/abs/2205.14135).

Where tokens are few, programs share the keys of a sequence (as in flash-decoding), and a second kernel puts
their parts together in order. How keys are divided depends on that sequence alone: company changes no bit.

What no query sees is not read: neither pages before a window, nor what another sequence left in the rest of a
page, so that no number in them can reach a result.

Keys and values in 8 bits are multiplied as codes, which a matrix product takes as they are; scales of keys
go to the scores, and those of values to the weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ipc.worker_messages import PAGE_SIZE
from workers.kernels.dependent_triton import wait_for_previous
from workers.kernels.eight_bits_triton import KINDS, WHOLE, number_of, scale_of
from workers.kernels.launch import Launcher, capability_of

MOST_SPLITS = 32  # of the keys of a sequence
SPLIT = 64  # keys, of which a split is a multiple, and begins at one
PROGRAMS = 2048  # that share keys, at most: several for each processor of the largest GPU
LOG2_E = tl.constexpr(1.4426950408889634)
_WHOLE = tl.constexpr(WHOLE)
WINDOWS = ("full", "window", "chunk")  # by the number that the kernel knows them by


class Rows(NamedTuple):
    """Sequences of a step that are computed by one launch."""

    first: int  # in the order of `Sequences.order`
    count: int  # of sequences
    tokens: int  # that one of them has in the step at most
    few: bool  # rows of a program, so that many programs read keys at once
    splits: int = 0  # of the keys of one of them at most; 0: keys are not divided
    mutual: bool = False  # tokens of one see each other, those behind them too


class Sequences(NamedTuple):
    """Where a step's sequences have their rows and pages, on the device; all int64."""

    order: Tensor  # [sequences], their numbers, those of one launch together
    starts: Tensor  # [sequences + 1], of their rows in the step
    contexts: Tensor  # [sequences], tokens that have keys after the step
    tables: Tensor  # [sequences], where in `pages` number 0 of a sequence would be
    pages: Tensor  # of all of them


class Tile(NamedTuple):
    """What a program computes at once."""

    rows: int  # of queries
    keys: int
    warps: int
    stages: int  # blocks of keys that are on their way from memory at once
    registers: int | None = None  # see `Launcher`


@triton.jit
def _rows_of(place, order, starts, contexts, first, SINGLE: tl.constexpr):
    """Of a sequence its number, first row, tokens and context; those with one token come first in a step."""
    if SINGLE:
        sequence = (first + place).to(tl.int64)
        start, count = sequence, 1
    else:
        sequence = tl.load(order + first + place)
        start = tl.load(starts + sequence)
        count = (tl.load(starts + sequence + 1) - start).to(tl.int32)
    return sequence, start, count, tl.load(contexts + sequence).to(tl.int32)


@triton.jit
def _first_seen(position, window, WINDOW: tl.constexpr):
    """The first key that a token sees."""
    if WINDOW == 1:
        return tl.maximum(position - window + 1, 0)
    if WINDOW == 2:
        return position // window * window
    return position * 0


@triton.jit
def _splits(first, context, MOST: tl.constexpr, UNIT: tl.constexpr):
    """Where the first split begins, keys of each, and how many there are; `first`: the first key seen."""
    begin = first // UNIT * UNIT
    size = tl.maximum(tl.cdiv(tl.cdiv(context - begin, MOST), UNIT), 1) * UNIT
    return begin, size, tl.cdiv(context - begin, size)


@triton.jit
def _walk(
    carried,  # sum of values, greatest score, sum of weights
    queries,  # their first part, and the rest
    blocks,  # keys, values, page numbers, scales of keys and of values, of this sequence and head
    begin,
    end,
    position,  # [rows], the last key that each sees
    low,  # [rows], the first key that each sees
    lowest,  # the first that one of them sees
    context,
    strides,  # of a page, and of its scales
    scores,  # scale and cap
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CAPPED: tl.constexpr,
    SHARED: tl.constexpr,
    KIND: tl.constexpr,  # of `workers.kernels.eight_bits_triton`
    HIDDEN: tl.constexpr,  # some of the keys are not seen by all rows
):
    """Attend over keys from `begin` to `end`, in blocks."""
    total, most, weight = carried
    q, q_rest = queries
    keys, values, table, key_scales, value_scales = blocks
    page_stride, scale_stride = strides
    scale, cap = scores
    FIRST: tl.constexpr = VALUE_DIM if SHARED else HEAD_DIM
    d, v, rest = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_REST)
    for start in range(begin, end, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        there = (n >= lowest) & (n < context)
        page = tl.load(table + n // PAGE, mask=there, other=0) if HIDDEN else tl.load(table + n // PAGE)
        at = page * page_stride + n % PAGE * HEAD_DIM
        key_at, value_at = keys + at[:, None] + d[None, :], values + at[:, None] + v[None, :]
        if HIDDEN:
            key = tl.load(key_at, mask=there[:, None] & (d < FIRST)[None, :], other=0)
        elif BLOCK_D == FIRST:
            key = tl.load(key_at)
        else:
            key = tl.load(key_at, mask=(d < FIRST)[None, :], other=0)
        if KIND != _WHOLE:
            scale_at = page * scale_stride + n % PAGE
            key = number_of(key, q.dtype, KIND)
        score = tl.dot(q, tl.trans(key), input_precision="ieee")
        if FIRST < HEAD_DIM:
            rest_at = keys + at[:, None] + FIRST + rest[None, :]
            rest_mask = there[:, None] & (FIRST + rest < HEAD_DIM)[None, :]
            key_rest = tl.load(rest_at, mask=rest_mask, other=0.0)
            score = tl.dot(q_rest, tl.trans(key_rest), score, input_precision="ieee")
        score *= scale
        if KIND != _WHOLE:
            score *= scale_of(tl.load(key_scales + scale_at, mask=there, other=0.0), KIND)[None, :]
        if CAPPED:
            score = cap * (1.0 - 2.0 / (tl.exp2(score) + 1.0))  # tanh, of which `scale` has made a power of 2
        if HIDDEN:
            seen = (n[None, :] <= position[:, None]) & (n[None, :] >= low[:, None])
            score = tl.where(seen, score, float("-inf"))
        more = tl.maximum(most, tl.max(score, 1))
        base = tl.where(more == float("-inf"), 0.0, more) if HIDDEN else more
        share = tl.exp2(score - base[:, None])
        shrink = tl.exp2(most - base)
        weight = weight * shrink + tl.sum(share, 1)
        most = more
        if SHARED:
            value = key
        elif HIDDEN:
            value = tl.load(value_at, mask=there[:, None] & (v < VALUE_DIM)[None, :], other=0)
        elif BLOCK_V == VALUE_DIM:
            value = tl.load(value_at)
        else:
            value = tl.load(value_at, mask=(v < VALUE_DIM)[None, :], other=0)
        if KIND != _WHOLE:
            share *= scale_of(tl.load(value_scales + scale_at, mask=there, other=0.0), KIND)[None, :]
            # not float16: a weight by a scale may be too small for it
            value = number_of(value, tl.float32 if q.dtype == tl.float32 else tl.bfloat16, KIND)
        total = tl.dot(share.to(value.dtype), value, total * shrink[:, None], input_precision="ieee")
    return total, most, weight


@triton.jit
def _attend(
    begin,
    end,
    seen,  # what each row sees: its position, its first key, those of all rows, and the context
    queries,
    blocks,
    strides,
    scores,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CAPPED: tl.constexpr,
    SHARED: tl.constexpr,
    KIND: tl.constexpr,
):
    """As `_walk`; only the ends need masks: a window cuts the first blocks, and rows cut the last."""
    position, low, lowest, least, highest, context = seen
    total = tl.zeros((ROWS, BLOCK_V), tl.float32)
    carried = total, tl.full((ROWS,), float("-inf"), tl.float32), tl.zeros((ROWS,), tl.float32)
    clear_begin = tl.cdiv(tl.maximum(highest, begin), BLOCK_N) * BLOCK_N
    clear_end = tl.maximum(tl.minimum(least + 1, end) // BLOCK_N * BLOCK_N, clear_begin)
    if WINDOW:
        carried = _walk(
            *(carried, queries, blocks, begin, tl.minimum(clear_begin, end), position, low, lowest, context),
            *(strides, scores, HEAD_DIM, VALUE_DIM, PAGE, BLOCK_N, BLOCK_D, BLOCK_REST, BLOCK_V),
            *(CAPPED, SHARED, KIND, True),
        )
    carried = _walk(
        *(carried, queries, blocks, clear_begin, clear_end, position, low, lowest, context),
        *(strides, scores, HEAD_DIM, VALUE_DIM, PAGE, BLOCK_N, BLOCK_D, BLOCK_REST, BLOCK_V),
        *(CAPPED, SHARED, KIND, False),
    )
    return _walk(
        *(carried, queries, blocks, clear_end, end, position, low, lowest, context),
        *(strides, scores, HEAD_DIM, VALUE_DIM, PAGE, BLOCK_N, BLOCK_D, BLOCK_REST, BLOCK_V),
        *(CAPPED, SHARED, KIND, True),
    )


@triton.jit(do_not_specialize=["first", "tokens", "programs", "room", "window"])
def attention_kernel(
    q,  # [tokens, heads, head_dim], each row of which is contiguous
    keys,  # [pages, kv_heads, PAGE, head_dim], each page of which is contiguous
    values,  # the same
    key_scales,  # [pages, kv_heads, PAGE] of keys in 8 bits, or anything
    value_scales,  # the same
    y,  # [tokens, heads, value_dim]
    parts,  # [count * tokens, heads, splits, value_dim] float32, or anything
    sums,  # [count * tokens, heads, splits, 2] float32: greatest score, sum of weights
    sinks,  # [heads], or anything
    order,  # for these see `Sequences`
    starts,
    contexts,
    tables,
    pages,
    first,
    tokens,
    programs,  # of a sequence and key head, for its rows
    room,  # splits that there is room for
    window,
    q_stride,  # elements, of a token
    head_stride,
    page_stride,
    scale_stride,  # of a page
    scale,  # of scores, times log2(e); with CAPPED over half the cap
    cap,  # times log2(e)
    SINGLE: tl.constexpr,  # each sequence has one token
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,  # heads that share a key head
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
    SHARED: tl.constexpr,  # values are the first part of keys
    KIND: tl.constexpr,  # of `workers.kernels.eight_bits_triton`
    MUTUAL: tl.constexpr,  # each token of a sequence sees those behind it, too
    MOST: tl.constexpr,  # splits of a sequence; 0: keys are not split
    UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    wait_for_previous()
    place, kv_head = tl.program_id(0) // programs, tl.program_id(1)
    sequence, start, count, context = _rows_of(place, order, starts, contexts, first, SINGLE)
    first_row = tl.program_id(0) % programs * BLOCK_M
    row = first_row + tl.arange(0, BLOCK_M)
    token, head = row // GROUP, kv_head * GROUP + row % GROUP
    mine = token < count
    v = tl.arange(0, BLOCK_V)
    into = y + ((start + token) * HEADS + head)[:, None] * VALUE_DIM + v[None, :]
    inside = mine[:, None] & (v < VALUE_DIM)[None, :]
    if first_row >= count * GROUP:
        return
    before = context - count
    first_token = before + first_row // GROUP
    last_token = before + tl.minimum((first_row + BLOCK_M - 1) // GROUP, count - 1)
    lowest, highest = _first_seen(first_token, window, WINDOW), _first_seen(last_token, window, WINDOW)
    position = before + token
    low = _first_seen(position, window, WINDOW)
    if MUTUAL:
        position = position * 0 + context - 1  # the last key that each row sees
        first_token, last_token = context - 1, context - 1
    seen = position, low, lowest, first_token, highest, context
    begin, end = lowest // BLOCK_N * BLOCK_N, last_token + 1

    FIRST: tl.constexpr = VALUE_DIM if SHARED else HEAD_DIM
    d, rest = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_REST)
    q_at = q + (start + token)[:, None] * q_stride + head[:, None] * head_stride
    query = tl.load(q_at + d[None, :], mask=mine[:, None] & (d < FIRST)[None, :], other=0.0)
    query_rest = query
    if FIRST < HEAD_DIM:
        rest_mask = mine[:, None] & (FIRST + rest < HEAD_DIM)[None, :]
        query_rest = tl.load(q_at + FIRST + rest[None, :], mask=rest_mask, other=0.0)
    k_head, v_head = keys + kv_head * PAGE * HEAD_DIM, values + kv_head * PAGE * HEAD_DIM
    scales_at = kv_head * PAGE
    queries, strides = (query, query_rest), (page_stride, scale_stride)
    blocks = (
        k_head,
        v_head,
        pages + tl.load(tables + sequence),
        key_scales + scales_at,
        value_scales + scales_at,
    )
    if MOST:
        split_begin, size, splits = _splits(_first_seen(before, window, WINDOW), context, MOST, UNIT)
        for split in range(tl.program_id(2), splits, tl.num_programs(2)):
            part_begin = tl.maximum(begin, split_begin + split * size)
            part_end = tl.minimum(end, split_begin + (split + 1) * size)
            total, most, weight = _attend(
                *(part_begin, part_end, seen, queries, blocks, strides, (scale, cap), BLOCK_M),
                *(HEAD_DIM, VALUE_DIM, PAGE, WINDOW, BLOCK_N, BLOCK_D, BLOCK_REST, BLOCK_V, CAPPED, SHARED),
                KIND,
            )
            if splits == 1:
                total /= _with_sink(weight, most, sinks + head, mine, SINKS)[:, None]
                tl.store(into, total.to(y.dtype.element_ty), mask=inside)
            else:
                at = ((place * tokens + token).to(tl.int64) * HEADS + head) * room + split
                tl.store(parts + at[:, None] * VALUE_DIM + v[None, :], total, mask=inside)
                tl.store(sums + at * 2, most, mask=mine)
                tl.store(sums + at * 2 + 1, weight, mask=mine)
    else:
        total, most, weight = _attend(
            *(begin, end, seen, queries, blocks, strides, (scale, cap), BLOCK_M),
            *(HEAD_DIM, VALUE_DIM, PAGE, WINDOW, BLOCK_N, BLOCK_D, BLOCK_REST, BLOCK_V, CAPPED, SHARED),
            KIND,
        )
        total /= _with_sink(weight, most, sinks + head, mine, SINKS)[:, None]
        tl.store(into, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _with_sink(weight, most, sink, mask, SINKS: tl.constexpr):
    """The sum of weights, beside a score that has no value."""
    if SINKS:
        weight += tl.exp2(tl.load(sink, mask=mask, other=0.0).to(tl.float32) * LOG2_E - most)
    return weight


@triton.jit(do_not_specialize=["first", "tokens", "room", "window"])
def join_kernel(
    y,  # for these see `attention_kernel`
    parts,
    sums,
    sinks,
    order,
    starts,
    contexts,
    first,
    tokens,
    room,
    window,
    SINGLE: tl.constexpr,
    HEADS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    MOST: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """One head of one token, of the splits of its keys."""
    wait_for_previous()
    place, token, head = tl.program_id(0) // tokens, tl.program_id(0) % tokens, tl.program_id(1)
    _, start, count, context = _rows_of(place, order, starts, contexts, first, SINGLE)
    if token >= count:
        return
    _, _, splits = _splits(_first_seen(context - count, window, WINDOW), context, MOST, UNIT)
    if splits == 1:
        return
    split, v = tl.arange(0, MOST), tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    there, inside = split < splits, v < VALUE_DIM
    at = (tl.program_id(0).to(tl.int64) * HEADS + head) * room + split
    part_most = tl.load(sums + at * 2, mask=there, other=float("-inf"))
    weight = tl.load(sums + at * 2 + 1, mask=there, other=0.0)
    part = tl.load(
        parts + at[:, None] * VALUE_DIM + v[None, :], mask=there[:, None] & inside[None, :], other=0.0
    )
    most = tl.max(part_most, 0)
    share = tl.exp2(part_most - most)
    whole = tl.sum(weight * share, 0)
    whole = _with_sink(whole, most, sinks + head, True, SINKS)
    total = tl.sum(part * share[:, None], 0) / whole
    into = y + ((start + token) * HEADS + head) * VALUE_DIM + v
    tl.store(into, total.to(y.dtype.element_ty), mask=inside)


LAUNCH, JOIN = Launcher(attention_kernel), Launcher(join_kernel)


def num_splits(first: int, context: int) -> int:
    """As `_splits`: into how many parts the keys of a sequence are divided.

    Args:
        first: the first key that the first of its tokens in the step sees.
    """
    begin = first // SPLIT * SPLIT
    seen = context - begin
    return -(-seen // (max(-(-seen // (MOST_SPLITS * SPLIT)), 1) * SPLIT))


def most_splits(context: int) -> int:
    """The same of any sequence that sees up to so many keys, at most."""
    return min(MOST_SPLITS, -(-context // SPLIT))


def tile(
    few: bool,
    head_dim: int,
    itemsize: int,
    capability: int,
    capped: bool = False,
    coded: bool = False,
    windowed: bool = False,
) -> Tile:
    """The shape for `few` tokens of a sequence, or many, on a card of that capability.

    None takes more registers or shared memory than there are (`benchmarks.kernels` shows both). Cards with
    instructions for 64 rows and more (Hopper) have registers left for wider blocks. float32 is multiplied
    without tensor cores.

    Args:
        coded: keys and values are in 8 bits, and take registers until they are numbers.
        windowed: some of the first keys are not seen, in a window or a chunk.
    """
    wide, padded = capability // 10 in (9, 10), _padded(head_dim) > head_dim
    if itemsize == 4:
        return Tile(16, 16, 4 if head_dim <= 128 and not coded else 8, 2)
    if head_dim > 256:
        return Tile(16, 16, 8 if few and (coded or (wide and windowed)) else 4, 2)
    if few and head_dim > 128:
        return Tile(16, 32, 8, 2, 208 if capped or coded else 144 if padded or windowed else 128)
    if few:
        return Tile(16, 64, 8 if coded else 4, 2)
    if head_dim > 128:
        return Tile(32 if coded or (capped and padded) else 64, 32, 8, 2)
    if head_dim <= 64:
        return Tile(64, 64, 8, 2) if coded else Tile(128, 64, 8, 3)
    if wide:  # on an H200 prompts of 2,048 and 8,192 tokens take 8 % less than with 128 rows and 8 warps
        return Tile(64, 64, 4, 2)
    return Tile(64 if capped or coded or padded or windowed else 128, 32, 8, 2)


def attention(
    q: Tensor,  # [tokens, heads, head_dim]
    kv: Tensor,  # [blocks, pages, kv_heads, PAGE_SIZE, head_dim]
    value_dim: int,
    y: Tensor,  # [tokens, heads, value_dim]; rows of other sequences stay as they are
    sequences: Sequences,
    rows: Rows,
    kind: str,  # of WINDOWS
    window: int,  # tokens, where there is one
    scale: float,
    cap: float | None,
    sinks: Tensor | None,  # [heads]
    shape: Tile | None = None,  # None: what `tile` says
    scales: Tensor | None = None,  # [blocks, pages, kv_heads, PAGE_SIZE], where `kv` is in 8 bits
) -> None:
    """Let the tokens of some of a step's sequences attend over what each sees of its pages."""
    heads, head_dim = q.shape[1:]
    kv_heads = kv.shape[2]
    group, shared = heads // kv_heads, len(kv) == 1
    kept = KINDS.get(kv.dtype, WHOLE)
    number = WINDOWS.index(kind)
    special = cap is not None, kept != WHOLE, number > 0
    shape = shape or tile(rows.few, head_dim, q.element_size(), capability_of(q.device), *special)
    first_dim = value_dim if shared else head_dim
    block_rest = _padded(head_dim - first_dim)
    programs = rows.count * triton.cdiv(rows.tokens * group, shape.rows)
    parts, sums = y, y
    if rows.splits > 1:
        split_rows = rows.count * rows.tokens, heads, rows.splits
        parts, sums = (q.new_empty(*split_rows, size, dtype=torch.float32) for size in (value_dim, 2))
    log2_e = LOG2_E.value
    most = MOST_SPLITS if rows.splits else 0
    given = y if sinks is None else sinks
    # as many as keep a GPU busy, and no more: most find nothing to do where contexts are short
    at_once = max(1, min(rows.splits, PROGRAMS // (programs * kv_heads)))
    LAUNCH(
        (programs, kv_heads, at_once),
        *(q, kv[0], kv[-1], *scale_blocks(kv, scales), y, parts, sums, given, *sequences),
        *(rows.first, rows.tokens, programs // rows.count, rows.splits, window),
        *(q.stride(0), q.stride(1), kv.stride(1), scale_stride(scales)),
        *((scale * log2_e, 0.0) if cap is None else (2 * scale * log2_e / cap, cap * log2_e)),
        *(
            rows.tokens == 1,
            heads,
            group,
            head_dim,
            value_dim,
            PAGE_SIZE,
            number,
            cap is not None,
            sinks is not None,
            shared,
            kept,
            rows.mutual,
        ),
        *(most, SPLIT, shape.rows, shape.keys, _padded(first_dim), block_rest, _padded(value_dim)),
        num_warps=shape.warps,
        num_stages=shape.stages,
        registers=shape.registers,
    )
    if rows.splits > 1:
        block = min(_padded(value_dim), 128)
        JOIN(
            (rows.count * rows.tokens, heads, triton.cdiv(value_dim, block)),
            *(y, parts, sums, given, *sequences[:3], rows.first, rows.tokens, rows.splits, window),
            *(rows.tokens == 1, heads, value_dim, number, sinks is not None, most, SPLIT, block),
            num_warps=4,
        )


def scale_blocks(kv: Tensor, scales: Tensor | None) -> tuple[Tensor, Tensor]:
    """Those of keys and of values; anything, where there are none."""
    return (kv[0], kv[0]) if scales is None else (scales[0], scales[-1])


def scale_stride(scales: Tensor | None) -> int:
    """Elements of a page."""
    return 0 if scales is None else scales.stride(1)


def _padded(size: int) -> int:
    """To what tensor cores take."""
    return max(16, triton.next_power_of_2(size))
