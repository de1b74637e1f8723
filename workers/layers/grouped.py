"""One projection of many experts: rows stand in the order of their experts, and go each through its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.checkpoints.blocks import FORMATS
from workers.kernels import grouped
from workers.kernels.fused import has_triton
from workers.kernels.gates import Gates
from workers.kernels.pairs import Pairs
from workers.kernels.products import TILE, wants_planes
from workers.layers.linear import ColumnParallel, Linear, can_pack, has_kernels
from workers.weights.blocks import Blocks, Empty, Weight

ALIGNED = 16  # bytes: rows of what `grouped_mm` multiplies begin at multiples of them
TOGETHER = 6  # rows of an expert, from which on it pays to make float32 of its weight: then it is by itself


@dataclass(frozen=True, slots=True)
class Stacked:
    """A weight, or a bias, of all experts: theirs one after the other."""

    whole: Tensor  # [experts, ...]
    format: str | None  # of what stands there in blocks

    def flat(self, dtype: torch.dtype) -> Weight:  # [experts * rows, columns]
        """A weight, as one; `dtype` is that of what it is multiplied with."""
        flat = self.whole.flatten(0, 1)
        return flat if self.format is None else Blocks(FORMATS[self.format], flat, dtype)


class Stack(Empty):
    """Makes the tensors of one expert after the other, as views of such that hold those of all.

    Attributes:
        made: what there is, in the order in which an expert asks for its tensors.
        alike: all experts asked for the same. Those that did not got tensors by themselves.
    """

    def __init__(self, empty: Empty, count: int) -> None:
        super().__init__(empty.dtype, empty.device, empty.formats)
        self.made: list[Stacked] = []
        self.alike = True
        self._count, self._number, self._next = count, 0, 0

    def begin(self, number: int) -> None:
        """What is asked for from now on is of expert `number`, from 0."""
        self._number, self._next = number, 0

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self._part(shape, dtype or self.dtype, None)

    def weight(self, name: str, rows: int, columns: int) -> Weight:
        """The weight of that name, or some rows and columns of it."""
        if name not in self.formats:
            return self(rows, columns)
        form = FORMATS[self.formats[name]]
        return Blocks(form, self._part((rows, form.row_bytes(columns)), torch.uint8, form.name), self.dtype)

    def order(self, name: str, columns: int) -> Tensor | None:
        """As `Empty.order`; what reads all experts at once puts no input in the order of one."""
        found = super().order(name, columns)
        self.alike = self.alike and found is None
        return found

    def _part(self, shape: tuple[int, ...], dtype: torch.dtype, form: str | None) -> Tensor:
        place, self._next = self._next, self._next + 1
        if self._number == 0:
            self.made.append(Stacked(super().__call__(self._count, *shape, dtype=dtype), form))
        stacked = self.made[place] if place < len(self.made) else None
        if stacked is None or (stacked.whole.shape[1:], stacked.format) != (shape, form):
            self.alike = False
            return super().__call__(*shape, dtype=dtype)
        return stacked.whole[self._number]


class GroupedLinear:
    """The experts of this rank, whose weights stand together where something computes with them so.

    On a CPU that is a call of torch for many experts with few rows each, which is level with transformers; a
    call an expert was 5 to 15 % behind. Nor is float32 packed, which costs where rows are few: on one core of
    a Zen 3, 64 experts of 1024 x 384 take 4.0 ms for a token instead of 4.7, and 24 instead of 29 for eight.

    Args:
        count: experts.
        make: makes an expert's, from its number (from 0) and what makes its tensors.

    Attributes:
        exact: each row is to have the same bits in any company.
        stacks: weights `[experts * rows, columns]` and biases `[experts, rows]`, of projections in unlike
            formats one after the other; empty: they do not stand together.
    """

    def __init__(self, count: int, make: Callable[[int, Empty], Linear], empty: Empty) -> None:
        self.exact = False
        self._in_order = False  # that weights in blocks are multiplied in
        self.stacks: list[tuple[Weight, Tensor | None]] = []
        self.experts: list[Linear] = []
        self._plain: Tensor | None = None  # [experts, rows, columns], of which `_together` makes products
        if can_pack(empty.dtype, empty.device) and empty.dtype != torch.float32:
            self.experts += [make(number, empty) for number in range(count)]
            return
        stack = Stack(empty, count)
        for number in range(count):
            stack.begin(number)
            self.experts.append(make(number, stack))
            self.experts[number].packs = False
        if not stack.alike or not count:
            return
        weights, biases = ([each for each in stack.made if each.whole.dim() == dim] for dim in (3, 2))
        has_bias = biases and self.experts[0].biased
        self.stacks = [
            (each.flat(empty.dtype), biases[i].whole if has_bias else None) for i, each in enumerate(weights)
        ]
        whole = weights[0].whole
        aligned = whole.stride(1) * whole.itemsize % ALIGNED == 0
        if empty.device.type == "cpu" and len(weights) == 1 and weights[0].format is None and aligned:
            self._plain = whole
        self._most_rows = None if has_kernels(empty.dtype, empty.device) else TOGETHER

    def __call__(self, x: Tensor, counts: Sequence[int], first: int = 0) -> Tensor:  # [pairs, columns]
        """What each row gives with its expert: `[pairs, rows]`.

        Args:
            counts: rows of each expert from number `first` on; at least one in all.
        """
        parts, start = [], 0
        for run in self._runs(counts):
            rows = sum(counts[number] for number in run)
            if not rows:
                continue
            part, start = x[start : start + rows], start + rows
            if len(run) > 1:
                experts = slice(first + run.start, first + run.stop)
                parts.append(self._together(part, counts[run.start : run.stop], experts))
            else:
                parts.append(self.experts[first + run.start](part))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @property
    def takes_pairs(self) -> bool:
        """Whether `of_pairs` can be asked."""
        return bool(self.stacks) and all(grouped.takes(weight) for weight, _ in self.stacks)

    @property
    def rows(self) -> int:
        """Columns of what `of_pairs` gives."""
        return sum(weight.shape[0] for weight, _ in self.stacks) // len(self.experts)

    def gated(self, x: Tensor, pairs: Pairs, gates: Gates) -> Tensor | None:  # [pairs, rows / 2]
        """What `of_pairs` gives, once its gates have opened it, where one kernel makes that of it."""
        if not self._in_order:
            self.put_in_order()
        (weight, bias), *others = self.stacks
        at_once = TILE if self.exact else None
        if others or not has_triton(x.device) or not grouped.opens(x, weight, pairs, at_once):
            return None
        y = x.new_empty(len(pairs.order), self.rows // 2)
        grouped.product(x, weight, bias, pairs, y, None, at_once, gates)
        return y

    def of_pairs(self, x: Tensor, pairs: Pairs, y: Tensor, scales: Tensor | None = None) -> None:
        """As `workers.kernels.grouped.product`, for what is stored apart too: `y` has the columns of all."""
        if not self._in_order:
            self.put_in_order()
        start, at_once = 0, TILE if self.exact else None
        for weight, bias in self.stacks:
            end = start + weight.shape[0] // len(self.experts)
            grouped.product(x, weight, bias, pairs, y[:, start:end], scales, at_once)
            start = end

    def put_in_order(self) -> None:
        """Put what is in blocks in the order in which a kernel reads it fast, once all of it is there: with a
        load, or else before the first product."""
        for place, (weight, bias) in enumerate(self.stacks):
            if not isinstance(weight, Blocks) or not wants_planes(weight):
                continue
            whole = weight.to_planes()
            self.stacks[place] = whole, bias
            rows = whole.shape[0] // len(self.experts)
            for number, expert in enumerate(self.experts):
                parts = expert.parts if isinstance(expert, ColumnParallel) else [expert]
                parts[place].weight = whole[number * rows : (number + 1) * rows]
            moved = whole.data is not weight.data
            del weight
            if moved:  # what it was in is too small for the next one
                torch.cuda.empty_cache()
        self._in_order = True

    def _runs(self, counts: Sequence[int]) -> Iterator[range]:
        """Experts that follow each other, to be computed together."""
        if self._plain is None or self.exact:
            yield from (range(number, number + 1) for number in range(len(counts)))
            return
        start = 0
        for number, count in enumerate(counts):
            if self._most_rows is not None and count > self._most_rows:
                if number > start:
                    yield range(start, number)
                yield range(number, number + 1)
                start = number + 1
        if start < len(counts):
            yield range(start, len(counts))

    def _together(self, x: Tensor, counts: Sequence[int], experts: slice) -> Tensor:
        ends = torch.tensor(list(accumulate(counts)), dtype=torch.int32)
        y = F.grouped_mm(x, self._plain[experts].transpose(1, 2), offs=ends)
        if (bias := self.stacks[0][1]) is not None:
            y += bias[experts].repeat_interleave(torch.tensor(counts), dim=0)
        return y
