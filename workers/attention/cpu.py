"""Causal attention over paged keys and values, in plain torch: correct on every device, and fast on a CPU.

Where the compiled kernels can be used, they are (`workers.kernels.step`). On a Zen 4 core, of 512 tokens and
16 heads of 128 in bfloat16, the one for prompts takes 7 ms where the blocks below take 21.

Torch's own fused kernel is not used. On a CPU it takes 27 ms where the blocks below take 7 (512 tokens, 16
heads of 128, one Zen 5 core), and over one row of queries it reads keys at a tenth of the speed of memory.
Scores and softmax are float32: a bfloat16 product would round the scores to three digits.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ipc.worker_messages import PAGE_SIZE, CacheGroup
from workers.cache.paged import KVCache, clear, write_codes, write_kv
from workers.cache.quantised import Pages
from workers.checkpoints.caches import first_page_seen
from workers.kernels import step as kernels
from workers.layers.linear import has_kernels
from workers.layers.steady import COUNTS, add_rows, blocks, steady_counts
from workers.step.batch import Segment
from workers.step.pages import pages_for

# Scores computed at once in prefill: on a CPU 4 MB, which stay in its cache; on a GPU each block is launches.
BLOCK_SCORES = {"cpu": 1 << 20, "cuda": 1 << 24}
BLOCK_PAGES = 64  # pages of keys that they belong to at most
FEW_ROWS = 32  # of queries for each key: so few are not worth a copy of the keys in float32
FEW_BYTES = 8 << 20  # of keys and values that these read at once
RUN_BYTES = {"cpu": 4 << 20, "cuda": 32 << 20}  # of keys that decode gathers at once, for the same reasons
EXACT_KEYS = 256  # keys of a block where `exact` is asked for
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


@dataclass(slots=True)
class GroupStep:
    """A step, as the layers of one cache group see it."""

    pages: Tensor  # [tokens] int64, the page that takes each token's keys and values
    places: Tensor  # [tokens] int64, its place in that page
    opened: list[int]  # pages that get their first tokens, and are not full after the step
    window: int  # tokens that a token sees, itself included; 0: all
    num_decode: int  # sequences with one token, which come first
    compiled: bool  # keys are written, and these attend, by a compiled kernel
    shown: tuple[
        Tensor, Tensor, Tensor
    ]  # their pages, and of each its sequence and the tokens seen from it on
    runs: list[PageRun]  # the same for torch; empty where there is a compiled kernel
    chunks: list[Chunk]


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


class PagedAttention:
    """The backend that is torch alone. Implements `workers.attention.backend.AttentionBackend`.

    Args:
        cache: with its groups.
        max_step_tokens: rows of a step, at most.
        max_sequences: in a step.
        max_pages: of a sequence.
        exact: attend in the same blocks of keys and shapes of products, whatever the step is.
        scale: of scores; None: 1 / sqrt(head_dim).
        cap: scores are bent to stay below it.
        value_dim: of a head; None: as large as keys. Where the cache has one block for both, values are the
            first part of keys.
    """

    capturable = False  # how many pages there are to see decides on the shapes

    def __init__(
        self,
        cache: KVCache,
        max_step_tokens: int,
        max_sequences: int,
        max_pages: int,
        exact: bool = False,
        scale: float | None = None,
        cap: float | None = None,
        value_dim: int | None = None,
    ) -> None:
        self.cache = cache
        self._scale, self._cap, self._value_dim = scale, cap, value_dim
        self._exact = ExactAttention() if exact else None
        shown = max_sequences * max_pages + max_step_tokens  # the largest step has more, short sequences
        groups = range(len(cache.groups))
        self.sizes = {"places": max_step_tokens}
        self.sizes |= {f"pages_{group}": max_step_tokens for group in groups}
        for name in ("chunk_pages", "run_pages", "run_rows", "seen"):
            self.sizes |= {f"{name}_{group}": shown for group in groups}

    def arrays(self, segments: Sequence[Segment]) -> dict[str, array[int]]:
        """Which pages take the new tokens, and which are read for them, group by group."""
        arrays = {"places": array("q")}
        for segment in segments:
            arrays["places"].extend(position % PAGE_SIZE for position in range(segment.start, segment.end))
        for number, group in enumerate(self.cache.groups):
            pages, chunk_pages, run_pages, run_rows, seen = (array("q") for _ in range(5))
            for segment in segments:
                table, end = segment.slot.tables[number], segment.end
                first = first_page_seen(group, segment.start)
                if self._is_chunk(segment):
                    pages.extend(table[position // PAGE_SIZE] for position in range(segment.start, end))
                    chunk_pages.extend(table[first : pages_for(end)])
                    continue
                last = segment.start // PAGE_SIZE
                pages.append(table[last])
                run_pages.extend(table[first : last + 1])
                run_rows.extend([segment.rows.start] * (last + 1 - first))
                seen.extend(range(end - first * PAGE_SIZE, 0, -PAGE_SIZE))  # from the page's start on
            named = {"pages": pages, "chunk_pages": chunk_pages, "run_pages": run_pages}
            named |= {"run_rows": run_rows, "seen": seen}
            arrays |= {f"{name}_{number}": values for name, values in named.items()}
        return arrays

    def prepare(self, segments: Sequence[Segment], tensors: dict[str, Tensor]) -> list[GroupStep]:
        """The step for each group."""
        return [self._prepare(*pair, segments, tensors) for pair in enumerate(self.cache.groups)]

    def _is_chunk(self, segment: Segment) -> bool:
        return len(segment.rows) > 1 or self._exact is not None

    def _prepare(
        self, number: int, group: CacheGroup, segments: Sequence[Segment], tensors: dict[str, Tensor]
    ) -> GroupStep:
        opened = [
            segment.slot.tables[number][segment.end // PAGE_SIZE]
            for segment in segments
            if segment.end % PAGE_SIZE and segment.end // PAGE_SIZE * PAGE_SIZE >= segment.start
        ]
        window = group.window if group.kind == "window" else 0
        kv = self.cache.layers[group.layers[0]]
        compiled = kernels.takes_cache(kv, self._value_dim or kv.shape[-1])
        shown = tuple(tensors[f"{name}_{number}"] for name in ("run_pages", "run_rows", "seen"))
        chunks, begin = [], 0
        for segment in filter(self._is_chunk, segments):
            before = first_page_seen(group, segment.start)
            for part in _parts(group, segment):
                first, stop = first_page_seen(group, part.start), pages_for(part.end)
                pages = tensors[f"chunk_pages_{number}"][begin + first - before : begin + stop - before]
                rows, context = slice(part.rows.start, part.rows.stop), part.end - first * PAGE_SIZE
                chunks.append(Chunk(rows, pages, context, window, first, part.mutual))
            begin += pages_for(segment.end) - before
        return GroupStep(
            pages=tensors[f"pages_{number}"],
            places=tensors["places"],
            opened=opened,
            window=window,
            num_decode=sum(not self._is_chunk(segment) for segment in segments),
            compiled=compiled,
            shown=shown,
            runs=[] if compiled else self._runs(kv, window, *shown),
            chunks=chunks,
        )

    def _runs(self, kv: Tensor, window: int, pages: Tensor, rows: Tensor, seen: Tensor) -> list[PageRun]:
        """The pages that sequences with one token in this step attend over."""
        if not len(pages):
            return []
        place = torch.arange(PAGE_SIZE, device=pages.device)
        hidden = place >= seen.unsqueeze(1)
        if window:
            hidden |= place < seen.unsqueeze(1) - window
        bias = torch.zeros(hidden.shape, device=pages.device).masked_fill_(hidden, -torch.inf)[:, None, None]
        run_pages = max(1, RUN_BYTES[kv.device.type] // kv[0, 0].nbytes)
        parts = (each.split(run_pages) for each in (pages, rows, bias))
        return [PageRun(*run) for run in zip(*parts, strict=True)]

    def run(
        self,
        prepared: list[GroupStep],
        layer: int,
        q: Tensor,
        keys: Tensor | None,
        values: Tensor | None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Keep the new tokens' keys and values; then each of these attends over what it sees."""
        step, kv = prepared[self.cache.group_of[layer]], self.cache.layers[layer]
        scale = q.shape[-1] ** -0.5 if self._scale is None else self._scale
        of_scores = scale, self._cap, None if sinks is None else sinks.float()
        value_dim = self._value_dim or kv.shape[-1]
        if keys is not None:
            self._write(layer, step, keys, values)
        if step.compiled and not step.chunks:
            return kernels.attention(q, kv, value_dim, step.shown, step.window, *of_scores)
        scores, seen = Scores(*of_scores), (self.cache.keys(layer), self.cache.values(layer, value_dim))
        out = q.new_empty(*q.shape[:2], value_dim)
        if step.num_decode:
            rows = q[: step.num_decode]
            if step.compiled:
                attended = kernels.attention(rows, kv, value_dim, step.shown, step.window, *of_scores)
            else:
                attended = attend_decode(rows, *seen, step.runs, scores)
            out[: step.num_decode] = attended
        compiled = step.compiled and self._exact is None and kernels.takes_chunk(q, kv, value_dim)
        for chunk in step.chunks:
            rows = q[chunk.tokens]
            if compiled:
                shown = chunk.pages, chunk.first_page, chunk.context, chunk.window, chunk.mutual
                kernels.chunk_attention(rows, kv, value_dim, *shown, *of_scores, out[chunk.tokens])
                continue
            attend = attend_chunk if self._exact is None else self._exact
            out[chunk.tokens] = attend(rows, *seen, chunk, scores)
        return out

    def _write(self, layer: int, step: GroupStep, keys: Tensor, values: Tensor | None) -> None:
        kv, scales = self.cache.layers[layer], self.cache.scales.get(layer)
        clear(kv, step.opened)
        if scales is not None:
            clear(scales, step.opened)
            write_codes(kv, scales, keys, values, step.pages, step.places)
            return
        write = kernels.write if step.compiled and keys.dtype == kv.dtype else write_kv
        write(kv, keys, values, step.pages, step.places)


def _parts(group: CacheGroup, segment: Segment) -> Iterator[Segment]:
    """The parts of a segment whose tokens see alike, and in chunks the same first token."""
    if group.kind != "chunk":
        yield from [segment] if group.in_order else segment.divided()
        return
    start = segment.start
    while start < segment.end:
        end = min(start - start % group.window + group.window, segment.end)
        row = segment.rows.start + start - segment.start
        yield Segment(segment.slot, range(row, row + end - start), start)
        start = end


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


class ExactAttention:
    """Consecutive tokens of one sequence over its context: one token to the same bits as many.

    Keys are taken in blocks of EXACT_KEYS that begin at fixed positions of the sequence, and queries in
    numbers of rows that agree in every bit (`workers.layers.steady`). Scores of what is not seen are minus
    infinity, whose weights are zero and change no sum.
    """

    def __init__(self) -> None:
        # of rows of queries, by (kv_heads, head_dim, value_dim); found with the first ones
        self._counts: dict[tuple[int, int, int], list[int]] = {}

    def __call__(
        self, q: Tensor, all_keys: Pages, all_values: Pages, chunk: Chunk, scores_of: Scores
    ) -> Tensor:
        """See `attend_chunk`."""
        tokens, heads, head_dim = q.shape
        _, kv_heads, page_size, value_dim = all_values.kept.shape
        group = heads // kv_heads
        block_pages = EXACT_KEYS // page_size
        before = chunk.first_page % block_pages  # pages of the first block that nobody sees any more
        num_blocks = -(-(before + len(chunk.pages)) // block_pages)

        def blocks_of(pool: Pages) -> Tensor:  # [kv_heads, keys, ...] float32
            taken = pool.by_head(chunk.pages, torch.float32)
            padded = torch.zeros(kv_heads, num_blocks * EXACT_KEYS, taken.shape[-1], device=q.device)
            padded[:, before * page_size :][:, : taken.shape[1]] = taken
            return padded

        keys, values = blocks_of(all_keys).transpose(1, 2), blocks_of(all_values)
        if (shape := (kv_heads, head_dim, value_dim)) not in self._counts:
            self._counts[shape] = _steady_rows(*shape, q.device)
        counts = self._counts[shape]
        rows = q.float().view(tokens, kv_heads, group, head_dim).permute(0, 2, 1, 3).flatten(0, 1)
        first = before * page_size + chunk.context - tokens
        positions = torch.arange(first, first + tokens, device=q.device).repeat_interleave(group)
        places = torch.arange(num_blocks * EXACT_KEYS, device=q.device)
        window = chunk.window or len(places)
        most = max(BLOCK_SCORES[q.device.type] // (kv_heads * len(places)), counts[-1])
        out = []
        for start, count in blocks(len(rows), [count for count in counts if count <= most]):
            own = positions[start : start + count, None]
            part = rows.new_zeros(kv_heads, count, head_dim)
            part[:, : len(own)] = rows[start : start + count].transpose(0, 1)
            scores = torch.cat(
                [torch.bmm(part, keys[..., i : i + EXACT_KEYS]) for i in range(0, len(places), EXACT_KEYS)], 2
            )
            scores = scores_of(scores)
            last = first + tokens - 1 if chunk.mutual else own
            unseen = (places > last) | (places <= own - window) | (places < before * page_size)
            scores[:, : len(own)].masked_fill_(unseen, -torch.inf)
            weights = _softmax(scores, scores_of.sinks, start, len(own))
            total = torch.zeros(kv_heads, count, value_dim, device=q.device)
            for i in range(0, len(places), EXACT_KEYS):
                total += torch.bmm(weights[..., i : i + EXACT_KEYS], values[:, i : i + EXACT_KEYS])
            out.append(total[:, : len(own)].transpose(0, 1))
        whole = torch.cat(out).view(tokens, group, kv_heads, value_dim).transpose(1, 2)
        return whole.reshape(tokens, heads, value_dim).to(q.dtype)


def _softmax(scores: Tensor, sinks: Tensor | None, start: int, rows: int) -> Tensor:
    """The weights of scores `[kv_heads, count, keys]`, whose first `rows` are the queries from `start` on.

    A sink stands before the keys, so that these stay in their places, whatever their number is.
    """
    if sinks is None:
        return torch.softmax(scores, dim=-1)
    own = sinks.view(len(scores), 1, -1).expand(-1, start + rows, -1).flatten(1)[:, start : start + rows]
    column = torch.zeros_like(scores[..., :1])
    column[:, :rows, 0] = own
    return torch.softmax(torch.cat((column, scores), dim=-1), dim=-1)[..., 1:].contiguous()


def _steady_rows(kv_heads: int, head_dim: int, value_dim: int, device: torch.device) -> list[int]:
    """Numbers of rows of queries that agree in every bit, in both products of attention."""
    generator = torch.Generator(device).manual_seed(0)
    sizes = (head_dim, EXACT_KEYS)
    shapes = ((head_dim, EXACT_KEYS), (EXACT_KEYS, value_dim))
    right = [torch.randn(kv_heads, n, m, generator=generator, device=device) for n, m in shapes]
    found = []
    for size, other in zip(sizes, right, strict=True):
        probe = torch.randn(COUNTS[0], kv_heads, size, generator=generator, device=device)

        def product(x: Tensor, other: Tensor = other) -> Tensor:
            return torch.bmm(x.transpose(0, 1).contiguous(), other).transpose(0, 1)

        found.append(steady_counts(product, probe))
    return [count for count in found[0] if count in found[1]] or [1]


def _products(rows: Tensor, keys: Tensor) -> Tensor:  # [batch, n, d], [batch, d, m] -> [batch, n, m] float32
    """Scores in float32, whatever goes in: what bfloat16 rounds away of the product is added to it."""
    product = torch.bmm(rows, keys)
    if product.dtype == torch.float32:
        return product
    return product.float().add_(torch.baddbmm(product, rows, keys, beta=-1))
