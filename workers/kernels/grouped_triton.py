"""Products of pairs of a token and an expert on a GPU: one kernel for all experts, of weights in any format.

A program has some rows of one expert's weight and some of its pairs. How many programs there are depends on
shapes alone: each finds its expert in the counts of all, which are read where they lie, and those that have
none end. So the host waits for nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from workers.kernels.blocks_triton import KINDS, STEP, read_step, table_of
from workers.kernels.dependent_triton import wait_for_previous
from workers.kernels.launch import Launcher
from workers.kernels.pairs import Pairs
from workers.weights.blocks import Blocks, Weight

PLAIN = "PLAIN"  # the weight is in the type of its input
STAGES = 3
SMALLEST = 32  # elements of which columns are a multiple, and a step may begin at any


@triton.jit
def grouped_kernel(
    x,  # [tokens, columns], or with SCALED [pairs, columns]
    w,  # [experts * num_rows, columns], or bytes
    bias,  # [experts, num_rows], or anything
    y,  # [pairs, num_rows]
    table,  # of formats that have one, or anything
    order,  # [pairs] int64
    starts,  # [experts + 1] int32
    scales,  # [pairs] float32, or anything
    num_rows,
    columns,
    row_size,  # elements, or bytes
    y_stride,
    experts,
    KIND: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SCALED: tl.constexpr,
    CHOSEN: tl.constexpr,
    GROUPS: tl.constexpr,  # of 32 elements, that a step has
    EVEN: tl.constexpr,  # columns are whole steps
    EXPERTS: tl.constexpr,  # the next power of two
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    wait_for_previous()
    number = tl.arange(0, EXPERTS)
    first = tl.load(starts + number, mask=number < experts, other=0)
    count = tl.load(starts + number + 1, mask=number < experts, other=0) - first
    tile = tl.program_id(1)
    ends = tl.cumsum((count + BLOCK_M - 1) // BLOCK_M, axis=0)
    expert = tl.sum((ends <= tile).to(tl.int32), axis=0)  # those whose programs come before
    if expert < experts:
        own = number == expert
        last = tl.sum(tl.where(own, first + count, 0), axis=0)
        after = tl.sum(tl.where(own, ends, 0), axis=0) - tile  # programs that this expert has from here on
        its_first = tl.sum(tl.where(own, first, 0), axis=0)
        before = (last - its_first + BLOCK_M - 1) // BLOCK_M - after
        m = its_first + before * BLOCK_M + tl.arange(0, BLOCK_M)
        n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        mine = m < last
        pair = tl.load(order + m, mask=mine, other=0)
        source = m.to(tl.int64) if SCALED else pair // CHOSEN
        inputs = x + source[:, None] * columns
        row = expert.to(tl.int64) * num_rows + tl.minimum(n, num_rows - 1)
        weights = w + row * row_size
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        WIDTH: tl.constexpr = 32 * GROUPS
        inner = tl.arange(0, WIDTH)
        if KIND == "PLAIN":
            for k in range(0, columns, WIDTH):
                there = k + inner < columns
                part = tl.load(inputs + k + inner[None, :], mask=mine[:, None] & there[None, :], other=0.0)
                weight = tl.load(weights[:, None] + k + inner[None, :], mask=there[None, :], other=0.0)
                total = tl.dot(part, tl.trans(weight), total, input_precision="ieee")
        else:
            for k in range(0, columns, WIDTH):
                at = k
                if not EVEN:  # the last step begins earlier, and leaves out what was there
                    at = tl.multiple_of(tl.minimum(k, columns - WIDTH), 32)
                wide = read_step(weights[:, None, None], at, columns, table, KIND, GROUPS)
                new = at + inner >= k
                part = tl.load(inputs + at + inner[None, :], mask=mine[:, None] & new[None, :], other=0.0)
                weight = tl.reshape(wide, (BLOCK_N, WIDTH)).to(part.dtype)
                total = tl.dot(part, tl.trans(weight), total, input_precision="ieee")
        if HAS_BIAS:
            added = tl.load(bias + expert * num_rows + n, mask=n < num_rows, other=0.0)
            total += added.to(tl.float32)[None, :]
        target = m.to(tl.int64)
        if SCALED:
            target = pair
            total *= tl.load(scales + pair, mask=mine, other=0.0)[:, None]
        into = y + target[:, None] * y_stride + n[None, :]
        tl.store(into, total.to(y.dtype.element_ty), mask=mine[:, None] & (n[None, :] < num_rows))


LAUNCH = Launcher(grouped_kernel)


def tiles(kind: str, rows: int, itemsize: int) -> tuple[int, int, int, int]:
    """Groups of 32 elements in a step, pairs of an expert and rows of its weight that a program has, and its
    warps; `rows`: pairs there are.

    What is in blocks takes many registers, and a program keeps in mind where its pairs come from as well.
    """
    if itemsize == 4:
        return (1, 16, 32, 4) if rows <= 16 else (1, 32, 64, 8)
    if kind == PLAIN:
        return (2, 16, 32, 4) if rows <= 16 else (2, 32, 64, 8) if rows <= 32 else (2, 64, 64, 8)
    return 4, (16 if rows <= 16 else 32 if rows <= 32 else 64), 32, 8


def takes(weight: Weight) -> bool:
    """Whether `product` computes with weights of that format, and that many columns."""
    if not isinstance(weight, Blocks):
        return True
    columns = weight.shape[1]
    return weight.format.name in KINDS and columns >= STEP and columns % SMALLEST == 0


def programs(pairs: int, experts: int, block_m: int) -> int:
    """Programs that pairs need at most, however they are divided among experts."""
    return pairs // block_m + min(experts, pairs)


def product(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    pairs: Pairs,
    y: Tensor,
    scales: Tensor | None,
    rows_at_once: int | None,
) -> None:
    """As `workers.kernels.grouped.product`."""
    x = x.contiguous()
    experts, count = len(pairs.starts) - 1, len(pairs.order)
    total_rows, columns = weight.shape
    rows = total_rows // experts
    in_blocks = isinstance(weight, Blocks)
    kind = weight.format.name if in_blocks else PLAIN
    data = weight.data if in_blocks else weight
    table = table_of(kind, x.device) if in_blocks else None
    groups, block_m, block_n, warps = tiles(kind, rows_at_once or count // experts, x.itemsize)
    grid = (triton.cdiv(rows, block_n), programs(count, experts, block_m), 1)
    LAUNCH(
        grid,
        *(x, data, y if bias is None else bias, y, y if table is None else table),
        *(pairs.order, pairs.starts, y if scales is None else scales),
        *(rows, columns, data.stride(0), y.stride(0), experts),
        kind,
        bias is not None,
        scales is not None,
        pairs.chosen,
        groups,
        columns % (32 * groups) == 0,
        triton.next_power_of_2(experts),
        block_m,
        block_n,
        num_warps=warps,
        num_stages=STAGES,
    )
