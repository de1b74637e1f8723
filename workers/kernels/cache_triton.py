"""New keys and values into their pages on a GPU, in one launch for all tokens of a step."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ipc.worker_messages import PAGE_SIZE
from workers.kernels.attention_triton import Sequences
from workers.kernels.launch import Launcher


@triton.jit
def slot_of(token, owners, starts, contexts, tables, pages, PAGE: tl.constexpr):
    """The page of a token of the step, and its place there."""
    sequence = tl.load(owners + token)
    position = tl.load(contexts + sequence) - tl.load(starts + sequence + 1) + token
    page = tl.load(pages + tl.load(tables + sequence) + position // PAGE)
    return page, position % PAGE


@triton.jit
def write_kernel(
    keys,  # [tokens, kv_heads, head_dim], each row of which is contiguous
    values,  # the same
    kept_keys,  # [pages, kv_heads, PAGE, head_dim], each page of which is contiguous
    kept_values,  # the same
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
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    WITH_VALUES: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    page, place = slot_of(token, owners, starts, contexts, tables, pages, PAGE)
    head, d = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D)
    mask = (head < KV_HEADS)[:, None] & (d < HEAD_DIM)[None, :]
    into = page * page_stride + (head * PAGE + place)[:, None] * HEAD_DIM + d[None, :]
    key = tl.load(keys + token * keys_stride + head[:, None] * key_head_stride + d[None, :], mask=mask)
    tl.store(kept_keys + into, key.to(kept_keys.dtype.element_ty), mask=mask)
    if WITH_VALUES:
        at = values + token * values_stride + head[:, None] * value_head_stride + d[None, :]
        tl.store(kept_values + into, tl.load(at, mask=mask).to(kept_values.dtype.element_ty), mask=mask)


LAUNCH = Launcher(write_kernel)


def write(
    kv: Tensor,  # [blocks, pages, kv_heads, PAGE_SIZE, head_dim]
    keys: Tensor,  # [tokens, kv_heads, head_dim]
    values: Tensor | None,  # the same; None: they are in the keys
    owners: Tensor,  # [tokens] int64
    sequences: Sequences,
) -> None:
    """Keep the keys and values of a step's tokens."""
    tokens, kv_heads, head_dim = keys.shape
    beside = keys if values is None else values
    block_d = triton.next_power_of_2(head_dim)
    block_h = max(1, min(triton.next_power_of_2(kv_heads), 1024 // block_d))
    LAUNCH(
        (tokens, triton.cdiv(kv_heads, block_h), 1),
        *(keys, beside, kv[0], kv[-1], owners, *sequences[1:]),
        *(*keys.stride()[:2], *beside.stride()[:2], kv.stride(1)),
        *(kv_heads, head_dim, PAGE_SIZE, values is not None, block_h, block_d),
        num_warps=4,
    )
