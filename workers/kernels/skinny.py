"""Products with weights in planes on a GPU, of few rows: the weight is read once, at the rate of memory.

Of up to 16 rows a program is one warp. It has some rows of the weight and some of its columns, from the first
register on in the order in which its tensor core takes them, so that it needs no shared memory and waits for
nobody; and it is small, so that a GPU has some ten of them on each multiprocessor, which is what it takes to
keep memory busy. What parts of the columns give is added by whoever of them comes last, in the order of the
columns: sums do not depend on who that is, nor on how many rows there are, within `steady_tokens`.

Instructions are waited for as memory is: by the figures of an H200 a product takes the sum of both. So a
token or two leave no column of a tensor core's product to zeros (`own_columns_of`).

Of more rows a program is four warps, which share the inputs, and multiplies what numbers mean, rounded.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.checkpoints.blocks import filled
from workers.kernels import launch
from workers.kernels.dependent_triton import ask_for, launched_ahead, wait_for_previous
from workers.kernels.gated_triton import Known, row_of, store_rows
from workers.kernels.gates import Gates
from workers.kernels.launch import Launcher
from workers.kernels.planes_triton import (
    BY_SIXTEEN,
    INTERPRETED,
    STEP,
    bytes_before,
    four_threads,
    halves_of,
    has_least,
    in_turns,
    is_coarse,
    is_filled,
    load_numbers,
    load_scales,
    middle_of,
    numbers_of,
    offset_of,
    own_scales,
    planes_of,
    scale_of,
    step_bytes,
    tile,
)

COUNTERS = 1 << 16  # of programs' parts that are done
FEWEST = tl.constexpr(8)  # columns that a product of a tensor core has
LINE = tl.constexpr(128)  # bytes of the cache that all multiprocessors share
FEW = tl.constexpr(16)  # tokens, up to which a program is one warp
WARPS = 4  # of one that has more


class Shape(NamedTuple):
    """What a program has.

    Args:
        tokens: rows of x, at most: a power of two from 8 on, or those of `alone`.
        rows: of the weight: 16, 32 or 64.
        warps: that a multiprocessor is to have, so that memory is busy.
        stages: steps that are on their way from memory at once; with more than one they come by way of
            shared memory.
        registers: see `Launcher`.
    """

    tokens: int
    rows: int
    warps: int
    stages: int = 1
    registers: int | None = None


@triton.jit
def _for_all(sums, BLOCK_N: tl.constexpr):
    """The same for each 16 rows: `[16, m] -> [BLOCK_N, m]`."""
    m: tl.constexpr = sums.shape[1]
    return tl.reshape(tl.broadcast_to(sums[None], (BLOCK_N // 16, 16, m)), (BLOCK_N, m))


@triton.jit
def _as_input(low, high):  # [n, 4, 4] each -> [32, n]
    """32 columns of x, of which four threads have four each of both halves, beside `in_turns`."""
    n: tl.constexpr = low.shape[0]
    both = tl.reshape(tl.join(low, high), (n, 4, 2, 2, 2))  # token, thread, pair, in a pair, half
    return tl.reshape(tl.permute(both, (2, 1, 4, 3, 0)), (32, n))


@triton.jit
def _inputs(at, HALVES: tl.constexpr, N: tl.constexpr):
    """32 columns of x from `at` `[HALVES * N]` on: `[32, HALVES * N]`. With two halves the first N have
    the first 16 columns and zeros, the last N the others."""
    if HALVES == 2:
        row = tl.arange(0, 2 * N)
        return _as_input(four_threads(at, 4, 4, row < N), four_threads(at + 16, 4, 4, row >= N))
    else:
        return _as_input(four_threads(at, 4, 4), four_threads(at + 16, 4, 4))


@triton.jit
def _further(left, GROUP: tl.constexpr, FILLED: tl.constexpr):
    """How much further than a step's 32 columns of x begin, of which there are so many from there on: what
    fills the last step has weights of zero, and sees the step's first ones in place of another token's."""
    if is_filled(GROUP, FILLED):
        return tl.where(left >= STEP, 32 * GROUP, 0)
    else:
        return 32 * GROUP


@triton.jit
def _beside(scale, HALVES: tl.constexpr):
    """Scales of rows, `[n, 4]` or `[n, 4, 2]`, as they stand beside `_seen`."""
    n: tl.constexpr = scale.shape[0]
    if HALVES == 2:
        return tl.reshape(tl.permute(scale, (0, 2, 1)), (n // 16, 16, 2, 1, 4, 1))
    else:
        return tl.reshape(scale, (n // 16, 16, 1, 1, 4, 1))


@triton.jit
def _seen(product, HALVES: tl.constexpr):
    """A product `[n, HALVES * N]` by rows of 16, halves, and which of four threads has it."""
    n: tl.constexpr = product.shape[0]
    m: tl.constexpr = product.shape[1]
    return tl.reshape(product, (n // 16, 16, HALVES, m // HALVES // 8, 4, 2))


@triton.jit
def columns_of(
    rows,  # [BLOCK_N] pointers: where rows of the weight begin
    inputs,  # [HALVES * N] pointers: where tokens begin
    begin,
    end,
    columns,
    KIND: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    N: tl.constexpr,
    FILLED: tl.constexpr,
):
    """The product of columns from `begin` to `end`: `[BLOCK_N, N]` float32."""
    HALVES: tl.constexpr = halves_of(KIND)
    OFFSET: tl.constexpr = offset_of(KIND, DTYPE)
    total = tl.zeros((BLOCK_N // 16, 16, HALVES, N // 8, 4, 2), tl.float32)
    taken = tl.full((16, 32), -middle_of(KIND, DTYPE), DTYPE)  # off all numbers, by its product with x
    for k in range(begin, end, STEP):
        scales = load_scales(rows, k, columns + FILLED, KIND)
        loaded = load_numbers(rows, k, columns + FILLED, KIND)
        sums = tl.zeros((16, HALVES * N), tl.float32)
        if is_coarse(KIND):
            if OFFSET > 0:
                for group in tl.static_range(4):
                    x = _inputs(inputs + k + _further(columns - k, group, FILLED), HALVES, N)
                    sums = tl.dot(taken, x, sums)
            found = _for_all(sums, BLOCK_N)
        for group in tl.static_range(4):
            x = _inputs(inputs + k + _further(columns - k, group, FILLED), HALVES, N)
            a, b, c, d = numbers_of(loaded, group, KIND, DTYPE)
            if not is_coarse(KIND):
                if OFFSET > 0:
                    sums = tl.dot(taken, x)
                found = _for_all(sums, BLOCK_N)
            found = tl.dot(in_turns(a, b, c, d), x, found)
            if group == 3 or not is_coarse(KIND):
                scale, least = scale_of(scales, group, KIND)
                total += _beside(scale, HALVES) * _seen(found, HALVES)
                if has_least(KIND):
                    total += _beside(least * (1.0 / OFFSET), HALVES) * _seen(_for_all(sums, BLOCK_N), HALVES)
    return tl.reshape(tl.sum(total, axis=2), (BLOCK_N, N))


@triton.jit
def _only(x, there):  # [n, 4, 4], [n]
    """What is there, and zeros: of two numbers at once."""
    if INTERPRETED:
        return tl.where(there[:, None, None], x, 0.0).to(x.dtype)
    else:
        mask = tl.where(there, -1, 0).to(tl.int16)[:, None, None]
        return tl.inline_asm_elementwise(
            "and.b32 $0, $1, $2;", "=r,r,r", [x, mask], x.dtype, is_pure=True, pack=2
        )


@triton.jit
def own_columns_of(
    rows,  # [BLOCK_N] pointers: where rows of the weight begin
    x,
    source,  # [N] int64: rows of x
    begin,
    end,
    columns,
    KIND: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    N: tl.constexpr,
    FILLED: tl.constexpr,
):
    """The same of a token or two: a tensor core's other columns have the other groups of a step.

    All of a step adds up in one product, whose columns have a token in one group, and zeros in the others.
    So a thread has of each row the group that it has a scale for, and no thread has what another has.
    """
    GROUPS: tl.constexpr = FEWEST // N
    HALVES: tl.constexpr = GROUPS // 4  # that are groups of their own
    OFFSET: tl.constexpr = offset_of(KIND, DTYPE)
    group = tl.arange(0, FEWEST) // N
    source = tl.reshape(tl.broadcast_to(source[None, :], (GROUPS, N)), (FEWEST,))
    inputs = x + source * columns + group * (STEP // GROUPS)
    total = tl.zeros((BLOCK_N // 16, 16, 4, 2), tl.float32)
    taken = tl.full((16, 32), -middle_of(KIND, DTYPE), DTYPE)
    for k in range(begin, end, STEP):
        scale, least = own_scales(rows, k, columns + FILLED, KIND)
        loaded = load_numbers(rows, k, columns + FILLED, KIND)
        low = _own_inputs(inputs + k, columns - k, group, GROUPS, FILLED)
        high = low
        sums = tl.zeros((16, FEWEST), tl.float32)
        if HALVES == 1:
            high = _own_inputs(inputs + k + 16, columns - k, group, GROUPS, FILLED)
            if OFFSET > 0:
                sums = tl.dot(taken, _as_input(low, high))
        elif OFFSET > 0:
            sums = tl.dot(taken, _as_input(low, tl.zeros_like(low)))
        sums = _for_all(sums, BLOCK_N)
        found = sums
        for four in tl.static_range(4):
            a, b, c, d = numbers_of(loaded, four, KIND, DTYPE)
            first = _only(low, group == HALVES * four)
            second = _only(high, group == HALVES * four + HALVES - 1)
            found = tl.dot(in_turns(a, b, c, d), _as_input(first, second), found)
        total += _own(scale, HALVES) * tl.reshape(found, (BLOCK_N // 16, 16, 4, 2))
        if has_least(KIND):
            total += _own(least * (1.0 / OFFSET), HALVES) * tl.reshape(sums, (BLOCK_N // 16, 16, 4, 2))
    return tl.sum(tl.reshape(total, (BLOCK_N, GROUPS, N)), axis=1)


@triton.jit
def _own_inputs(at, left, group, GROUPS: tl.constexpr, FILLED: tl.constexpr):
    """Of each column its group of x, or zeros where the weight's columns have ended."""
    if FILLED > 0:
        return four_threads(at, 4, 4, left > group * (STEP // GROUPS))
    else:
        return four_threads(at, 4, 4)


@triton.jit
def _own(scale, HALVES: tl.constexpr):  # [n, 4], or with two halves [n, 4, 2]
    """Scales as they stand beside columns, of which a thread has two."""
    return tl.reshape(scale, (scale.shape[0] // 16, 16, 4, HALVES))


@triton.jit
def tiled_columns_of(
    rows,  # [BLOCK_N] pointers: where rows of the weight begin
    inputs,  # [N] pointers: where tokens begin
    begin,
    end,
    columns,
    KIND: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    N: tl.constexpr,
    FILLED: tl.constexpr,
):
    """The same for tokens whose sums would leave a warp no registers: scales go into numbers of 16 bits."""
    total = tl.zeros((BLOCK_N, N), tl.float32)
    for k in range(begin, end, STEP):
        scales = load_scales(rows, k, columns + FILLED, KIND)
        loaded = load_numbers(rows, k, columns + FILLED, KIND)
        for group in tl.static_range(4):
            further = _further(columns - k, group, FILLED)
            x = tl.load(inputs[None, :] + k + further + tl.arange(0, 32)[:, None])
            total = tl.dot(_meaning(loaded, scales, group, KIND, DTYPE), x, total)
    return total


@triton.jit
def plain_columns_of(
    rows,  # [BLOCK_N] pointers: where rows of the weight begin
    inputs,  # [N] pointers: where tokens begin
    begin,
    end,
    columns,
    BLOCK_N: tl.constexpr,
    N: tl.constexpr,
    FILLED: tl.constexpr,
):
    """The same of a weight in its input's type, of which a thread takes eight columns: `[BLOCK_N, N]`. What
    fills a step is not in memory."""
    total = tl.zeros((BLOCK_N, N), tl.float32)
    for k in range(begin, end, STEP):
        for group in tl.static_range(4):
            if is_filled(group, FILLED):
                there = k + 32 * group < columns
                weight = four_threads(rows + k + 32 * group, 8, 8, (tl.arange(0, BLOCK_N) >= 0) & there)
                x = four_threads(inputs + k + 32 * group, 8, 8, (tl.arange(0, N) >= 0) & there)
            else:
                weight = four_threads(rows + k + 32 * group, 8, 8)
                x = four_threads(inputs + k + 32 * group, 8, 8)
            total = tl.dot(_in_order(weight), tl.trans(_in_order(x)), total)
    return total


@triton.jit
def _in_order(eight):  # [n, 4, 8] -> [n, 32]
    """As a tensor core takes what four threads have; the columns' order is another then."""
    n: tl.constexpr = eight.shape[0]
    return tl.reshape(tl.permute(tl.reshape(eight, (n, 4, 4, 2)), (0, 2, 1, 3)), (n, 32))


@triton.jit
def product_of(
    w,
    row,  # [BLOCK_N] int64
    row_stride,
    x,
    source,  # [N] int64: rows of x
    begin,
    end,
    columns,
    KIND: tl.constexpr,
    BLOCK_N: tl.constexpr,
    N: tl.constexpr,
    FILLED: tl.constexpr,  # columns of zeros that the last step has beside its own
):
    """`[BLOCK_N, N]` float32: some rows of a weight, in planes or `PLAIN`, by some of x, in some columns."""
    rows = w + row * row_stride
    DTYPE: tl.constexpr = x.dtype.element_ty
    if KIND == "PLAIN":
        return plain_columns_of(rows, x + source * columns, begin, end, columns, BLOCK_N, N, FILLED)
    elif N > FEW:
        inputs = x + source * columns
        return tiled_columns_of(rows, inputs, begin, end, columns, KIND, DTYPE, BLOCK_N, N, FILLED)
    elif N < FEWEST:
        return own_columns_of(rows, x, source, begin, end, columns, KIND, DTYPE, BLOCK_N, N, FILLED)
    else:
        HALVES: tl.constexpr = halves_of(KIND)
        if HALVES == 2:
            source = tl.reshape(tl.permute(tl.join(source, source), (1, 0)), (2 * N,))
        inputs = x + source * columns
        return columns_of(rows, inputs, begin, end, columns, KIND, DTYPE, BLOCK_N, N, FILLED)


@triton.jit
def is_last_part(total, parts, at, there, mine):
    """Leave a part of a sum where `parts` are; whether all of them are there now. `mine`: a count of them."""
    tl.store(parts + at, total, mask=there, cache_modifier=".cg")
    tl.debug_barrier()  # what all threads wrote is there before one of them says so
    return tl.atomic_add(mine, 1) == tl.num_programs(1) - 1


@triton.jit
def sum_of_parts(parts, size, at, there, mine, BLOCK_N: tl.constexpr, N: tl.constexpr):
    """Of all parts, in their order; the count is zero again."""
    tl.store(mine, 0)
    total = tl.zeros((BLOCK_N, N), tl.float32)
    for part in range(0, tl.num_programs(1)):
        total += tl.load(parts + part * size + at, mask=there, other=0.0, cache_modifier=".cg")
    return total


@triton.jit
def first_lines(
    w,  # [rows, row_stride]
    num_rows,
    columns,
    row_stride,
    begin,
    split_steps,
    PLANE: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Where a program begins in a plane of its rows, and of numbers the next `LINE`, too, if it has that.

    That is two to four steps of each of its rows, with their scales. Of 16 programs of a multiprocessor it
    comes to 128 KiB: by data sheets what an H200's memory (4.8 TB/s for 132) brings to each in 3.6 us, and a
    5090's (1.8 for 170) in 12. All of them ask for a third of the cache on the first, a quarter on the other.
    """
    LINES: tl.constexpr = 2 if PLANE == 0 else 1
    SIZE: tl.constexpr = step_bytes(KIND, PLANE)
    i = tl.arange(0, LINES * BLOCK_N)
    n = tl.minimum(tl.program_id(0) * BLOCK_N + i % BLOCK_N, num_rows - 1)
    row = w.to(tl.pointer_type(tl.uint8)) + n.to(tl.int64) * row_stride * (
        w.dtype.element_ty.primitive_bitwidth // 8
    )
    start = columns // STEP * bytes_before(KIND, PLANE)
    first = begin // STEP * SIZE
    last = tl.minimum(begin // STEP + split_steps, columns // STEP) * SIZE - 1
    return row + start + tl.minimum(first + i // BLOCK_N * LINE, tl.maximum(last, first))


@triton.jit(do_not_specialize=["tokens", "split_steps"])
def product_kernel(
    x,  # [tokens, columns]
    w,  # [rows, row_stride] uint8, in planes
    bias,  # [num_rows], or anything
    y,  # [tokens, num_rows], or with gates half as many
    parts,  # [splits, tokens, num_rows] float32, or anything
    done,  # [programs] int32 zeros, and zeros again afterwards
    alpha,  # for these see `workers.kernels.gated_triton`
    limit,
    tokens,
    num_rows,
    columns,
    row_stride,
    split_steps,  # of columns, that a program has
    KIND: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,  # negative: there are no gates
    INTERLEAVED: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    N: tl.constexpr,
    FILLED: tl.constexpr,
    ASKS: tl.constexpr,
):
    begin = tl.program_id(1) * split_steps * STEP
    if ASKS and launched_ahead():
        whole = columns + (0 if KIND == "PLAIN" else FILLED)
        for plane in tl.static_range(planes_of(KIND)):
            at = first_lines(w, num_rows, whole, row_stride, begin, split_steps, plane, KIND, BLOCK_N)
            ask_for(at)
    wait_for_previous()
    n = row_of(tl.program_id(0), num_rows, ACTIVATION, INTERLEAVED, BLOCK_N)
    m = tl.program_id(2) * N + tl.arange(0, N)
    total = product_of(
        *(w, tl.minimum(n, num_rows - 1).to(tl.int64), row_stride),
        *(x, tl.minimum(m, tokens - 1).to(tl.int64)),
        *(begin, tl.minimum(begin + split_steps * STEP, columns), columns),
        KIND,
        BLOCK_N,
        N,
        FILLED,
    )
    there = (m[None, :] < tokens) & (n[:, None] < num_rows)
    at = m[None, :].to(tl.int64) * num_rows + n[:, None]
    is_last = True
    if SPLIT:
        size = tokens.to(tl.int64) * num_rows
        mine = done + tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
        is_last = is_last_part(total, parts, tl.program_id(1) * size + at, there, mine)
        if is_last:
            total = sum_of_parts(parts, size, at, there, mine, BLOCK_N, N)
    if is_last:
        if HAS_BIAS:
            total += tl.load(bias + n, mask=n < num_rows, other=0.0).to(tl.float32)[:, None]
        into = y + m[None, :].to(tl.int64) * (num_rows // 2 if ACTIVATION >= 0 else num_rows)
        store_rows(into, total, n, num_rows, m < tokens, alpha, limit, ACTIVATION)


@triton.jit
def dequantise_kernel(
    w,  # [rows, row_stride] uint8, in planes
    y,  # [num_rows, columns]
    num_rows,
    columns,
    row_stride,
    KIND: tl.constexpr,
    BLOCK_N: tl.constexpr,
    FILLED: tl.constexpr,
):
    """Rows as numbers: of each program `BLOCK_N` of them, and the columns of a step."""
    wait_for_previous()
    DTYPE: tl.constexpr = y.dtype.element_ty
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = w + tl.minimum(n, num_rows - 1).to(tl.int64) * row_stride
    k = tl.program_id(1) * STEP
    into = y + n.to(tl.int64)[:, None] * columns + k + tl.arange(0, 32)[None, :]
    scales = load_scales(rows, k, columns + FILLED, KIND)
    loaded = load_numbers(rows, k, columns + FILLED, KIND)
    for group in tl.static_range(4):
        there = n < num_rows
        if is_filled(group, FILLED):
            there &= k + 32 * group < columns
        tl.store(into + group * 32, _meaning(loaded, scales, group, KIND, DTYPE), mask=there[:, None])


@triton.jit
def _meaning(loaded, scales, GROUP: tl.constexpr, KIND: tl.constexpr, DTYPE: tl.constexpr):
    """32 columns of each row: `[n, 32]`."""
    scale, least = scale_of(scales, GROUP, KIND)
    a, b, c, d = numbers_of(loaded, GROUP, KIND, DTYPE)
    if halves_of(KIND) == 2:
        low, high = tl.split(scale)
    else:
        low, high = scale, scale
    a, b = _whole(a, low, least, KIND), _whole(b, low, least, KIND)
    c, d = _whole(c, high, least, KIND), _whole(d, high, least, KIND)
    return tile(a, b, c, d)


@triton.jit
def _whole(numbers, scale, least, KIND: tl.constexpr):
    DTYPE: tl.constexpr = numbers.dtype
    wide = (numbers.to(tl.float32) - middle_of(KIND, DTYPE)) * scale[:, :, None]
    if has_least(KIND):
        wide -= least[:, :, None]
    return wide.to(DTYPE)


LAUNCH, DEQUANTISE = Launcher(product_kernel), Launcher(dequantise_kernel)

# --- on the host ----------------------------------------------------------------------------------------

# Of a format and the tokens of a program. The assembler by itself has registers there by loading behind
# products of the same step, which then waits for memory twice or three times.
REGISTERS = {("Q4_K", 2): 96, ("FP8_128", 8): 80}

# With so many bytes a number up to 8 tokens have smaller programs, and more of them: on an H200 12288 x 4096
# take 22 us and not 26 to 28. More tokens do not, so that splits, and with them sums, are others there.
EIGHT_BITS = ("FP8_128", "INT8_128", "Q8_0")


def alone(kind: str) -> int:
    """Tokens, up to which a step's scales stand side by side in a product (`own_columns_of`)."""
    return 0 if is_coarse(kind) or kind == "PLAIN" else FEWEST.value // (4 * halves_of(kind))


def steady_tokens(kind: str) -> range:
    """Of how many tokens each has the same bits in any company."""
    return range(alone(kind) + 1, 1 + (8 if kind in EIGHT_BITS else FEW.value))


def shape_of(tokens: int, kind: str, gated: bool = False) -> Shape:
    """What a program has: of a table that an H200 made (Triton 3.6, an 8B's sizes, 1 to 64 tokens), where 32
    rows were faster than 16 or 64 but for `EIGHT_BITS`, and 16 programs than 8 or 32. There two programs of
    16 tokens take 47 to 50 us for 17 to 32 with 12288 x 4096 in 8 bits, and one of four warps 58 to 59; where
    16 columns have a scale of their own it is the other way round. A 3090, by the code that is assembled,
    has four of those with four warps a multiprocessor, and waits for its tensor cores."""
    if FEW.value < tokens <= 32 and kind not in BY_SIXTEEN:
        return Shape(16, 32, 12, registers=REGISTERS.get((kind, 16)))
    if tokens > FEW.value:
        most = 32 if tokens <= 32 else 64
        return Shape(most, 64, 6, 2, REGISTERS.get((kind, most)))
    most = alone(kind) if tokens <= alone(kind) else 8 if tokens <= 8 else 16
    if most <= 8 and kind in EIGHT_BITS:
        return Shape(most, 16, 24, registers=REGISTERS.get((kind, most)))
    rows = 16 if gated and (kind, most) == ("Q6_K", 16) else 32  # else too few registers for it
    return Shape(most, rows, 16, registers=REGISTERS.get((kind, most)))


def splits_of(rows: int, columns: int, warps: int, processors: int) -> tuple[int, int]:
    """How many parts columns have, and how many steps each: the same for any number of tokens, so that a row
    has the same bits in any company of up to `steady_tokens`.

    Args:
        warps: of a multiprocessor, for each 32 rows of the weight.
    """
    steps = triton.cdiv(columns, STEP.value)
    each = triton.cdiv(steps, max(1, min(steps, processors * warps // triton.cdiv(rows, 32))))
    return triton.cdiv(steps, each), each


@cache
def counters(device: torch.device) -> Tensor:
    """Of parts that are done: zeros between products, of which a device has one at a time."""
    return torch.zeros(COUNTERS, dtype=torch.int32, device=device)


@cache
def processors_of(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def product(
    x: Tensor,
    data: Tensor,
    kind: str,
    bias: Tensor | None,
    gates: Gates | None = None,
    shape: Shape | None = None,
) -> Tensor:  # [tokens, columns] -> [tokens, rows], or with gates half as many
    """`x Wᵀ + b`, with W as `data` has it: `[rows, bytes]` in planes, or `PLAIN` in the type of x.

    Args:
        gates: that some of the rows are of the others.
        shape: another than `shape_of` has, to be measured.
    """
    x = x.contiguous()
    (tokens, columns), rows = x.shape, len(data)
    shape = shape or shape_of(tokens, kind, gates is not None)
    splits, each = splits_of(rows, columns, shape.warps, processors_of(x.device))
    y = x.new_empty(tokens, rows if gates is None else rows // 2)
    *clamp, activation, interleaved = Known.of(gates)
    parts = x.new_empty(splits, tokens, rows, dtype=torch.float32) if splits > 1 else y
    grid = (triton.cdiv(rows, shape.rows), splits, triton.cdiv(tokens, shape.tokens))
    LAUNCH(
        grid,
        *(x, data, y if bias is None else bias, y, parts, counters(x.device), *clamp),
        *(tokens, rows, columns, data.stride(0), each),
        kind,
        bias is not None,
        activation,
        interleaved,
        splits > 1,
        shape.rows,
        shape.tokens,
        filled(columns),
        launch.asks and gates is None,  # not yet where some rows are gates of others
        num_warps=1 if shape.tokens <= FEW.value else WARPS,
        num_stages=shape.stages,
        registers=shape.registers,
    )
    return y


def dequantise(data: Tensor, kind: str, columns: int, dtype: torch.dtype) -> Tensor:  # [rows, columns]
    """What rows in planes mean."""
    y = torch.empty(len(data), columns, dtype=dtype, device=data.device)
    grid = (triton.cdiv(len(data), 32), triton.cdiv(columns, STEP.value), 1)
    DEQUANTISE(grid, data, y, len(data), columns, data.stride(0), kind, 32, filled(columns), num_warps=1)
    return y
