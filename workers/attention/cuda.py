"""Causal attention over paged keys and values by Triton's kernels: the backend for GPUs.

A step is a few arrays of fixed places in the input buffers, and no launch needs to know more on the host than
how many sequences there are: so a step of single tokens can be a graph.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor

from ipc.worker_messages import PAGE_SIZE, CacheGroup
from workers.cache.paged import KVCache
from workers.checkpoints.caches import first_page_seen
from workers.kernels import attention_triton, cache_triton, heads_triton
from workers.kernels.attention_triton import SPLIT, Rows, Sequences, most_splits, num_splits
from workers.kernels.fused import Turn
from workers.step.batch import Segment
from workers.step.pages import pages_for

SINGLE, FEW, MANY = range(3)  # tokens of a sequence in a step
MUTUAL = 3  # added to one of these: they see each other
FEW_TOKENS = 16  # of a sequence in a step: so few would leave most of a GPU idle, were its keys not divided


@dataclass(slots=True)
class GroupStep:
    """A step, as the layers of one cache group see it."""

    sequences: Sequences
    rows: list[Rows]
    owners: Tensor  # [tokens] int64, the sequence of each token


class TritonAttention:
    """Implements `workers.attention.backend.AttentionBackend`.

    Args:
        cache: with its groups.
        max_step_tokens: rows of a step, at most.
        max_sequences: in a step.
        max_pages: of a sequence.
        exact: attend in the same shapes whatever the step is: a token has the same bits in a prompt as alone.
            Without that it has the same in any company.
        scale: of scores; None: 1 / sqrt(head_dim).
        cap: scores are bent to stay below it.
        value_dim: of a head; None: as large as keys. Where the cache has one block for both, values are the
            first part of keys.
    """

    capturable = True

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
        self._exact, self._scale, self._cap, self._value_dim = exact, scale, cap, value_dim
        self._max_pages = max_pages
        numbers = range(len(cache.groups))
        self.sizes = {"starts": max_step_tokens + 1}
        self.sizes |= dict.fromkeys(("order", "contexts", "owners"), max_step_tokens)
        self.sizes |= {f"tables_{number}": max_step_tokens for number in numbers}
        shown = max_sequences * max_pages + max_step_tokens  # the largest step has more, short sequences
        self.sizes |= {f"pages_{number}": shown for number in numbers}

    def arrays(self, segments: Sequence[Segment]) -> dict[str, array[int]]:
        """See `Sequences`, whose arrays they are; `tables` and `pages` group by group."""
        parts, segment_of = _divided(segments)
        numbers = sorted(range(len(parts)), key=lambda number: _kind(parts[number]))
        starts = array("q", [part.rows.start for part in parts])
        starts.append(parts[-1].rows.stop)
        owners = array("q")
        for number, part in enumerate(parts):
            owners.extend([number] * len(part.rows))
        arrays = {"starts": starts, "order": array("q", numbers), "owners": owners}
        arrays["contexts"] = array("q", [part.end for part in parts])
        for number, group in enumerate(self.cache.groups):
            tables, pages = array("q"), array("q")
            for segment in segments:
                first = first_page_seen(group, segment.start)
                tables.append(len(pages) - first)
                pages.extend(segment.slot.tables[number][first : pages_for(segment.end)])
            if parts is not segments:
                tables = array("q", [tables[each] for each in segment_of])
            arrays |= {f"tables_{number}": tables, f"pages_{number}": pages}
        return arrays

    def prepare(self, segments: Sequence[Segment], tensors: dict[str, Tensor]) -> list[GroupStep]:
        """The step for each group."""
        step, (parts, _) = [], _divided(segments)
        for number, group in enumerate(self.cache.groups):
            names = ("order", "starts", "contexts", f"tables_{number}", f"pages_{number}")
            sequences = Sequences(*(tensors[name] for name in names))
            step.append(GroupStep(sequences, self._rows(group, parts), tensors["owners"]))
        return step

    def _rows(self, group: CacheGroup, segments: Sequence[Segment]) -> list[Rows]:
        """The launches for a group: sequences with one token, those with few, those with many, and images
        whose tokens see each other."""
        found, first = [], 0
        for kind_and_sight, those in groupby(sorted(segments, key=_kind), key=_kind):
            mutual, kind = divmod(kind_and_sight, MUTUAL)
            alike = list(those)
            longest = max(len(segment.rows) for segment in alike)
            if kind != SINGLE:
                longest = max(2, longest)
            splits = 0 if self._exact or kind == MANY else self._most_splits(group, alike, segments)
            sees = bool(mutual) and not group.in_order  # else each part is causal, as their whole is
            found.append(Rows(first, len(alike), longest, kind < MANY or self._exact, splits, sees))
            first += len(alike)
        return found

    def _most_splits(self, group: CacheGroup, alike: list[Segment], segments: Sequence[Segment]) -> int:
        """Into how many parts the keys of one of `alike` are divided at most.

        Where these are all that there is, and each has one token, that is as many as it may ever be: the step
        may be a graph, which is done again when contexts have grown.
        """
        if len(alike) == len(segments) and _kind(alike[0]) == SINGLE:
            longest = self._max_pages * PAGE_SIZE
            return most_splits(min(longest, group.window + SPLIT) if group.window else longest)
        return max(num_splits(_first_seen(group, each.start), each.end) for each in alike)

    def run(
        self,
        prepared: list[GroupStep],
        layer: int,
        q: Tensor,
        keys: Tensor | None,
        values: Tensor | None,
        sinks: Tensor | None = None,
        turn: Turn | None = None,
    ) -> Tensor:
        """Keep the new tokens' keys and values; then each of these attends over what it sees."""
        number, kv = self.cache.group_of[layer], self.cache.layers[layer]
        group, step, scales = self.cache.groups[number], prepared[number], self.cache.scales.get(layer)
        scale = q.shape[-1] ** -0.5 if self._scale is None else self._scale
        value_dim = self._value_dim or kv.shape[-1]
        if turn is not None:
            q = heads_triton.turn_and_write(kv, q, keys, values, turn, step.owners, step.sequences, scales)
        elif keys is not None:
            cache_triton.write(kv, keys, values, step.owners, step.sequences, scales)
        y = q.new_empty(*q.shape[:2], value_dim)
        kind = group.kind if group.kind in ("window", "chunk") else "full"
        for rows in step.rows:
            attention_triton.attention(
                *(q, kv, value_dim, y, step.sequences, rows, kind, group.window, scale, self._cap, sinks),
                scales=scales,
            )
        return y


def _divided(segments: Sequence[Segment]) -> tuple[Sequence[Segment], Sequence[int]]:
    """The parts of segments whose tokens see alike, in order, and of which segment each of them is. Without
    images these are the segments: a step in decode is not to pay for it."""
    if not [segment for segment in segments if segment.slot.new.images]:
        return segments, range(len(segments))
    divided = [(part, number) for number, each in enumerate(segments) for part in each.divided()]
    return [part for part, _ in divided], [number for _, number in divided]


def _kind(segment: Segment) -> int:
    """How many tokens there are, by which launches are told apart, and MUTUAL more where they see each other.
    The single ones stand first in a step."""
    count = len(segment.rows)
    if count == 1 and not segment.mutual:
        return SINGLE
    kind = FEW if count <= FEW_TOKENS else MANY
    return kind + MUTUAL if segment.mutual else kind


def _first_seen(group: CacheGroup, position: int) -> int:
    """The first token that one at `position` sees."""
    if group.kind == "window":
        return max(0, position - group.window + 1)
    return position // group.window * group.window if group.kind == "chunk" else 0
