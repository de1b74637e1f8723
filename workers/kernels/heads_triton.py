"""Query and key heads normalised and turned, and keys and values into their pages, on a GPU in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ipc.worker_messages import PAGE_SIZE
from workers.kernels.attention_triton import Sequences, scale_blocks, scale_stride
from workers.kernels.cache_triton import keep, slot_of
from workers.kernels.dependent_triton import wait_for_previous
from workers.kernels.eight_bits_triton import KINDS, WHOLE
from workers.kernels.fused import Turn
from workers.kernels.launch import Launcher

ELEMENTS = 1024  # of heads that a program has


@triton.jit
def heads_kernel(
    q,  # [tokens, heads, head_dim], each head of which is contiguous, like those of keys and values
    keys,  # [tokens, kv_heads, head_dim]
    values,  # the same
    turned,  # [tokens, heads, head_dim]: what becomes of q
    kept_keys,  # [pages, kv_heads, PAGE, head_dim], each page of which is contiguous
    kept_values,  # the same
    key_scales,  # [pages, kv_heads, PAGE] of keys in 8 bits, or anything
    value_scales,  # the same
    q_weight,  # [head_dim], or anything
    k_weight,  # the same
    cos,  # [tokens, angles] float32, or anything
    sin,  # the same
    growth,  # [tokens] float32, or anything
    owners,  # [tokens] int64, their sequences
    starts,  # for these see `workers.kernels.attention_triton.Sequences`
    contexts,
    tables,
    pages,
    q_stride,  # elements, of a token
    k_stride,
    v_stride,
    page_stride,
    scale_stride,  # of a page
    eps,
    offset,  # of the weights
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ANGLES: tl.constexpr,  # dimensions that are turned
    PAGE: tl.constexpr,
    NORMED: tl.constexpr,  # before they are turned
    THEN_NORMED: tl.constexpr,  # after that, without weights
    INTERLEAVED: tl.constexpr,
    GROWS: tl.constexpr,
    KIND: tl.constexpr,  # of `workers.kernels.eight_bits_triton`
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    wait_for_previous()
    token = tl.program_id(0).to(tl.int64)
    head, d = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D)
    is_query = head < HEADS
    is_key = (head >= HEADS) & (head < HEADS + KV_HEADS)
    is_value = (head >= HEADS + KV_HEADS) & (head < HEADS + 2 * KV_HEADS)
    kv_head = tl.where(is_key, head - HEADS, head - HEADS - KV_HEADS)
    within = (d < HEAD_DIM)[None, :]
    query_mask, key_mask = is_query[:, None] & within, is_key[:, None] & within
    q_at = q + token * q_stride + (head * HEAD_DIM)[:, None]
    k_at = keys + token * k_stride + (kv_head * HEAD_DIM)[:, None]
    v_at = values + token * v_stride + (kv_head * HEAD_DIM)[:, None]
    x = tl.load(q_at + d[None, :], mask=query_mask, other=0.0).to(tl.float32)
    x += tl.load(k_at + d[None, :], mask=key_mask, other=0.0).to(tl.float32)
    if NORMED:
        scale = tl.rsqrt(tl.sum(x * x, 1) / HEAD_DIM + eps)[:, None]
        q_scale = tl.load(q_weight + d, mask=d < HEAD_DIM, other=0.0).to(tl.float32) + offset
        k_scale = tl.load(k_weight + d, mask=d < HEAD_DIM, other=0.0).to(tl.float32) + offset
        x *= scale * tl.where(is_query[:, None], q_scale[None, :], k_scale[None, :])
    if ANGLES:
        turning = d < ANGLES
        partner = d ^ 1 if INTERLEAVED else (d + ANGLES // 2) % ANGLES
        other = tl.load(q_at + partner[None, :], mask=query_mask & turning[None, :], other=0.0).to(tl.float32)
        other += tl.load(k_at + partner[None, :], mask=key_mask & turning[None, :], other=0.0).to(tl.float32)
        if NORMED:
            q_scale = tl.load(q_weight + partner, mask=turning, other=0.0).to(tl.float32) + offset
            k_scale = tl.load(k_weight + partner, mask=turning, other=0.0).to(tl.float32) + offset
            other *= scale * tl.where(is_query[:, None], q_scale[None, :], k_scale[None, :])
        c = tl.load(cos + token * ANGLES + d, mask=turning, other=1.0)
        s = tl.load(sin + token * ANGLES + d, mask=turning, other=0.0)
        x = x * c[None, :] + other * s[None, :]
    if THEN_NORMED:
        x *= tl.rsqrt(tl.sum(x * x, 1) / HEAD_DIM + eps)[:, None]
    query = x
    if GROWS:
        query *= tl.load(growth + token)
    into = turned + (token * HEADS + head)[:, None] * HEAD_DIM + d[None, :]
    tl.store(into, query.to(q.dtype.element_ty), mask=query_mask)
    if (tl.program_id(1) + 1) * BLOCK_H > HEADS:
        page, place = slot_of(token, owners, starts, contexts, tables, pages, PAGE)
        at = page * page_stride + (kv_head * PAGE + place)[:, None] * HEAD_DIM + d[None, :]
        scale_at = page * scale_stride + kv_head * PAGE + place
        key = x.to(keys.dtype.element_ty)  # what is quantised has been rounded, as without this kernel
        keep(key, kept_keys + at, key_scales + scale_at, key_mask, is_key, KIND)
        value_mask = is_value[:, None] & within
        value = tl.load(v_at + d[None, :], mask=value_mask, other=0.0)
        keep(value, kept_values + at, value_scales + scale_at, value_mask, is_value, KIND)


LAUNCH = Launcher(heads_kernel)


def turn_and_write(
    kv: Tensor,  # [2, pages, kv_heads, PAGE_SIZE, head_dim]
    q: Tensor,  # [tokens, heads, head_dim]
    keys: Tensor,  # [tokens, kv_heads, head_dim]
    values: Tensor,  # the same
    turn: Turn,
    owners: Tensor,  # [tokens] int64
    sequences: Sequences,
    scales: Tensor | None = None,  # [2, pages, kv_heads, PAGE_SIZE], where `kv` is in 8 bits
) -> Tensor:  # [tokens, heads, head_dim]
    """Keep keys, turned, and values of a step's tokens; returns the queries, turned."""
    tokens, heads, head_dim = q.shape
    kv_heads = keys.shape[1]
    turned = q.new_empty(q.shape)
    block_d = triton.next_power_of_2(head_dim)
    block_h = max(1, ELEMENTS // block_d)
    q_weight, k_weight = (q, q) if turn.weights is None else turn.weights
    cos, sin = (q, q) if turn.angles is None else turn.angles
    LAUNCH(
        (tokens, triton.cdiv(heads + 2 * kv_heads, block_h), 1),
        *(q, keys, values, turned, kv[0], kv[1], *scale_blocks(kv, scales), q_weight, k_weight, cos, sin),
        *(q if turn.growth is None else turn.growth, owners, *sequences[1:]),
        *(q.stride(0), keys.stride(0), values.stride(0), kv.stride(1), scale_stride(scales)),
        *(turn.eps, turn.offset),
        *(heads, kv_heads, head_dim, 0 if turn.angles is None else cos.shape[-1], PAGE_SIZE),
        *(turn.weights is not None, turn.then_normed, turn.interleaved, turn.growth is not None),
        *(KINDS.get(kv.dtype, WHOLE), block_h, block_d),
        num_warps=4,
    )
    return turned
