"""Products with weights in blocks on a GPU: dequantised in registers, multiplied by tensor cores.

One kernel for every number of tokens. A program has `BLOCK_N` rows of the weight and walks along them in
steps of 128 elements; what differs between formats is how such a step is read, and nothing else. Tokens are
padded to 16, the least that tensor cores take: with few of them memory is what is waited for.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from workers.weights.blocks import Blocks

STEP = 128  # elements
STAGES = 3  # steps that are on their way from memory at once
KINDS = ("Q8_0", "Q4_K", "Q5_K", "Q6_K", "INT8_128", "FP8_128")


@triton.jit
def _half(at):  # a float16 at these bytes
    return tl.load(at.to(tl.pointer_type(tl.float16))).to(tl.float32)


@triton.jit
def _read_q8_0(rows, k, columns):  # rows [n, 1, 1]: where they begin
    block = tl.arange(0, 4)[None, :, None]
    within = tl.arange(0, 32)[None, None, :]
    at = rows + (k // 32 + block) * 34
    q = tl.load(at + 2 + within).to(tl.int8, bitcast=True)
    return _half(at) * q.to(tl.float32)


@triton.jit
def _read_q45_k(rows, k, columns, FIFTH: tl.constexpr):
    """Half a block: four groups of 32, in nibbles of two runs of 32 bytes."""
    group = tl.arange(0, 4)[None, :, None] + (k // 32) % 8
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
def _read_q6_k(rows, k, columns):
    """Half a block: four quarters of 32, of which each two groups of 16 have a scale."""
    quarter = tl.arange(0, 4)[None, :, None]
    within = tl.arange(0, 32)[None, None, :]
    half = (k // 128) % 2
    at = rows + (k // 256) * 210
    low = tl.load(at + half * 64 + quarter % 2 * 32 + within).to(tl.int32) >> quarter // 2 * 4 & 15
    high = tl.load(at + 128 + half * 32 + within).to(tl.int32) >> quarter * 2 & 3
    scale = tl.load(at + 192 + half * 8 + quarter * 2 + within // 16).to(tl.int8, bitcast=True)
    return _half(at + 208) * scale.to(tl.float32) * ((low | high << 4) - 32).to(tl.float32)


@triton.jit
def _read_128(rows, k, columns, FLOAT: tl.constexpr):
    """128 numbers of one byte, whose float32 stands behind all numbers of the row."""
    within = tl.arange(0, 4)[None, :, None] * 32 + tl.arange(0, 32)[None, None, :]
    scale = tl.load((rows + columns + k // 128 * 4).to(tl.pointer_type(tl.float32)))
    q = tl.load(rows + k + within)
    if FLOAT:  # e4m3 by its bits: not every GPU converts it
        bits = q.to(tl.int32)
        wide = ((bits & 128) << 24 | (bits & 127) << 20).to(tl.float32, bitcast=True)
        value = tl.where((bits & 127) == 127, float("nan"), wide * 1.329227995784916e36)  # 2**120
    else:
        value = q.to(tl.int8, bitcast=True).to(tl.float32)
    return scale * value


@triton.jit
def product_kernel(
    x,  # [tokens, columns]
    w,  # [rows, row_bytes] uint8
    bias,  # [rows], or anything
    y,  # [tokens, rows]
    tokens,
    num_rows,
    columns,
    row_bytes,
    KIND: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = w + (tl.minimum(n, num_rows - 1).to(tl.int64) * row_bytes)[:, None, None]
    inner = tl.arange(0, 128)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, columns, 128):
        if KIND == "Q8_0":
            wide = _read_q8_0(rows, k, columns)
        elif KIND == "Q4_K":
            wide = _read_q45_k(rows, k, columns, False)
        elif KIND == "Q5_K":
            wide = _read_q45_k(rows, k, columns, True)
        elif KIND == "Q6_K":
            wide = _read_q6_k(rows, k, columns)
        elif KIND == "FP8_128":
            wide = _read_128(rows, k, columns, True)
        else:
            wide = _read_128(rows, k, columns, False)
        part = tl.load(
            x + m[:, None].to(tl.int64) * columns + k + inner[None, :], mask=m[:, None] < tokens, other=0.0
        )
        weight = tl.reshape(wide, (BLOCK_N, 128)).to(part.dtype)
        total = tl.dot(part, tl.trans(weight), total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias + n, mask=n < num_rows, other=0.0).to(tl.float32)[None, :]
    at = m[:, None].to(tl.int64) * num_rows + n[None, :]
    tl.store(y + at, total.to(y.dtype.element_ty), mask=(m[:, None] < tokens) & (n[None, :] < num_rows))


def takes(weight: Blocks) -> bool:
    """Whether `product` computes with that format, and that many columns."""
    return weight.format.name in KINDS and weight.shape[1] % STEP == 0


def tiles(tokens: int) -> tuple[int, int, int]:
    """Tokens and rows of a program, and its warps."""
    if tokens <= 16:
        return 16, 32, 4
    return (32, 64, 8) if tokens <= 32 else (64, 64, 8)


def product(x: Tensor, weight: Blocks, bias: Tensor | None) -> Tensor:
    """`x Wᵀ + b`: `[tokens, columns] -> [tokens, rows]`, with W rounded to the type of `x`."""
    x = x.contiguous()
    rows, columns = weight.shape
    y = x.new_empty(len(x), rows)
    block_m, block_n, warps = tiles(len(x))
    grid = (triton.cdiv(rows, block_n), triton.cdiv(len(x), block_m))
    product_kernel[grid](
        *(x, weight.data, y if bias is None else bias, y, len(x), rows, columns, weight.data.shape[1]),
        weight.format.name,
        bias is not None,
        block_m,
        block_n,
        num_warps=warps,
        num_stages=STAGES,
    )
    return y
