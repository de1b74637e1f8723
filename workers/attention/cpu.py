"""The backend that is plain torch: correct on every device, and fast on a CPU.

Where the compiled kernels can be used, they are (`workers.kernels.step`). On a Zen 4 core, of 512 tokens and
16 heads of 128 in bfloat16, the one for prompts takes 7 ms where `blockwise` takes 21.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ipc.worker_messages import PAGE_SIZE, CacheGroup
from workers.attention.blockwise import Chunk, PageRun, Scores, attend_chunk, attend_decode
from workers.attention.exact import ExactAttention
from workers.cache.paged import KVCache, clear, write_codes, write_kv
from workers.checkpoints.caches import first_page_seen
from workers.kernels import step as kernels
from workers.step.batch import Segment
from workers.step.pages import pages_for

# Bytes of keys that decode gathers at once: on a CPU they stay in its cache; on a GPU each run is launches.
RUN_BYTES = {"cpu": 4 << 20, "cuda": 32 << 20}


@dataclass(slots=True)
class GroupStep:
    """A step, as the layers of one cache group see it."""

    pages: Tensor  # [tokens] int64, the page that takes each token's keys and values
    places: Tensor  # [tokens] int64, its place in that page
    opened: list[int]  # pages that get their first tokens, and are not full after the step
    window: int  # tokens that a token sees, itself included; 0: all
    num_decode: int  # sequences with one token, which come first
    compiled: bool  # keys are written, and these attend, by a compiled kernel
    # the pages of these, and of each its sequence and the tokens seen from it on
    shown: tuple[Tensor, Tensor, Tensor]
    runs: list[PageRun]  # the same for torch; empty where there is a compiled kernel
    chunks: list[Chunk]


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
