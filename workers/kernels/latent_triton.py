"""Queries and keys of latent attention on a GPU in one launch: vectors normalised, and what turns turned."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from workers.kernels.dependent_triton import wait_for_previous
from workers.kernels.launch import Launcher


@triton.jit
def latent_kernel(
    through,  # [tokens, heads, RANK], each head of which is contiguous: queries, for vectors
    turning,  # [tokens, heads, TURNED], the same
    compressed,  # [tokens, RANK + TURNED], each row of which is contiguous: vectors, and what turns of keys
    weight,  # [RANK], of vectors
    cos,  # [tokens, TURNED] float32
    sin,  # the same
    queries,  # [tokens, heads, RANK + TURNED]
    keys,  # [tokens, RANK + TURNED]
    through_stride,  # elements, of a token
    through_head_stride,
    turning_stride,
    turning_head_stride,
    compressed_stride,
    eps,
    HEADS: tl.constexpr,
    RANK: tl.constexpr,
    TURNED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program has a head of a token, and the one behind the last its key."""
    wait_for_previous()
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    d = tl.arange(0, BLOCK)
    cos, sin = cos + token * TURNED, sin + token * TURNED
    if head < HEADS:
        at = through + token * through_stride + head * through_head_stride
        query = tl.load(at + d, mask=d < RANK, other=0.0).to(tl.float32)
        at = turning + token * turning_stride + head * turning_head_stride
        query += _turned(at, cos, sin, d, RANK, TURNED, INTERLEAVED)
        into = queries + (token * HEADS + head) * (RANK + TURNED)
        tl.store(into + d, query.to(queries.dtype.element_ty), mask=d < RANK + TURNED)
    else:
        at = compressed + token * compressed_stride
        vector = tl.load(at + d, mask=d < RANK, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(vector * vector, 0) / RANK + eps)
        key = vector * scale * tl.load(weight + d, mask=d < RANK, other=0.0).to(tl.float32)
        key += _turned(at + RANK, cos, sin, d, RANK, TURNED, INTERLEAVED)
        into = keys + token * (RANK + TURNED)
        tl.store(into + d, key.to(keys.dtype.element_ty), mask=d < RANK + TURNED)


@triton.jit
def _turned(at, cos, sin, d, RANK: tl.constexpr, TURNED: tl.constexpr, INTERLEAVED: tl.constexpr):
    """What is at `at`, turned, behind as many zeros as a vector has elements."""
    i, there = d - RANK, (d >= RANK) & (d < RANK + TURNED)
    partner = i ^ 1 if INTERLEAVED else (i + TURNED // 2) % TURNED
    x = tl.load(at + i, mask=there, other=0.0).to(tl.float32)
    other = tl.load(at + partner, mask=there, other=0.0).to(tl.float32)
    c, s = tl.load(cos + i, mask=there, other=0.0), tl.load(sin + i, mask=there, other=0.0)
    return x * c + other * s


LAUNCH = Launcher(latent_kernel)


def latent_heads(
    through: Tensor,
    turning: Tensor,
    compressed: Tensor,
    weight: Tensor,
    eps: float,
    angles: tuple[Tensor, Tensor],
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    """See `workers.kernels.fused.latent_heads`."""
    (tokens, heads, rank), turned = through.shape, turning.shape[-1]
    queries, keys = (turning.new_empty(tokens, count, rank + turned) for count in (heads, 1))
    block = triton.next_power_of_2(rank + turned)
    LAUNCH(
        (tokens, heads + 1, 1),
        *(through, turning, compressed, weight, *angles, queries, keys),
        *(*through.stride()[:2], *turning.stride()[:2], compressed.stride(0), eps),
        *(heads, rank, turned, interleaved, block),
        num_warps=warps(block),
    )
    return queries, keys


def warps(block: int) -> int:
    """Of a program: 8 elements a thread."""
    return min(8, max(1, block // 256))
