"""Attention in which every token of a sequence sees the others, before it and behind it; nothing is kept.

All of a sequence is in one step. Sequences of about the same length are attended over together, the shorter
ones padded with their own last token, which nobody sees: what one sequence holds never enters another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_PADDING = 1 / 8  # of the tokens that are attended over together
MOST_SCORES = 1 << 22  # of one head, of all sequences that are attended over together
QUERIES = 256  # of a layer with a window that are attended for at once


@dataclass(slots=True)
class Batch:
    """Sequences of a step that are attended over together.

    Attributes:
        rows: `[count * length]` int64, of the step.
        real: `[tokens]` int64, places in `rows` that hold no padding.
        unseen: `[count, 1, 1, length]` bool, what is padding; None: there is none.
    """

    count: int
    length: int
    rows: Tensor
    real: Tensor
    unseen: Tensor | None = None

    def seen(self, queries: range, keys: range, window: int) -> Tensor | None:
        """Which of these keys each of these queries sees, `[count or 1, 1, queries, keys]`; None: all."""
        mask = None
        if window:
            device = self.rows.device
            places = [torch.arange(each.start, each.stop, device=device) for each in (queries, keys)]
            mask = ((places[0][:, None] - places[1]).abs() < window)[None, None]
        if self.unseen is None:
            return mask
        real = ~self.unseen[..., keys.start : keys.stop]
        return real if mask is None else real & mask


class WholeAttention:
    """Attends over whole sequences.

    Args:
        windows: of each layer, the distance at which a token is no longer seen; 0: all are.
        scale: of scores; None: 1 / sqrt(head_dim).
        exact: attend over each sequence by itself, so that the others make no difference to a bit.
    """

    def __init__(
        self, windows: Sequence[int], device: torch.device, scale: float | None = None, exact: bool = False
    ) -> None:
        self._windows, self._device, self._scale, self._exact = windows, device, scale, exact

    def prepare(self, lengths: Sequence[int]) -> list[Batch]:
        """Once a step: the sequences lie one behind the other, so many tokens each."""
        starts = [0, *accumulate(lengths)]
        return [self._batch([(starts[i], lengths[i]) for i in some]) for some in self._alike(lengths)]

    def _alike(self, lengths: Sequence[int]) -> list[list[int]]:
        """Numbers of the sequences, in groups of about one length."""
        order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
        groups: list[list[int]] = []
        tokens = 0
        for number in order:
            if groups and not self._exact:
                longest, count = lengths[groups[-1][0]], len(groups[-1]) + 1
                padded = count * longest
                tokens += lengths[number]
                if padded - tokens <= MOST_PADDING * padded and padded * longest <= MOST_SCORES:
                    groups[-1].append(number)
                    continue
            groups.append([number])
            tokens = lengths[number]
        return groups

    def _batch(self, sequences: list[tuple[int, int]]) -> Batch:
        """Of sequences as (first row, tokens), the longest first."""
        count, length = len(sequences), sequences[0][1]
        starts, lengths = (
            torch.tensor(each, device=self._device)[:, None] for each in zip(*sequences, strict=True)
        )
        places = torch.arange(length, device=self._device)
        rows = starts + torch.minimum(places, lengths - 1)
        padding = places >= lengths
        if sequences[-1][1] == length:
            return Batch(count, length, rows.flatten(), torch.arange(count * length, device=self._device))
        real = (~padding).flatten().nonzero().squeeze(1)
        return Batch(count, length, rows.flatten(), real, padding[:, None, None])

    def run(
        self,
        prepared: list[Batch],
        layer: int,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """In each layer: see `workers.attention.backend.Attend`. No model that is served so has sinks."""
        out = torch.empty_like(q)
        window = self._windows[layer]
        for batch in prepared:
            q_, k_, v_ = (
                each.index_select(0, batch.rows)
                .view(batch.count, batch.length, *each.shape[1:])
                .transpose(1, 2)
                for each in (q, keys, values)
            )
            attended = self._attend(batch, q_, k_, v_, window if window < batch.length else 0)
            flat = attended.transpose(1, 2).reshape(-1, *q.shape[1:])
            out[batch.rows[batch.real]] = flat if batch.unseen is None else flat[batch.real]
        return out

    def _attend(self, batch: Batch, q: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
        """`[count, heads, length, head_dim]`; of a layer with a window in blocks of queries."""
        parts = []
        size = max(QUERIES, window) if window else batch.length
        for start in range(0, batch.length, size):
            queries = range(start, min(start + size, batch.length))
            seen = queries
            if window:
                seen = range(max(0, start - window + 1), min(queries.stop + window - 1, batch.length))
            mask = batch.seen(queries, seen, window)
            part = F.scaled_dot_product_attention(
                q[:, :, queries.start : queries.stop],
                keys[:, :, seen.start : seen.stop],
                values[:, :, seen.start : seen.stop],
                attn_mask=mask,
                scale=self._scale,
                enable_gqa=q.shape[1] != keys.shape[1],
            )
            parts.append(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
