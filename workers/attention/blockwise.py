"""Causal attention over keys and values in pages, block by block: a softmax is put together from theirs.

Torch's own fused kernel is not used. On a CPU it takes 27 ms where the blocks below take 7 (512 tokens, 16
heads of 128, one Zen 5 core), and over one row of queries it reads keys at a tenth of the speed of memory.
Scores and softmax are float32: a bfloat16 product would round the scores to three digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.cache.quantised import Pages
from workers.layers.linear import has_kernels
from workers.layers.steady import add_rows

# Scores computed at once in prefill: on a CPU 4 MB, which stay in its cache; on a GPU each block is launches.
BLOCK_SCORES = {"cpu": 1 << 20, "cuda": 1 << 24}
BLOCK_PAGES = 64  # pages of keys that they belong to at most
FEW_ROWS = 32  # of queries for each key: so few are not worth a copy of the keys in float32
FEW_BYTES = 8 << 20  # of keys and values that these read at once
UNSEEN = -1e30  # a score outside of a window: below all others, and no infinity, of which a row may be full


@dataclass(slots=True)
class PageRun:
    """Some of the pages that the sequences in decode attend over: as many as stay in the cache together."""

    pages: Tensor  # [pages] int64
    sequence: Tensor  # [pages] int64, to which row of queries each belongs
    bias: Tensor  # [pages, 1, 1, PAGE_SIZE] float32: 0, and -inf where there is no token to be seen


@dataclass(slots=True)
class Chunk:
    """Consecutive tokens of one sequence: a prompt, or a part of one."""

    tokens: slice  # rows of the step
    pages: Tensor  # [pages] int64, those of the context of which a token is seen
    context: int  # tokens in these pages, up to the last of the chunk
    window: int  # tokens that a token sees, itself included; 0: all
    first_page: int  # number in the sequence of the first of the pages
    mutual: bool = False  # each of its tokens sees those behind it, too


@dataclass(frozen=True, slots=True)
class Scores:
    """What becomes of the products of queries and keys, in place."""

    scale: float
    cap: float | None = None
    sinks: Tensor | None = None  # [heads] float32: a score besides, of what has no value

    def __call__(self, products: Tensor) -> Tensor:  # float32
        if self.cap is None:
            return products.mul_(self.scale)
        return products.mul_(self.scale / self.cap).tanh_().mul_(self.cap)

    def biased(self, products: Tensor, bias: Tensor) -> Tensor:
        """The same, and `bias` added."""
        if self.cap is None:
            return torch.add(bias, products, alpha=self.scale)
        return self(products).add_(bias)


def attend_decode(
    q: Tensor,  # [sequences, heads, head_dim]
    all_keys: Pages,
    all_values: Pages,
    runs: list[PageRun],
    scores_of: Scores,
) -> Tensor:  # [sequences, heads, value_dim]
    """One token per sequence over its pages, for all sequences together.

    Every page is one entry of a batched product, so that contexts of unlike lengths need no padding, and a
    softmax per sequence is put together from the pages' maxima and sums (as in flash-decoding).
    """
    count, heads, head_dim = q.shape
    _, kv_heads, page_size, value_dim = all_values.kept.shape
    group = heads // kv_heads
    queries = q.view(count, kv_heads, group, head_dim)
    wide = torch.float32 if not has_kernels(q.dtype, q.device) else q.dtype
    scores = []
    for run in runs:
        keys = all_keys.gathered(run.pages, wide).view(-1, page_size, head_dim).transpose(1, 2)
        rows = queries.to(wide).index_select(0, run.sequence).view(-1, group, head_dim)
        products = _products(rows, keys).view(-1, kv_heads, group, page_size)
        scores.append(scores_of.biased(products, run.bias))
    maxima = torch.full((count, kv_heads, group), -torch.inf, device=q.device)
    for run, part in zip(runs, scores, strict=True):
        index = run.sequence[:, None, None].expand(-1, kv_heads, group)
        maxima.scatter_reduce_(0, index, part.amax(-1), "amax")
    sums = torch.zeros_like(maxima)
    out = torch.zeros(count, kv_heads, group, value_dim, device=q.device)
    for run, part in zip(runs, scores, strict=True):
        weights = part.sub_(maxima.index_select(0, run.sequence).unsqueeze(-1)).exp_()
        add_rows(sums, run.sequence, weights.sum(-1))
        values = all_values.gathered(run.pages, wide).view(-1, page_size, value_dim)
        products = torch.bmm(weights.to(wide).view(-1, group, page_size), values)
        add_rows(out, run.sequence, products.view(-1, kv_heads, group, value_dim).float())
    if scores_of.sinks is not None:
        sums += torch.exp(scores_of.sinks.view(kv_heads, group) - maxima)
    return (out / sums.unsqueeze(-1)).to(q.dtype).view(count, heads, value_dim)


def attend_chunk(
    q: Tensor,  # [tokens, heads, head_dim], the last tokens of the context
    all_keys: Pages,
    all_values: Pages,
    chunk: Chunk,
    scores_of: Scores,
) -> Tensor:  # [tokens, heads, value_dim]
    """Consecutive tokens of one sequence over its context, in blocks of keys and of queries.

    A softmax over several blocks of keys is put together from theirs (as in FlashAttention): over a context
    of 16,384 tokens that takes a third of the time that whole rows of scores take.
    """
    tokens, heads, head_dim = q.shape
    _, kv_heads, page_size, value_dim = all_values.kept.shape
    group = heads // kv_heads
    first = chunk.context - tokens  # position of the first query, from the first of the pages
    window, unseen = (chunk.window, UNSEEN) if chunk.window else (chunk.context, -torch.inf)
    # the heads of a group lie one under the other, so that their keys need no copies
    queries = q.view(tokens, kv_heads, group, head_dim).permute(1, 2, 0, 3)
    out = torch.zeros(kv_heads, group, tokens, value_dim, device=q.device)
    log_sums = torch.full((kv_heads, group, tokens, 1), -torch.inf, device=q.device)
    positions = torch.arange(len(chunk.pages) * page_size, device=q.device)
    step = max(16, BLOCK_SCORES[q.device.type] // (heads * min(chunk.context, BLOCK_PAGES * page_size)))
    native = has_kernels(q.dtype, q.device)
    few = native and group * tokens <= FEW_ROWS
    page_bytes = (all_keys.kept[0].numel() + all_values.kept[0].numel()) * q.itemsize
    block_pages = max(BLOCK_PAGES, FEW_BYTES // page_bytes) if few else BLOCK_PAGES
    joined = len(chunk.pages) > block_pages or scores_of.sinks is not None
    for number, pages in enumerate(chunk.pages.split(block_pages)):
        seen = number * block_pages * page_size  # keys before this block
        keys = all_keys.by_head(pages, q.dtype if few else torch.float32).transpose(1, 2)
        values = all_values.by_head(pages, q.dtype if native else torch.float32)
        # queries that see a key of this block
        begin = 0 if chunk.mutual else max(0, seen - first)
        stop = min(tokens, seen + values.shape[1] - 1 - first + window)
        for start in range(begin, stop, step):
            end = min(start + step, stop)
            # keys before the window of the first query, in whole pages
            skip = max(0, (first + start + 1 - window - seen) // page_size * page_size)
            # keys of this block that the last query sees, in whole pages: so shapes, which each need a kernel
            # of their own, are few, and all of a block needs no copy
            last = chunk.context if chunk.mutual else first + end
            count = min(-(-(last - seen) // page_size) * page_size, values.shape[1])
            shape = (kv_heads, group, end - start, count - skip)
            rows = queries[:, :, start:end].reshape(kv_heads, -1, head_dim).to(keys.dtype)
            scores = _products(rows, keys[..., skip:count])
            scores = scores_of(scores).view(shape)
            own = positions[first + start : first + end, None]
            every = chunk.context if chunk.mutual else first + start + 1
            if seen + count > every:
                known = max(skip, every - seen)  # keys from here on not all of the queries see
                behind = chunk.context - 1 if chunk.mutual else own
                scores[..., known - skip :].masked_fill_(
                    positions[seen + known : seen + count] > behind, unseen
                )
            if seen + skip <= first + end - 1 - window:
                scores.masked_fill_(positions[seen + skip : seen + count] <= own - window, unseen)
            weights = torch.softmax(scores, dim=-1).to(values.dtype).view(kv_heads, -1, count - skip)
            part = torch.bmm(weights, values[:, skip:count]).view(*shape[:3], value_dim).float()
            if joined:
                log_sum = log_sums[:, :, start:end]
                new = scores.logsumexp(dim=-1, keepdim=True)
                share = torch.sigmoid(new - log_sum)  # of this block in the sum so far
                part = torch.lerp(out[:, :, start:end], part, share) if number else part
                log_sum.copy_(torch.logaddexp(log_sum, new))
            out[:, :, start:end] = part
    if scores_of.sinks is not None:
        out *= torch.sigmoid(log_sums - scores_of.sinks.view(kv_heads, group, 1, 1))
    return out.permute(2, 0, 1, 3).reshape(tokens, heads, value_dim).to(q.dtype)


def _products(rows: Tensor, keys: Tensor) -> Tensor:  # [batch, n, d], [batch, d, m] -> [batch, n, m] float32
    """Scores in float32, whatever goes in: what bfloat16 rounds away of the product is added to it."""
    product = torch.bmm(rows, keys)
    if product.dtype == torch.float32:
        return product
    return product.float().add_(torch.baddbmm(product, rows, keys, beta=-1))
