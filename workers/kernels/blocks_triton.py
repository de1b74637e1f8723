"""Products with weights in blocks on a GPU: dequantised in registers, multiplied by tensor cores.

One kernel for every number of tokens. A program has `BLOCK_N` rows of the weight and walks along them in
steps of some groups of 32 elements; what differs between formats is how such a step is read, and nothing
else. Tokens are padded to 16, the least that tensor cores take: with few of them memory is what is waited
for. float32 has no tensor cores: a thread has all numbers of a step that it multiplies, and steps are short.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.kernels.dependent_triton import wait_for_previous
from workers.kernels.floats_triton import e2m1, e4m3
from workers.kernels.launch import Launcher
from workers.weights.blocks import Blocks
from workers.weights.rows import FP4, NF4

STEP = 128  # elements, that columns are a multiple of
STAGES = 3  # steps that are on their way from memory at once
KINDS = (
    *("Q1_0", "Q2_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "MXFP4"),
    *("INT8_128", "FP8_128", "INT8_ROW", "FP8_ROW", "INT4_32", "INT4_64", "INT4_128", "NVFP4"),
    *("NF4_64", "FP4_64"),
)
TABLES = {"NF4_64": NF4, "FP4_64": FP4}  # what the numbers of a format mean


@triton.jit
def _half(at):  # a float16 at these bytes
    return tl.load(at.to(tl.pointer_type(tl.float16))).to(tl.float32)


@triton.jit
def _float(at):  # a float32 at these bytes
    return tl.load(at.to(tl.pointer_type(tl.float32)))


@triton.jit
def _e4m3(bits):  # with those that are no number
    return tl.where((bits & 127) == 127, float("nan"), e4m3(bits))


@triton.jit
def _read_q45_01(rows, k, GROUPS: tl.constexpr, FIFTH: tl.constexpr, LEAST: tl.constexpr):
    """Blocks of 32, whose two halves are the nibbles of 16 bytes."""
    HEAD: tl.constexpr = 4 if LEAST else 2
    SIZE: tl.constexpr = HEAD + (20 if FIFTH else 16)
    block = tl.arange(0, GROUPS)[None, :, None]
    within = tl.arange(0, 32)[None, None, :]
    at = rows + (k // 32 + block) * SIZE
    q = tl.load(at + (SIZE - 16) + within % 16).to(tl.int32) >> within // 16 * 4 & 15
    if FIFTH:
        q |= (tl.load(at + HEAD + within // 8).to(tl.int32) >> within % 8 & 1) << 4
    if LEAST:
        return _half(at) * q.to(tl.float32) + _half(at + 2)
    return _half(at) * (q - (16 if FIFTH else 8)).to(tl.float32)


@triton.jit
def _read_q12_0(rows, k, GROUPS: tl.constexpr, BITS: tl.constexpr):
    """Blocks of 16 bytes behind a scale: 128 signs, or 64 numbers from -1 on, the lowest bits first."""
    ELEMENTS: tl.constexpr = 128 // BITS
    group = k + tl.arange(0, GROUPS)[None, :, None] * 32
    bit = (group % ELEMENTS + tl.arange(0, 32)[None, None, :]) * BITS
    at = rows + group // ELEMENTS * 18
    q = tl.load(at + 2 + bit // 8).to(tl.int32) >> bit % 8 & (1 << BITS) - 1
    return _half(at) * (2 * q - 1 if BITS == 1 else q - 1).to(tl.float32)


@triton.jit
def _read_mxfp4(rows, k, GROUPS: tl.constexpr):
    """The same with an exponent: of 2 to the power of what it is over 127."""
    block = tl.arange(0, GROUPS)[None, :, None]
    within = tl.arange(0, 32)[None, None, :]
    at = rows + (k // 32 + block) * 17
    e = tl.load(at).to(tl.int32)
    scale = tl.where(e == 0, 1 << 22, e << 23).to(tl.float32, bitcast=True)
    return scale * e2m1(tl.load(at + 1 + within % 16).to(tl.int32) >> within // 16 * 4 & 15)


@triton.jit
def _read_q8_0(rows, k, GROUPS: tl.constexpr):  # rows [n, 1, 1]: where they begin
    block = tl.arange(0, GROUPS)[None, :, None]
    within = tl.arange(0, 32)[None, None, :]
    at = rows + (k // 32 + block) * 34
    q = tl.load(at + 2 + within).to(tl.int8, bitcast=True)
    return _half(at) * q.to(tl.float32)


@triton.jit
def _read_q45_k(rows, k, GROUPS: tl.constexpr, FIFTH: tl.constexpr):
    """Groups of 32 out of a block's eight, in nibbles of runs of 32 bytes, each of which has two groups."""
    group = tl.arange(0, GROUPS)[None, :, None] + (k // 32) % 8
    within = tl.arange(0, 32)[None, None, :]
    at = rows + (k // 256) * (176 if FIFTH else 144)
    first = tl.load(at + 4 + group % 4).to(tl.int32)
    second = tl.load(at + 8 + group % 4).to(tl.int32)
    pieces = tl.load(at + 12 + group % 4).to(tl.int32)
    scale = tl.where(group < 4, first & 63, pieces & 15 | first >> 6 << 4)
    least = tl.where(group < 4, second & 63, pieces >> 4 | second >> 6 << 4)
    q = tl.load(at + (48 if FIFTH else 16) + group // 2 * 32 + within).to(tl.int32) >> group % 2 * 4 & 15
    if FIFTH:
        q |= (tl.load(at + 16 + within).to(tl.int32) >> group & 1) << 4
    return _half(at) * scale.to(tl.float32) * q.to(tl.float32) - _half(at + 2) * least.to(tl.float32)


@triton.jit
def _read_q6_k(rows, k, GROUPS: tl.constexpr):
    """Quarters of half a block, of 32 each, of which each two groups of 16 have a scale."""
    quarter = tl.arange(0, GROUPS)[None, :, None] + (k // 32) % 4
    within = tl.arange(0, 32)[None, None, :]
    half = (k // 128) % 2
    at = rows + (k // 256) * 210
    low = tl.load(at + half * 64 + quarter % 2 * 32 + within).to(tl.int32) >> quarter // 2 * 4 & 15
    high = tl.load(at + 128 + half * 32 + within).to(tl.int32) >> quarter * 2 & 3
    scale = tl.load(at + 192 + half * 8 + quarter * 2 + within // 16).to(tl.int8, bitcast=True)
    return _half(at + 208) * scale.to(tl.float32) * ((low | high << 4) - 32).to(tl.float32)


@triton.jit
def _read_bytes(rows, k, columns, GROUPS: tl.constexpr, FLOAT: tl.constexpr, BY_ROW: tl.constexpr):
    """Numbers of one byte; a float32 for them, or for the row, stands behind all numbers of the row."""
    within = tl.arange(0, GROUPS)[None, :, None] * 32 + tl.arange(0, 32)[None, None, :]
    q = tl.load(rows + k + within)
    value = _e4m3(q) if FLOAT else q.to(tl.int8, bitcast=True).to(tl.float32)
    return _float(rows + columns + (0 if BY_ROW else k // 128 * 4)) * value


@triton.jit
def _pairs(rows, k, GROUPS: tl.constexpr):
    """Numbers of four bits, two in a byte, the first in its lower half."""
    q = tl.load(rows + k // 2 + tl.arange(0, 16 * GROUPS)[None, None, :])
    return tl.reshape(tl.join(q & 15, q >> 4), (q.shape[0], GROUPS, 32)).to(tl.int32)


@triton.jit
def _read_int4(rows, k, columns, GROUPS: tl.constexpr, SIZE: tl.constexpr):
    """A scale for each group of that size, whose last four bits are a zero point."""
    group = (k + tl.arange(0, GROUPS)[None, :, None] * 32) // SIZE
    word = tl.load((rows + columns // 2 + group * 4).to(tl.pointer_type(tl.int32)))
    scale = (word & -16).to(tl.float32, bitcast=True)
    return scale * (_pairs(rows, k, GROUPS) - (word & 15)).to(tl.float32)


@triton.jit
def _read_table(rows, k, columns, table, GROUPS: tl.constexpr):
    """Numbers of entries of a table, and a scale for each 64 of them."""
    scale = rows + columns // 2 + (k + tl.arange(0, GROUPS)[None, :, None] * 32) // 64 * 4
    return _float(scale) * tl.load(table + _pairs(rows, k, GROUPS))


@triton.jit
def _read_nvfp4(rows, k, columns, GROUPS: tl.constexpr):
    """A scale for each 16, and one for the row behind all of them."""
    within = tl.arange(0, GROUPS)[None, :, None] * 32 + tl.arange(0, 32)[None, None, :]
    scale = _e4m3(tl.load(rows + columns // 2 + (k + within) // 16))
    return scale * _float(rows + columns // 2 + columns // 16) * e2m1(_pairs(rows, k, GROUPS))


@triton.jit
def read_step(rows, k, columns, table, KIND: tl.constexpr, GROUPS: tl.constexpr):
    """Elements of each row, from element `k` on, of whatever format: `[n, GROUPS, 32]` float32.

    Args:
        rows: `[n, 1, 1]`, where they begin.
        k: a multiple of 32 times GROUPS, or of 32 where no group is in a block with others.
        GROUPS: 1, 2 or 4.
    """
    if KIND == "Q8_0":
        return _read_q8_0(rows, k, GROUPS)
    elif KIND == "Q4_0" or KIND == "Q5_0":
        return _read_q45_01(rows, k, GROUPS, KIND == "Q5_0", False)
    elif KIND == "Q4_1" or KIND == "Q5_1":
        return _read_q45_01(rows, k, GROUPS, KIND == "Q5_1", True)
    elif KIND == "Q4_K" or KIND == "Q5_K":
        return _read_q45_k(rows, k, GROUPS, KIND == "Q5_K")
    elif KIND == "Q6_K":
        return _read_q6_k(rows, k, GROUPS)
    elif KIND == "Q1_0" or KIND == "Q2_0":
        return _read_q12_0(rows, k, GROUPS, 1 if KIND == "Q1_0" else 2)
    elif KIND == "MXFP4":
        return _read_mxfp4(rows, k, GROUPS)
    elif KIND == "INT4_32":
        return _read_int4(rows, k, columns, GROUPS, 32)
    elif KIND == "INT4_64":
        return _read_int4(rows, k, columns, GROUPS, 64)
    elif KIND == "INT4_128":
        return _read_int4(rows, k, columns, GROUPS, 128)
    elif KIND == "NVFP4":
        return _read_nvfp4(rows, k, columns, GROUPS)
    elif KIND == "NF4_64" or KIND == "FP4_64":
        return _read_table(rows, k, columns, table, GROUPS)
    elif KIND == "FP8_128" or KIND == "FP8_ROW":
        return _read_bytes(rows, k, columns, GROUPS, True, KIND == "FP8_ROW")
    else:
        return _read_bytes(rows, k, columns, GROUPS, False, KIND == "INT8_ROW")


@triton.jit
def product_kernel(
    x,  # [tokens, columns]
    w,  # [rows, row_bytes] uint8
    bias,  # [rows], or anything
    y,  # [tokens, rows]
    table,  # [16] float32 of KINDS that have one, or anything
    tokens,
    num_rows,
    columns,
    row_bytes,
    KIND: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GROUPS: tl.constexpr,  # of 32 elements, that a step has
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    wait_for_previous()
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = w + (tl.minimum(n, num_rows - 1).to(tl.int64) * row_bytes)[:, None, None]
    inner = tl.arange(0, 32 * GROUPS)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, columns, 32 * GROUPS):
        wide = read_step(rows, k, columns, table, KIND, GROUPS)
        part = tl.load(
            x + m[:, None].to(tl.int64) * columns + k + inner[None, :], mask=m[:, None] < tokens, other=0.0
        )
        weight = tl.reshape(wide, (BLOCK_N, 32 * GROUPS)).to(part.dtype)
        total = tl.dot(part, tl.trans(weight), total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias + n, mask=n < num_rows, other=0.0).to(tl.float32)[None, :]
    at = m[:, None].to(tl.int64) * num_rows + n[None, :]
    tl.store(y + at, total.to(y.dtype.element_ty), mask=(m[:, None] < tokens) & (n[None, :] < num_rows))


LAUNCH = Launcher(product_kernel)


def takes(weight: Blocks) -> bool:
    """Whether `product` computes with that format, and that many columns."""
    return weight.format.name in KINDS and weight.shape[1] % STEP == 0


@cache
def table_of(kind: str, device: torch.device) -> Tensor | None:
    return torch.tensor(TABLES[kind], device=device) if kind in TABLES else None


def tiles(tokens: int, itemsize: int) -> tuple[int, int, int, int]:
    """Groups of 32 elements in a step, tokens and rows of a program, and its warps."""
    groups = 1 if itemsize == 4 else 4
    if tokens <= 16:
        return groups, 16, 32, 4
    return (groups, 32, 64, 8) if tokens <= 32 or itemsize == 4 else (groups, 64, 32, 8)


def product(x: Tensor, weight: Blocks, bias: Tensor | None) -> Tensor:
    """`x Wᵀ + b`: `[tokens, columns] -> [tokens, rows]`, with W rounded to the type of `x`."""
    x = x.contiguous()
    rows, columns = weight.shape
    y = x.new_empty(len(x), rows)
    groups, block_m, block_n, warps = tiles(len(x), x.itemsize)
    grid = (triton.cdiv(rows, block_n), triton.cdiv(len(x), block_m), 1)
    name, table = weight.format.name, table_of(weight.format.name, x.device)
    LAUNCH(
        grid,
        *(x, weight.data, y if bias is None else bias, y, y if table is None else table),
        *(len(x), rows, columns, weight.data.shape[1]),
        name,
        bias is not None,
        groups,
        block_m,
        block_n,
        num_warps=warps,
        num_stages=STAGES,
    )
    return y
