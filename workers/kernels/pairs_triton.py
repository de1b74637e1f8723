"""Few pairs of a token and an expert, sorted in one launch of a GPU: as `Pairs.of` does."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.kernels.dependent_triton import wait_for_previous
from workers.kernels.launch import Launcher

MOST = 512  # pairs: each is compared with all others
PROGRAMS = 32


@triton.jit(do_not_specialize=["pairs", "experts"])
def pairs_kernel(
    numbers,  # [pairs] int64
    order,  # [pairs] int64
    starts,  # [experts + 1] int32
    pairs,
    experts,
    PAIRS: tl.constexpr,  # at most
    EXPERTS: tl.constexpr,  # starts that a program finds
    PIECE: tl.constexpr,  # pairs that a program has
):
    """A pair's place is the number of those before it: of lower experts, or earlier ones of its own."""
    wait_for_previous()
    every = tl.arange(0, PAIRS)
    theirs = tl.load(numbers + every, mask=every < pairs, other=1 << 30).to(tl.int32)
    mine = tl.program_id(0) * PIECE + tl.arange(0, PIECE)
    its = tl.load(numbers + mine, mask=mine < pairs, other=0).to(tl.int32)
    is_before = (theirs[None, :] < its[:, None]) | (
        (theirs[None, :] == its[:, None]) & (every[None, :] < mine[:, None])
    )
    place = tl.sum(is_before.to(tl.int32), axis=1)
    tl.store(order + place, mine.to(tl.int64), mask=mine < pairs)
    expert = tl.program_id(0) * EXPERTS + tl.arange(0, EXPERTS)
    lower = tl.sum((theirs[None, :] < expert[:, None]).to(tl.int32), axis=1)
    tl.store(starts + expert, lower, mask=expert <= experts)


LAUNCH = Launcher(pairs_kernel)


def sorted_pairs(numbers: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """`order` and `starts` of `Pairs`, of `numbers` `[pairs]`, at most `MOST`."""
    order = torch.empty_like(numbers)
    starts = torch.empty(experts + 1, dtype=torch.int32, device=numbers.device)
    share = triton.next_power_of_2(triton.cdiv(experts + 1, PROGRAMS))
    # one compilation for any number of pairs
    LAUNCH(
        (PROGRAMS, 1, 1),
        numbers,
        order,
        starts,
        len(numbers),
        experts,
        MOST,
        share,
        MOST // PROGRAMS,
        num_warps=4,
    )
    return order, starts
