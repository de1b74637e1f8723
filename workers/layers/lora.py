"""Low-rank adapters beside the projections of a model (Hu et al. 2021): many in one batch.

A row of a step has one adapter or none. Those that have none cost nothing, and a step in which nobody has one
does not come here at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.checkpoints.adapter import A, AdapterCard, B
from workers.layers.linear import Linear
from workers.weights.blocks import Empty
from workers.weights.loader import Shard, Slice


@dataclass(slots=True)
class LowRank:
    """What one adapter adds to columns `out` of a projection: `scale (x Aᵀ) Bᵀ`."""

    a: Linear  # [rank, columns of this rank's input]
    b: Linear  # [len(out), rank]
    out: slice
    scale: float

    def __call__(self, x: Tensor) -> Tensor:  # [tokens, columns] -> [tokens, len(out)]
        return self.b(self.a(x)) * self.scale


@dataclass(slots=True)
class StepAdapters:
    """Which rows of the step that runs have an adapter: by its number, and None where that is all of them."""

    rows: list[tuple[int, Tensor | None]] = field(default_factory=list)

    def begin(self, spans: Sequence[tuple[int, range]], device: torch.device) -> None:
        """Another step.

        Args:
            spans: of each sequence the number of its adapter, 0 for none, and its rows.
        """
        owned: dict[int, list[int]] = {}
        for number, span in spans:
            owned.setdefault(number, []).extend(span)
        if len(owned) == 1:
            self.rows = [(number, None) for number in owned if number]
            return
        self.rows = [
            (number, torch.tensor(rows, device=device)) for number, rows in sorted(owned.items()) if number
        ]


class Beside:
    """The adapters of one projection, or of several that are fused.

    Args:
        step: whose rows have which.
    """

    def __init__(self, step: StepAdapters) -> None:
        self._step = step
        self._parts: dict[int, list[LowRank]] = {}  # by number of the adapter

    def put(self, number: int, parts: list[LowRank]) -> None:
        self._parts[number] = parts

    def remove(self, number: int) -> None:
        self._parts.pop(number, None)

    def add(self, y: Tensor, x: Tensor) -> None:
        """Add to `y` `[tokens, rows]` what the adapters of this step make of `x` `[tokens, columns]`."""
        for number, rows in self._step.rows:
            for part in self._parts.get(number, ()):
                if rows is None:
                    y[:, part.out] += part(x)
                else:
                    y[rows, part.out] += part(x[rows])


def place(
    linear: Linear,
    number: int,
    card: AdapterCard,
    empty: Empty,
    step: StepAdapters,
    known: dict[object, list[int]] | None,
) -> Iterator[Shard]:
    """Put an adapter beside `linear`, where it has something for it; what is to be read comes of it.

    Args:
        linear: a projection that lists its `sides`.
        number: of the adapter, from 1.
        known: what was found for products that give a row the same bits in any company, for this adapter to
            be such, too; None: it need not be.
    """
    parts, pieces = [], []
    wide: dict[str, Linear] = {}  # A by name: projections that are stored as one have it in common
    for side in linear.sides():
        whole_a, whole_b = (card.tensors.get(side.name + part) for part in (A, B))
        if whole_a is None:
            continue
        rank = whole_a.shape[0]
        if (a := wide.get(side.name)) is None:
            a = wide[side.name] = _product(empty(rank, len(side.columns)), known)
            pieces.append(Slice(side.name + A, whole_a.shape, a.weight, column=side.columns.start))
        b = _product(empty(len(side.rows), rank), known)
        parts.append(LowRank(a, b, slice(side.out, side.out + len(side.rows)), card.scale))
        pieces.append(Slice(side.name + B, whole_b.shape, b.weight, row=side.rows.start))
    if parts:
        if linear.beside is None:
            linear.beside = Beside(step)
        linear.beside.put(number, parts)
        yield Shard(pieces)


def _product(weight: Tensor, known: dict[object, list[int]] | None) -> Linear:
    product = Linear(weight)
    if known is not None:
        product.make_exact(known)
    return product


def take_away(linear: Linear, number: int) -> None:
    """Have that adapter beside `linear` no longer, if it is there."""
    if isinstance(linear.beside, Beside):
        linear.beside.remove(number)
