"""New keys and values into their pages on a GPU, in one launch for all tokens of a step."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ipc.worker_messages import PAGE_SIZE
from workers.kernels.attention_triton import Sequences, scale_blocks, scale_stride
from workers.kernels.dependent_triton import wait_for_previous
from workers.kernels.eight_bits_triton import KINDS, WHOLE, quantised
from workers.kernels.launch import Launcher

_WHOLE = tl.constexpr(WHOLE)


@triton.jit
def slot_of(token, owners, starts, contexts, tables, pages, PAGE: tl.constexpr):
    """The page of a token of the step, and its place there."""
    sequence = tl.load(owners + token)
    position = tl.load(contexts + sequence) - tl.load(starts + sequence + 1) + token
    page = tl.load(pages + tl.load(tables + sequence) + position // PAGE)
    return page, position % PAGE


@triton.jit
def keep(x, into, scale_into, mask, there, KIND: tl.constexpr):
    """Put heads `[heads, head_dim]` where they belong, and, in 8 bits, their scales `[heads]`.

    Args:
        mask: which elements of `x` there are; the others are zero.
        there: which heads.
    """
    if KIND == _WHOLE:
        tl.store(into, x.to(into.dtype.element_ty), mask=mask)
    else:
        code, scale = quantised(x.to(tl.float32), KIND)
        tl.store(into, code, mask=mask)
        tl.store(scale_into, scale, mask=there)


@triton.jit
def write_kernel(
    keys,  # [tokens, kv_heads, head_dim], each row of which is contiguous
    values,  # the same
    kept_keys,  # [pages, kv_heads, PAGE, head_dim], each page of which is contiguous
    kept_values,  # the same
    key_scales,  # [pages, kv_heads, PAGE] of keys in 8 bits, or anything
    value_scales,  # the same
    owners,  # [tokens] int64, their sequences
    starts,  # for these see `workers.kernels.attention_triton.Sequences`
    contexts,
    tables,
    pages,
    keys_stride,  # elements, of a token
    key_head_stride,
    values_stride,
    value_head_stride,
    page_stride,
    scale_stride,  # of a page
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    WITH_VALUES: tl.constexpr,
    KIND: tl.constexpr,  # of `workers.kernels.eight_bits_triton`
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    wait_for_previous()
    token = tl.program_id(0).to(tl.int64)
    page, place = slot_of(token, owners, starts, contexts, tables, pages, PAGE)
    head, d = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D)
    there = head < KV_HEADS
    mask = there[:, None] & (d < HEAD_DIM)[None, :]
    into = page * page_stride + (head * PAGE + place)[:, None] * HEAD_DIM + d[None, :]
    scale_into = page * scale_stride + head * PAGE + place
    at = keys + token * keys_stride + head[:, None] * key_head_stride + d[None, :]
    keep(tl.load(at, mask=mask, other=0.0), kept_keys + into, key_scales + scale_into, mask, there, KIND)
    if WITH_VALUES:
        at = values + token * values_stride + head[:, None] * value_head_stride + d[None, :]
        value = tl.load(at, mask=mask, other=0.0)
        keep(value, kept_values + into, value_scales + scale_into, mask, there, KIND)


LAUNCH = Launcher(write_kernel)


def write(
    kv: Tensor,  # [blocks, pages, kv_heads, PAGE_SIZE, head_dim]
    keys: Tensor,  # [tokens, kv_heads, head_dim]
    values: Tensor | None,  # the same; None: they are in the keys
    owners: Tensor,  # [tokens] int64
    sequences: Sequences,
    scales: Tensor | None = None,  # [blocks, pages, kv_heads, PAGE_SIZE], where `kv` is in 8 bits
) -> None:
    """Keep the keys and values of a step's tokens."""
    tokens, kv_heads, head_dim = keys.shape
    beside = keys if values is None else values
    block_d = triton.next_power_of_2(head_dim)
    block_h = max(1, min(triton.next_power_of_2(kv_heads), 1024 // block_d))
    LAUNCH(
        (tokens, triton.cdiv(kv_heads, block_h), 1),
        *(keys, beside, kv[0], kv[-1], *scale_blocks(kv, scales), owners, *sequences[1:]),
        *(*keys.stride()[:2], *beside.stride()[:2], kv.stride(1), scale_stride(scales)),
        *(kv_heads, head_dim, PAGE_SIZE, values is not None, KINDS.get(kv.dtype, WHOLE), block_h, block_d),
        num_warps=warps(block_h * block_d),
    )


def warps(elements: int) -> int:
    """Of a program with so many keys: a thread has eight of them, which is a load."""
    return max(1, elements // 256)
