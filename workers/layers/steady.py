"""Products that give a row the same bits whatever stands beside it: what `exact: true` is made of.

A library chooses its kernel by the shape of a product, and two kernels may add in another order: a row that
is computed alone can differ in its last bit from the same row among others. Within one shape it cannot, as
long as its place does not matter either. So it is tried, once for each shape of a weight, which numbers of
rows agree with each other in every bit; products are cut into blocks of these sizes, the last one padded.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

COUNTS = (256, 128, 64, 32, 16, 8, 4, 2, 1)  # of rows that are tried
LANES = 64  # elements: what is left of a tensor after so many and so many, torch computes another way
SERIAL = 32_767  # elements: torch gives no thread a part of so few, whose ends would be computed another way

Product = Callable[[Tensor], Tensor]  # [rows, ...] -> [rows, ...]


def cancelling(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """A probe `[COUNTS[0], columns]` and a weight `[rows, columns]` whose products are nothing but rounding.

    So what is left of each shows the order in which it was added, which rounding to 16 bits mostly hides.
    """
    generator = torch.Generator(device).manual_seed(0)
    half = columns // 2
    order = torch.randperm(half, generator=generator, device=device)

    def random(count: int) -> Tensor:
        empty = torch.empty(count, half, dtype=dtype, device=device)
        return empty.uniform_(-8, 8, generator=generator)

    x, weight = random(COUNTS[0]), random(rows)
    odd = columns - 2 * half
    return (
        torch.cat([x, x[:, order], x[:, :odd]], dim=1),
        torch.cat([weight, -weight[:, order], torch.zeros_like(weight[:, :odd])], dim=1),
    )


def steady_counts(product: Product, probe: Tensor) -> list[int]:
    """Numbers of rows, the largest first, that give each row of `probe` the same bits in any place.

    Args:
        product: of so many rows.
        probe: `[COUNTS[0], ...]` random.
    """
    for most in COUNTS:
        rows = probe[:most]
        whole = product(rows)
        shift = max(1, most // 2 - 1)
        if most > 1 and not torch.equal(product(rows.roll(shift, 0)).roll(-shift, 0), whole):
            continue
        return [most, *(count for count in COUNTS if count < most and _agrees(product, rows, whole, count))]
    return [1]


def _agrees(product: Product, rows: Tensor, whole: Tensor, count: int) -> bool:
    """Whether `count` rows, from two places, have the bits that they have among all."""
    starts = (0, (len(rows) - count) // 2 | 1 if len(rows) > count else 0)
    return all(
        torch.equal(product(rows[start : start + count].contiguous()), whole[start : start + count])
        for start in starts
        if start + count <= len(rows)
    )


def blocks(total: int, counts: list[int]) -> list[tuple[int, int]]:
    """`total` rows as (first row, rows that are computed): the fewest blocks, and little padding."""
    found, start = [], 0
    while start < total:
        left = total - start
        fitting = [count for count in counts if count <= left]
        enough = [count for count in counts if count >= left]
        # pad the rest where that is no more than half of it, else take a block away from it first
        count = enough[-1] if enough and (not fitting or 2 * enough[-1] <= 3 * left) else fitting[0]
        found.append((start, count))
        start += count
    return found


def steadily(product: Product, x: Tensor, counts: list[int]) -> Tensor:
    """`product(x)` in blocks of these numbers of rows."""
    parts = []
    for start, count in blocks(len(x), counts):
        rows = x[start : start + count]
        if len(rows) == count:
            parts.append(product(rows))
            continue
        padded = x.new_zeros(count, *x.shape[1:])
        padded[: len(rows)] = rows
        parts.append(product(padded)[: len(rows)])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def elementwise(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function` of each element of `tensors`, all `[rows, columns]`: to the same bits in any company."""
    columns = tensors[0].shape[1]
    missing = -columns % LANES
    rows = max(1, SERIAL // (columns + missing))
    if missing:
        tensors = tuple(F.pad(each, (0, missing)) for each in tensors)
    parts = map(function, *(each.split(rows) for each in tensors))
    first = next(parts)
    if (total := len(tensors[0])) <= rows:
        y = first
    else:
        y = first.new_empty(total, *first.shape[1:])
        for part, made in zip(y.split(rows), chain([first], parts), strict=True):
            part.copy_(made)
    return y[:, :columns] if missing else y


def add_rows(out: Tensor, rows: Tensor, values: Tensor) -> None:
    """Add to each of `rows` what is there for it, in a fixed order."""
    if out.device.type == "cpu":
        out.index_add_(0, rows, values)
    else:
        out.index_put_((rows,), values, accumulate=True)  # on a GPU, index_add_ adds in any order
