"""Causal attention over paged keys and values, in plain torch: correct on every device, and fast on a CPU.

Torch's own fused kernel is not used. On a CPU it takes 27 ms where the blocks below take 7 (512 tokens, 16
heads of 128, one Zen 5 core), and over one row of queries it reads keys at a tenth of the speed of memory.
Scores and softmax are float32: a bfloat16 product would round the scores to three digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.layers.linear import has_kernels

BLOCK_SCORES = 1 << 20  # scores computed at once in prefill: 4 MB, which stays in the cache
BLOCK_PAGES = 64  # pages of keys that they belong to at most
FEW_ROWS = 32  # of queries for each key: so few are not worth a copy of the keys in float32
FEW_BYTES = 8 << 20  # of keys and values that these read at once


@dataclass(slots=True)
class PageRun:
    """Some of the pages that the sequences in decode attend over: as many as stay in the cache together."""

    pages: Tensor  # [pages] int64
    sequence: Tensor  # [pages] int64, to which row of queries each belongs
    bias: Tensor  # [pages, 1, 1, PAGE_SIZE] float32: 0, and -inf where there is no token


@dataclass(slots=True)
class Chunk:
    """Consecutive tokens of one sequence: a prompt, or a part of one."""

    tokens: slice  # rows of the batch
    pages: Tensor  # [pages] int64, all pages of the context
    context: int  # tokens with keys, these included


def attend_decode(
    q: Tensor,  # [sequences, heads, head_dim]
    kv: Tensor,  # [2, pages, kv_heads, PAGE_SIZE, head_dim]
    runs: list[PageRun],
    scale: float,
) -> Tensor:  # [sequences, heads, head_dim]
    """One token per sequence over its pages, for all sequences together.

    Every page is one entry of a batched product, so that contexts of unlike lengths need no padding, and a
    softmax per sequence is put together from the pages' maxima and sums (as in flash-decoding).
    """
    count, heads, head_dim = q.shape
    _, _, kv_heads, page_size, _ = kv.shape
    group = heads // kv_heads
    queries = q.view(count, kv_heads, group, head_dim)
    wide = torch.float32 if not has_kernels(q.dtype, q.device) else q.dtype
    scores = []
    for run in runs:
        keys = kv[0].index_select(0, run.pages).view(-1, page_size, head_dim).transpose(1, 2).to(wide)
        rows = queries.to(wide).index_select(0, run.sequence).view(-1, group, head_dim)
        products = _products(rows, keys).view(-1, kv_heads, group, page_size)
        scores.append(torch.add(run.bias, products, alpha=scale))
    maxima = torch.full((count, kv_heads, group), -torch.inf, device=q.device)
    for run, part in zip(runs, scores, strict=True):
        index = run.sequence[:, None, None].expand(-1, kv_heads, group)
        maxima.scatter_reduce_(0, index, part.amax(-1), "amax")
    sums = torch.zeros_like(maxima)
    out = torch.zeros(queries.shape, device=q.device)
    for run, part in zip(runs, scores, strict=True):
        weights = part.sub_(maxima.index_select(0, run.sequence).unsqueeze(-1)).exp_()
        sums.index_add_(0, run.sequence, weights.sum(-1))
        values = kv[1].index_select(0, run.pages).view(-1, page_size, head_dim).to(wide)
        products = torch.bmm(weights.to(wide).view(-1, group, page_size), values)
        out.index_add_(0, run.sequence, products.view(-1, kv_heads, group, head_dim).float())
    return (out / sums.unsqueeze(-1)).to(q.dtype).view(count, heads, head_dim)


def attend_chunk(
    q: Tensor,  # [tokens, heads, head_dim], the last tokens of the context
    kv: Tensor,  # [2, pages, kv_heads, PAGE_SIZE, head_dim]
    chunk: Chunk,
    scale: float,
) -> Tensor:  # [tokens, heads, head_dim]
    """Consecutive tokens of one sequence over its context, in blocks of keys and of queries.

    A softmax over several blocks of keys is put together from theirs (as in FlashAttention): over a context
    of 16,384 tokens that takes a third of the time that whole rows of scores take.
    """
    tokens, heads, head_dim = q.shape
    _, _, kv_heads, page_size, _ = kv.shape
    group = heads // kv_heads
    first = chunk.context - tokens  # position of the first query
    # the heads of a group lie one under the other, so that their keys need no copies
    queries = q.view(tokens, kv_heads, group, head_dim).permute(1, 2, 0, 3)
    out = torch.empty(kv_heads, group, tokens, head_dim, device=q.device)
    log_sums = torch.full((kv_heads, group, tokens, 1), -torch.inf, device=q.device)
    positions = torch.arange(len(chunk.pages) * page_size, device=q.device)
    step = max(16, BLOCK_SCORES // (heads * min(chunk.context, BLOCK_PAGES * page_size)))
    native = has_kernels(q.dtype, q.device)
    few = native and group * tokens <= FEW_ROWS
    block_pages = max(BLOCK_PAGES, FEW_BYTES // kv[:, 0].nbytes) if few else BLOCK_PAGES
    for number, pages in enumerate(chunk.pages.split(block_pages)):
        seen = number * block_pages * page_size  # keys before this block
        block = kv.transpose(1, 2).index_select(2, pages).flatten(2, 3)
        keys, values = block[0].transpose(1, 2), block[1]
        if not few:
            keys = keys.float()
        if not native:
            values = values.float()
        for start in range(max(0, seen - first), tokens, step):
            end = min(start + step, tokens)
            # keys of this block that the last query sees, in whole pages: so shapes, which each need a kernel
            # of their own, are few, and all of a block needs no copy
            count = min(-(-(first + end - seen) // page_size) * page_size, values.shape[1])
            shape = (kv_heads, group, end - start, count)
            rows = queries[:, :, start:end].reshape(kv_heads, -1, head_dim).to(keys.dtype)
            scores = _products(rows, keys[..., :count]).mul_(scale).view(shape)
            if seen + count > first + start + 1:
                known = max(0, first + start + 1 - seen)  # keys that all of the queries see
                beyond = positions[seen + known : seen + count] > positions[first + start : first + end, None]
                scores[..., known:].masked_fill_(beyond, -torch.inf)
            weights = torch.softmax(scores, dim=-1).to(values.dtype).view(kv_heads, -1, count)
            part = torch.bmm(weights, values[:, :count]).view(*shape[:3], head_dim).float()
            if len(chunk.pages) > block_pages:
                log_sum = log_sums[:, :, start:end]
                new = scores.logsumexp(dim=-1, keepdim=True)
                share = torch.sigmoid(new - log_sum)  # of this block in the sum so far
                part = torch.lerp(out[:, :, start:end], part, share) if number else part
                log_sum.copy_(torch.logaddexp(log_sum, new))
            out[:, :, start:end] = part
    return out.permute(2, 0, 1, 3).reshape(tokens, heads, head_dim).to(q.dtype)


def _products(rows: Tensor, keys: Tensor) -> Tensor:  # [batch, n, d], [batch, d, m] -> [batch, n, m] float32
    """Scores in float32, whatever goes in: what bfloat16 rounds away of the product is added to it."""
    product = torch.bmm(rows, keys)
    if product.dtype == torch.float32:
        return product
    return product.float().add_(torch.baddbmm(product, rows, keys, beta=-1))
