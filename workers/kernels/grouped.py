"""Products of each pair of a token and an expert that it goes to, where no host asks how many there are."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.kernels.gates import Gates
from workers.kernels.pairs import Pairs
from workers.weights.blocks import Blocks, Weight


def takes(weight: Weight) -> bool:
    """Whether a kernel computes with that weight."""
    if weight.device.type != "cuda":
        return False
    from workers.kernels import grouped_triton  # for which Triton comes with torch where there is CUDA

    return grouped_triton.takes(weight)


def product(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    pairs: Pairs,
    y: Tensor,
    scales: Tensor | None = None,
    rows_at_once: int | None = None,
    gates: Gates | None = None,
) -> None:
    """`x Wᵀ + b` of each pair, with the weight and bias of its expert.

    Without `scales`, `x` is `[tokens, columns]` and `y` gets the pairs in the order of their experts. With
    them, `x` is what came of that, and `y` gets the pairs in the order of their numbers, multiplied. Rows of
    `y` that are nobody's stay as they are.

    Args:
        weight: `[experts * rows, columns]`.
        bias: `[experts, rows]`.
        y: `[pairs, rows]`, of which each row is contiguous; with gates half as many.
        scales: `[pairs]` float32, by number.
        rows_at_once: of a product, at least; None: as many as is best.
        gates: that some rows are of the others, where `opens` says so.
    """
    from workers.kernels import experts_triton, grouped_triton

    if opens(x, weight, pairs, rows_at_once):
        experts_triton.product(x, weight, bias, pairs, y, scales, rows_at_once, gates)
    else:
        grouped_triton.product(x, weight, bias, pairs, y, scales, rows_at_once)


def opens(x: Tensor, weight: Weight, pairs: Pairs, rows_at_once: int | None) -> bool:
    """Whether the kernel that `product` calls takes gates: that for few pairs."""
    from workers.kernels import experts_triton

    in_planes = isinstance(weight, Blocks) and weight.in_planes
    few = (rows_at_once or len(pairs.order) // (len(pairs.starts) - 1)) <= experts_triton.MOST
    return experts_triton.takes(weight, x.dtype) and (few or in_planes)


def reference(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    pairs: Pairs,
    y: Tensor,
    scales: Tensor | None = None,
    rows_at_once: int | None = None,
) -> None:
    """The same in plain torch: every pair with every expert, of which one counts."""
    experts = len(pairs.starts) - 1
    rows = weight.shape[0] // experts
    place = torch.arange(len(pairs.order), device=x.device)
    given = (x if scales is not None else x[pairs.order // pairs.chosen]).float()
    for number in range(experts):
        wide = weight[number * rows : (number + 1) * rows].float().to(x.dtype).float()
        found = given @ wide.t()
        if bias is not None:
            found += bias[number].float()
        its = ((place >= pairs.starts[number]) & (place < pairs.starts[number + 1])).unsqueeze(1)
        if scales is None:
            y.copy_(torch.where(its, found.to(y.dtype), y))
        else:
            scaled = (found * scales[pairs.order].unsqueeze(1)).to(y.dtype)
            y[pairs.order] = torch.where(its, scaled, y[pairs.order])
