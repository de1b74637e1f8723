"""Products of pairs of a token and an expert on a GPU, where an expert has few: as `workers.kernels.skinny`.

A program has some rows of one expert's weight, some of its columns and some of its pairs. Which expert it is
it finds in the counts of all, where they lie; those that have none end.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.checkpoints.blocks import GROUP, filled
from workers.kernels.dependent_triton import wait_for_previous
from workers.kernels.gated_triton import Known, row_of, store_rows
from workers.kernels.gates import Gates
from workers.kernels.launch import Launcher
from workers.kernels.pairs import Pairs
from workers.kernels.planes_triton import STEP
from workers.kernels.skinny import (
    COUNTERS,
    EIGHT_BITS,
    FEWEST,
    Shape,
    alone,
    counters,
    is_last_part,
    processors_of,
    product_of,
    sum_of_parts,
)
from workers.weights.blocks import Blocks, Weight

PLAIN = "PLAIN"  # the weight is in the type of its input
MOST = 32  # pairs of an expert, up to which a plain weight is faster so


@triton.jit(do_not_specialize=["pairs", "split_steps", "experts"])
def experts_kernel(
    x,  # [tokens, columns], or with SCALED [pairs, columns]
    w,  # [experts * num_rows, columns], or bytes in planes
    bias,  # [experts, num_rows], or anything
    y,  # [pairs, num_rows], or with gates half as many
    parts,  # [splits, pairs, num_rows] float32, or anything
    done,  # [programs] int32 zeros, and zeros again afterwards
    order,  # [pairs] int64
    starts,  # [experts + 1] int32
    scales,  # [pairs] float32, or anything
    alpha,  # for these see `workers.kernels.gated_triton`
    limit,
    pairs,
    num_rows,
    columns,
    row_stride,  # elements, or bytes
    y_stride,
    experts,
    split_steps,  # of columns, that a program has
    KIND: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SCALED: tl.constexpr,
    CHOSEN: tl.constexpr,
    ACTIVATION: tl.constexpr,  # negative: there are no gates
    INTERLEAVED: tl.constexpr,
    SPLIT: tl.constexpr,
    EXPERTS: tl.constexpr,  # the next power of two
    BLOCK_N: tl.constexpr,
    N: tl.constexpr,
    FILLED: tl.constexpr,
):
    wait_for_previous()
    number = tl.arange(0, EXPERTS)
    first = tl.load(starts + number, mask=number < experts, other=0)
    last = tl.load(starts + number + 1, mask=number < experts, other=0)
    tile = tl.program_id(2)
    ends = tl.cumsum((last - first + N - 1) // N, axis=0)
    expert = tl.sum((ends <= tile).to(tl.int32), axis=0)  # those whose programs come before
    if expert < experts:
        begin_of_it = tl.load(starts + expert)
        end_of_it = tl.load(starts + expert + 1)
        # programs that it has already
        before = tile - tl.sum(tl.where(number == expert - 1, ends, 0), axis=0)
        m = begin_of_it + before * N + tl.arange(0, N)
        mine = m < end_of_it
        m = tl.minimum(m, end_of_it - 1)
        pair = tl.load(order + m)
        source = m.to(tl.int64) if SCALED else pair // CHOSEN
        n = row_of(tl.program_id(0), num_rows, ACTIVATION, INTERLEAVED, BLOCK_N)
        row = expert.to(tl.int64) * num_rows + tl.minimum(n, num_rows - 1)
        begin = tl.program_id(1) * split_steps * STEP
        end = tl.minimum(begin + split_steps * STEP, columns)
        total = product_of(w, row, row_stride, x, source, begin, end, columns, KIND, BLOCK_N, N, FILLED)
        there = mine[None, :] & (n[:, None] < num_rows)
        is_last = True
        if SPLIT:
            size = pairs.to(tl.int64) * num_rows
            at = m[None, :].to(tl.int64) * num_rows + n[:, None]
            count = done + tile * tl.num_programs(0) + tl.program_id(0)
            is_last = is_last_part(total, parts + tl.program_id(1) * size, at, there, count)
            if is_last:
                total = sum_of_parts(parts, size, at, there, count, BLOCK_N, N)
        if is_last:
            if HAS_BIAS:
                added = tl.load(bias + expert * num_rows + n, mask=n < num_rows, other=0.0)
                total += added.to(tl.float32)[:, None]
            target = m.to(tl.int64)
            if SCALED:
                target = pair
                total *= tl.load(scales + pair)[None, :]
            into = y + target[None, :] * y_stride
            store_rows(into, total, n, num_rows, mine, alpha, limit, ACTIVATION)


LAUNCH = Launcher(experts_kernel)


def takes(weight: Weight, dtype: torch.dtype) -> bool:
    """Whether `product` computes with that weight and inputs of that type."""
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    if isinstance(weight, Blocks):
        return weight.in_planes
    return weight.dtype == dtype and weight.shape[1] % GROUP == 0


def shape_of(pairs: int, kind: str) -> Shape:
    """What a program has, of an expert with so many pairs. Rows of Q6_K take more registers than others.

    With 8 bits a number or more, programs are smaller and more: on an H200 both products of a layer of
    Qwen3-30B-A3B take 31 and not 38 us for one token in bfloat16, and 138 and not 210 for eight.
    """
    few = alone(kind)
    most = few if pairs <= few else 8 if pairs <= 8 else 16
    if most <= 8 and kind in (PLAIN, *EIGHT_BITS):
        return Shape(most, 16, 24)
    rows = 16 if (kind, most) == ("Q6_K", 16) else 32
    return Shape(most, rows, 16)


def product(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    pairs: Pairs,
    y: Tensor,
    scales: Tensor | None,
    rows_at_once: int | None,
    gates: Gates | None = None,
    shape: Shape | None = None,
) -> None:
    """As `workers.kernels.grouped.product`.

    Args:
        shape: another than `shape_of` has, to be measured.
    """
    x = x.contiguous()
    experts, count = len(pairs.starts) - 1, len(pairs.order)
    total_rows, columns = weight.shape
    rows = total_rows // experts
    kind, data = (weight.format.name, weight.data) if isinstance(weight, Blocks) else (PLAIN, weight)
    # a token's experts are unlike; of several tokens some meet
    probable = 1 if count == pairs.chosen else max(FEWEST.value, -(-count // experts))
    shape = shape or shape_of(rows_at_once or probable, kind)
    tiles, blocks = count // shape.tokens + min(experts, count), triton.cdiv(rows, shape.rows)
    steps = triton.cdiv(columns, STEP.value)
    splits = (
        1 if rows_at_once or tiles * blocks > COUNTERS else _splits(shape, blocks, tiles, steps, x.device)
    )
    each = triton.cdiv(steps, splits)
    splits = triton.cdiv(steps, each)
    parts = x.new_empty(splits, count, rows, dtype=torch.float32) if splits > 1 else y
    *clamp, activation, interleaved = Known.of(gates)
    LAUNCH(
        (blocks, splits, tiles),
        *(x, data, y if bias is None else bias, y, parts, counters(x.device)),
        *(pairs.order, pairs.starts, y if scales is None else scales, *clamp),
        *(count, rows, columns, data.stride(0), y.stride(0), experts, each),
        kind,
        bias is not None,
        scales is not None,
        pairs.chosen,
        activation,
        interleaved,
        splits > 1,
        triton.next_power_of_2(experts),
        shape.rows,
        shape.tokens,
        filled(columns),
        num_warps=1,
        num_stages=shape.stages,
        registers=shape.registers,
    )


def _splits(shape: Shape, blocks: int, tiles: int, steps: int, device: torch.device) -> int:
    return max(1, min(steps, processors_of(device) * shape.warps // (blocks * tiles)))
