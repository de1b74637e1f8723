"""Causal attention over keys and values in pages, to the same bits however a prompt is cut."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.attention.blockwise import BLOCK_SCORES, Chunk, Scores
from workers.cache.quantised import Pages
from workers.layers.steady import COUNTS, blocks, steady_counts

EXACT_KEYS = 256  # keys of a block


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
        """See `workers.attention.blockwise.attend_chunk`."""
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
