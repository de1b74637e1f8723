"""The compiled kernels of `step.c` and `chunks.c`: what a step computes between its products, on a CPU and in
16 bits.

Each has a plain reference where it is called, which is taken where `takes` says no; in float32 it always is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ipc.worker_messages import PAGE_SIZE
from workers.kernels import dense
from workers.kernels.compiled import ACTIVATIONS, TYPES, check_memory, library

LARGEST_HEAD = 1024
PAGE = 32  # tokens, as step.c has it


def takes(x: Tensor, size: int) -> bool:
    """Whether these kernels compute with `x`, whose rows, or parts of rows, have so many numbers."""
    return x.device.type == "cpu" and x.dtype in TYPES[1:] and size % 8 == 0 and library() is not None


def norm(x: Tensor, weight: Tensor, eps: float, offset: float, residual: Tensor | None = None) -> Tensor:
    """`residual + x / rms(x) * (weight + offset)`: `[..., size]`, normalised over the last dimension."""
    x = x.contiguous()
    y = torch.empty_like(x)
    size = x.shape[-1]
    beside = None if residual is None else residual.contiguous()
    library().step_norm(
        x.data_ptr(),
        weight.data_ptr(),
        None if beside is None else beside.data_ptr(),
        y.data_ptr(),
        TYPES.index(x.dtype),
        x.numel() // size,
        size,
        eps,
        offset,
        torch.get_num_threads(),
    )
    return y


def sum_of(x: Tensor, y: Tensor) -> Tensor:  # [..., size] each
    """`x + y`."""
    return _sum(x.contiguous(), y.contiguous(), None, None, 0.0, 0.0)


def norm_of_sum(x: Tensor, y: Tensor, weight: Tensor, eps: float, offset: float) -> tuple[Tensor, Tensor]:
    """`x + y`, rounded to their type, and that normalised; `[..., size]` each."""
    normed = torch.empty_like(x, memory_format=torch.contiguous_format)
    return _sum(x.contiguous(), y.contiguous(), weight, normed, eps, offset), normed


def _sum(
    x: Tensor, y: Tensor, weight: Tensor | None, normed: Tensor | None, eps: float, offset: float
) -> Tensor:
    total, size = torch.empty_like(x), x.shape[-1]
    library().step_sum(
        *(x.data_ptr(), y.data_ptr(), None if weight is None else weight.data_ptr(), total.data_ptr()),
        *(None if normed is None else normed.data_ptr(), TYPES.index(x.dtype), x.numel() // size, size),
        *(eps, offset, torch.get_num_threads()),
    )
    return total


def gated(gate_up: Tensor, activation: str) -> Tensor:  # [tokens, 2 * inner] -> [tokens, inner]
    """The first half, activated, times the second."""
    x = gate_up.contiguous()
    rows, size = x.shape[0], x.shape[1] // 2
    y = x.new_empty(rows, size)
    library().step_gated(
        x.data_ptr(),
        y.data_ptr(),
        TYPES.index(x.dtype),
        ACTIVATIONS.index(activation),
        rows,
        size,
        torch.get_num_threads(),
    )
    return y


def takes_heads(x: Tensor, turned: int) -> bool:
    """The same for `heads`, with angles for so many dimensions of a head."""
    return takes(x, x.shape[-1]) and turned % 16 == 0 and x.shape[-1] <= LARGEST_HEAD and x.is_contiguous()


def heads(
    x: Tensor,  # [tokens, all heads, head_dim]; changed in place
    counts: tuple[int, int],
    weights: tuple[Tensor, Tensor] | None,  # [head_dim] each
    eps: float,
    offset: float,
    angles: tuple[Tensor, Tensor] | None,  # cosines and sines, [tokens, 1, turned] float32
) -> None:
    """Normalise the query heads, which come first, and the key heads after them, each alone; turn them."""
    query, key = (None, None) if weights is None else (weight.data_ptr() for weight in weights)
    cos, sin = (None, None) if angles is None else (angle.data_ptr() for angle in angles)
    library().step_heads(
        x.data_ptr(),
        TYPES.index(x.dtype),
        *(x.shape[0], x.shape[1], *counts, x.shape[2]),
        *(query, key, eps, offset),
        *(cos, sin, 0 if angles is None else angles[0].shape[-1]),
        torch.get_num_threads(),
    )


def takes_cache(kv: Tensor, value_dim: int) -> bool:
    """The same for `write` and `attention`, over a layer's pool of pages."""
    if not takes(kv, kv.shape[-1]) or value_dim % 8:
        return False
    return kv.shape[-2] == PAGE == PAGE_SIZE and kv[0, 0].is_contiguous()


def write(kv: Tensor, keys: Tensor, values: Tensor | None, pages: Tensor, places: Tensor) -> None:
    """As `workers.cache.paged.write_kv`."""
    for number, x in enumerate((keys, values)):
        if x is None:
            continue
        block = kv[number]
        if x.stride()[1:] != (x.shape[2], 1):
            x = x.contiguous()
        library().step_write(
            x.data_ptr(),
            x.stride(0),
            block.data_ptr(),
            block.stride(0),
            pages.data_ptr(),
            places.data_ptr(),
            *x.shape,
            torch.get_num_threads(),
        )


def attention(
    q: Tensor,  # [sequences, heads, head_dim]
    kv: Tensor,  # [blocks, pages, kv_heads, PAGE_SIZE, head_dim]
    value_dim: int,
    shown: tuple[
        Tensor, Tensor, Tensor
    ],  # see `PageRun`: pages, their sequences, tokens seen; [pages] int64 each
    window: int,
    scale: float,
    cap: float | None,
    sinks: Tensor | None,  # [heads] float32
) -> Tensor:  # [sequences, heads, value_dim]
    """One token of each sequence over those of its pages that it sees; of a window, unless it is 0, the last.

    Raises:
        RuntimeError: memory is short, as torch says it.
    """
    if q.stride()[1:] != (q.shape[2], 1):
        q = q.contiguous()
    pages, rows, seen = shown
    kv_heads = kv.shape[2]
    y = q.new_empty(*q.shape[:2], value_dim)
    failed = library().step_attention(
        *(q.data_ptr(), q.stride(0), kv[0].data_ptr(), kv[-1].data_ptr(), kv.stride(1)),
        *(y.data_ptr(), TYPES.index(q.dtype)),
        *(pages.data_ptr(), rows.data_ptr(), seen.data_ptr(), pages.shape[0]),
        *(kv_heads, q.shape[1] // kv_heads, q.shape[2], value_dim),
        *(window, scale, cap or 0.0, None if sinks is None else sinks.data_ptr()),
        torch.get_num_threads(),
    )
    check_memory(failed, "attention")
    return y


def takes_chunk(q: Tensor, kv: Tensor, value_dim: int) -> bool:
    """The same for `chunk_attention`, with queries `q`: for bfloat16, on a CPU that multiplies it."""
    if not takes_cache(kv, value_dim) or max(q.shape[-1], value_dim) > LARGEST_HEAD:
        return False
    return q.dtype == kv.dtype == torch.bfloat16 and dense.level() == dense.WITH_AVX512_BF16


def chunk_attention(
    q: Tensor,  # [tokens, heads, head_dim], the last tokens of the context
    kv: Tensor,  # [blocks, pages, kv_heads, PAGE_SIZE, head_dim]
    value_dim: int,
    pages: Tensor,  # [pages] int64, those of the context
    first_page: int,  # number in the sequence of the first of them
    context: int,  # tokens in these pages, up to the last of `q`
    window: int,  # tokens that a token sees, itself included; 0: all
    mutual: bool,  # each token sees those behind it, too
    scale: float,
    cap: float | None,
    sinks: Tensor | None,  # [heads] float32
    into: Tensor | None = None,  # [tokens, heads, value_dim], contiguous: where it is to be
) -> Tensor:  # [tokens, heads, value_dim]
    """Consecutive tokens of one sequence over its pages. Each has the same bits in any company.

    Raises:
        RuntimeError: memory is short, as torch says it.
    """
    if q.stride()[1:] != (q.shape[2], 1):
        q = q.contiguous()
    kv_heads = kv.shape[2]
    y = q.new_empty(*q.shape[:2], value_dim) if into is None else into
    failed = library().chunks_attention(
        *(q.data_ptr(), q.stride(0), kv[0].data_ptr(), kv[-1].data_ptr(), kv.stride(1)),
        *(y.data_ptr(), pages.contiguous().data_ptr()),
        *(first_page, len(q), context, kv_heads, q.shape[1] // kv_heads, q.shape[2], value_dim),
        *(window, mutual, scale, cap or 0.0, None if sinks is None else sinks.data_ptr()),
        torch.get_num_threads(),
    )
    check_memory(failed, "attention")
    return y
