"""Matrix products with weights that are spread over the ranks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import groupby
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.kernels import dense
from workers.kernels.compiled import ACTIVATIONS
from workers.kernels.gates import Gates
from workers.kernels.products import gated_product, product, steady_rows, wants_planes, widened
from workers.layers.steady import COUNTS, cancelling, steadily, steady_counts
from workers.parallel import RankGroup
from workers.weights.blocks import Blocks, Empty, Weight
from workers.weights.loader import Slice

WIDE_ROWS = 3  # of input, from which on it pays to make float32 of a weight first


class Side(NamedTuple):
    """A projection in a product: what of it this rank has, and where in the product it is."""

    name: str  # in the checkpoint, without `.weight`
    rows: range  # of the whole
    columns: range  # the same
    out: int  # column of the product where its rows begin


class Adds(Protocol):
    """What may stand beside a product."""

    def add(self, y: Tensor, x: Tensor) -> None:
        """Add to the product `y` of `x`, in place."""
        ...


class Linear:
    """`x Wᵀ + b` with the weight `[rows, columns]` that this rank holds.

    Where its columns are kept in another order, `order` has the number of the input at each place.

    On a CPU a weight of 16 bits stays as it is where the compiled kernels take it (`workers.kernels.dense`):
    `product` few rows, or any, and `many` more than these. What is left to torch is packed once, after
    loading, into the layout that oneDNN's kernels read. Measured on two cores with AVX512-BF16 over the
    weights of a 0.6B model: one row takes 30 ms instead of 45, and with one thread 36 instead of 80.

    On a CPU that has no instructions for its type, torch has a weight made float32 block by block, which is
    exact, for any but the fewest rows. Measured on a Zen 3 core, 6144 x 1024 in bfloat16: 512 rows take 96 ms
    of it instead of 694, 8 rows 6 instead of 11.
    """

    beside: Adds | None = None
    packs = True  # False: the weight stays as it is

    def __init__(self, weight: Weight, bias: Tensor | None = None, order: Tensor | None = None) -> None:
        self.weight: Weight | None = weight
        self._shape = weight.shape
        self.bias, self.order = bias, order
        self.packed: Tensor | None = None
        self._counts: list[int] | None = None  # of rows; None: any
        self._most_rows = dense.most_tokens(weight.dtype)  # that the compiled kernel multiplies

    def sides(self) -> Iterator[Side]:
        """The projections that something may stand beside."""
        return iter(())

    def make_exact(self, known: dict[object, list[int]]) -> None:
        """From now on give a row the same bits whatever stands beside it.

        Args:
            known: what was found for other products of the same kind; this one's is added.
        """
        weight = self.weight
        if isinstance(weight, Tensor) and dense.takes(weight):
            self._most_rows = dense.ALL
            return
        form = weight.format.name if isinstance(weight, Blocks) else None
        kept = self.packed if weight is None else weight
        key = (*self._shape, kept.dtype, self.packed is None, form, self.bias is None)
        if key not in known:
            known[key] = self._block_counts(weight) if isinstance(weight, Blocks) else self._dense_counts()
        self._counts = known[key]

    def _dense_counts(self) -> list[int]:
        kept = self.packed if self.weight is None else self.weight
        probe, weight = cancelling(*self._shape, kept.dtype, kept.device)
        bias = None if self.bias is None else torch.zeros_like(self.bias)
        other = Linear(weight, bias)  # with a bias it may be another kernel
        if self.packed is not None:
            other.pack()
        counts = steady_counts(other, probe)
        if has_kernels(kept.dtype, kept.device):
            return counts
        # few rows are a product of another kind, and both may agree on the probe and not on all else
        return [count for count in counts if count >= WIDE_ROWS] or counts

    def _block_counts(self, weight: Blocks) -> list[int]:
        steady = steady_rows(weight)
        if steady is not None:
            return [count for count in COUNTS if count in steady]
        generator = torch.Generator(weight.device).manual_seed(0)
        # in float32, whose last bits show what rounding to 16 bits would hide; sums are made in it either way
        probe = torch.randn(COUNTS[0], self._shape[1], generator=generator, device=weight.device)
        return steady_counts(partial(widened, weight=weight, bias=None), probe)

    @property
    def biased(self) -> bool:
        return self.bias is not None

    def pack(self) -> None:
        """Trade the weight for its packed form, where there is a kernel that takes it."""
        if self.packs and isinstance(self.weight, Blocks) and wants_planes(self.weight):
            self.weight = self.weight.to_planes()
        if not self.packs or not isinstance(self.weight, Tensor) or dense.takes(self.weight):
            return
        if can_pack(self.weight.dtype, self.weight.device):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, 1)
            self.weight = None

    @property
    def nbytes(self) -> int:
        weight = torch.ops.mkldnn._nbytes(self.packed) if self.weight is None else self.weight.nbytes
        return weight + sum(each.nbytes for each in (self.bias, self.order) if each is not None)

    def __call__(self, x: Tensor) -> Tensor:  # [tokens, columns] -> [tokens, rows]
        y = self._product(x) if self._counts is None else steadily(self._product, x, self._counts)
        if self.beside is not None:
            self.beside.add(y, x)
        return y

    def _product(self, x: Tensor) -> Tensor:
        if self.packed is not None:
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        if isinstance(self.weight, Blocks):
            return product(x if self.order is None else x[:, self.order], self.weight, self.bias)
        if x.shape[0] <= self._most_rows and dense.takes(self.weight):
            return dense.product(x, self.weight, self.bias)
        if dense.takes_many(self.weight):  # here are more than `dense.FEW` rows
            return dense.many(x, self.weight, self.bias)
        if x.shape[0] < WIDE_ROWS or has_kernels(x.dtype, x.device):
            return F.linear(x, self.weight, self.bias)
        return widened(x, self.weight, self.bias)

    def gated(self, x: Tensor, activation: str) -> Tensor | None:  # [tokens, rows / 2]
        """The first half of the product, activated, times the second, where one kernel makes that of it."""
        if self._counts is not None or self.beside is not None:
            return None
        if isinstance(self.weight, Blocks):
            gates = Gates.of(activation) if self.order is None else None
            return None if gates is None else gated_product(x, self.weight, self.bias, gates)
        if not isinstance(self.weight, Tensor):
            return None
        if x.shape[0] <= self._most_rows or activation not in ACTIVATIONS:
            return None
        if not dense.takes_many(self.weight):
            return None
        return dense.many(x, self.weight, self.bias, activation)


class ColumnParallel(Linear):
    """Projections of the same input, fused to one product; every rank has its rows of each.

    Projections that are kept in unlike formats or orders are products by themselves, one after the other.

    Args:
        projections: name in the checkpoint (without `.weight`), rows there, and this rank's rows.
        columns: size of the input.
    """

    def __init__(
        self, projections: list[tuple[str, int, range]], columns: int, bias: bool, empty: Empty
    ) -> None:
        self.projections, self.columns = projections, columns
        self.parts: list[Linear] = []
        self._orders: list[Slice] = []

        def kept(projection: tuple[str, int, range]) -> tuple[str | None, str | None]:
            name = f"{projection[0]}.weight"
            return empty.formats.get(name), empty.formats.orders.get(name)

        for (_, order_name), group in groupby(projections, kept):
            alike = list(group)
            rows = sum(len(share) for _, _, share in alike)
            name = f"{alike[0][0]}.weight"
            order = empty.order(name, columns)
            self.parts.append(Linear(empty.weight(name, rows, columns), empty(rows) if bias else None, order))
            if order is not None:
                self._orders.append(Slice(order_name, (columns,), order))

    def sides(self) -> Iterator[Side]:
        end = 0
        for name, _, share in self.projections:
            yield Side(name, share, range(self.columns), end)
            end += len(share)

    def make_exact(self, known: dict[object, list[int]]) -> None:
        for part in self.parts:
            part.make_exact(known)

    @property
    def biased(self) -> bool:
        return self.parts[0].biased

    def pack(self) -> None:
        for part in self.parts if self.packs else ():
            part.pack()

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def gated(self, x: Tensor, activation: str) -> Tensor | None:
        alone = len(self.parts) == 1 and self.beside is None
        return self.parts[0].gated(x, activation) if alone else None

    def __call__(self, x: Tensor) -> Tensor:  # [tokens, columns] -> [tokens, rows]
        products = [part(x) for part in self.parts]
        y = products[0] if len(products) == 1 else torch.cat(products, dim=1)
        if self.beside is not None:
            self.beside.add(y, x)
        return y

    def pieces(self) -> Iterator[Slice]:
        parts = iter(self.parts)
        end = left = 0
        for name, rows, share in self.projections:
            if not left:
                part = next(parts)
                end, left = 0, part.weight.shape[0]
            start, end, left = end, end + len(share), left - len(share)
            whole = (rows, self.columns)
            yield Slice.of(f"{name}.weight", whole, part.weight[start:end], row=share.start)
            if part.bias is not None:
                yield Slice(f"{name}.bias", whole[:1], part.bias[start:end], row=share.start)
        yield from self._orders


class RowPart(Linear):
    """A projection whose input is spread over the ranks: each has a part of the sum.

    Args:
        name: in the checkpoint, without `.weight`.
        rows: size of the output.
        columns: size of the whole input, which the ranks of `group` divide evenly.
        biased: the first rank's part has a bias.
    """

    def __init__(
        self, name: str, rows: int, columns: int, group: RankGroup, empty: Empty, *, biased: bool = False
    ) -> None:
        self.name, self.shape, self.group = name, (rows, columns), group
        self.share = group.share(columns)
        self.stored_bias = empty(rows) if biased else None
        bias = self.stored_bias if group.rank == 0 else None
        weight = f"{name}.weight"
        self._whole_order, self._order_name = empty.order(weight, columns), empty.formats.orders.get(weight)
        order = None if self._whole_order is None else self._whole_order[self.share.start : self.share.stop]
        super().__init__(empty.weight(weight, rows, len(self.share)), bias, order)

    def _product(self, x: Tensor) -> Tensor:
        return super()._product(x if self.order is None else self.group.all_gather(x))

    def sides(self) -> Iterator[Side]:
        yield Side(self.name, range(self.shape[0]), self.share, 0)

    def pieces(self) -> Iterator[Slice]:
        yield Slice.of(f"{self.name}.weight", self.shape, self.weight, column=self.share.start)
        if self._whole_order is not None:
            yield Slice(self._order_name, self.shape[1:], self._whole_order)
        if self.stored_bias is not None:
            yield Slice(f"{self.name}.bias", self.shape[:1], self.stored_bias)


class RowParallel(RowPart):
    """The same with the sum over the ranks."""

    def __init__(
        self, name: str, rows: int, columns: int, bias: bool, group: RankGroup, empty: Empty
    ) -> None:
        super().__init__(name, rows, columns, group, empty, biased=bias)

    def __call__(self, x: Tensor) -> Tensor:  # [tokens, len(share)] -> [tokens, rows]
        return self.group.all_reduce(super().__call__(x))


def has_kernels(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products of that type are fast there, and not only possible."""
    if device.type != "cpu" or dtype == torch.float32:
        return True
    if dtype == torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether there is a kernel for a weight of that type, packed."""
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and has_kernels(dtype, device)
