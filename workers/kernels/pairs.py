"""Pairs of a token and an expert that it goes to, sorted where they lie."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """Pairs of a token and an expert, in the order of their experts.

    A pair's number is `token * chosen + n`, where its expert is the token's n-th.
    """

    order: Tensor  # [pairs] int64, numbers of pairs
    starts: Tensor  # [experts + 1] int32: where each expert's begin; what follows the last one's is nobody's
    chosen: int  # experts a token goes to

    @classmethod
    def of(cls, numbers: Tensor, experts: int, chosen: int) -> Pairs:
        """Those of `numbers` `[tokens * chosen]`: of each pair its expert, or `experts` for none."""
        if numbers.is_cuda:
            from workers.kernels import pairs_triton  # for which Triton comes with torch where there is CUDA

            if len(numbers) <= pairs_triton.MOST:
                return cls(*pairs_triton.sorted_pairs(numbers, experts), chosen)
        by_expert, order = numbers.sort(stable=True)
        bounds = torch.arange(experts + 1, device=numbers.device)
        return cls(order, torch.searchsorted(by_expert, bounds, out_int32=True), chosen)
