"""A router for few tokens on a GPU in one launch: logits, what they choose, and its pairs in their order.

A program has some experts' logits of one token. The last of a token chooses for it, and the last of these
sorts all pairs: who that is decides nothing, since each logit is the sum of one program, in one order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.kernels.choice_triton import best_of, constants, experts_by_group, numbers_of
from workers.kernels.choosing import Choosing
from workers.kernels.dependent_triton import wait_for_previous
from workers.kernels.launch import Launcher
from workers.kernels.pairs import Pairs
from workers.kernels.skinny import counters

FEW = 16  # tokens, each of which reads all weights
MOST = 16  # experts of a token: more pairs would take more registers than there are
BLOCK_E = 2  # experts of a program
BLOCK_K = 2048  # columns that it reads at once, at most
WARPS = 4
PIECE = tl.constexpr(32)  # pairs, or experts, whose places are found at once


@triton.jit(do_not_specialize=["tokens", "experts", "size", "first", "mine"])
def router_kernel(
    x,  # [tokens, columns]
    w,  # [experts, columns] float32
    bias,  # [experts] float32, or anything
    correction,  # the same
    logits,  # [tokens, experts] float32
    numbers,  # [tokens, CHOSEN] int32
    weights,  # [tokens, CHOSEN] float32
    order,  # [tokens * CHOSEN] int64
    starts,  # [mine + 1] int32
    done,  # [tokens + 1] int32 zeros, and zeros again afterwards
    tokens,
    first,  # of this rank's experts
    mine,  # how many these are
    columns,
    experts,  # for these see `workers.kernels.choice_triton`
    size,
    least,
    scale,
    SIGMOID: tl.constexpr,
    BY_LOGITS: tl.constexpr,
    CORRECTED: tl.constexpr,
    NORMALISED: tl.constexpr,
    CHOSEN: tl.constexpr,
    PLACES: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUPS_CHOSEN: tl.constexpr,
    EXPERTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PAIRS: tl.constexpr,  # at most, a power of two
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    wait_for_previous()
    token, e = tl.program_id(1), tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    rows = w + tl.minimum(e, experts - 1)[:, None] * columns
    sums = tl.zeros((BLOCK_E, BLOCK_K), tl.float32)
    for start in range(0, columns, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        part = tl.load(x + token * columns + k, mask=k < columns, other=0.0).to(tl.float32)
        sums += part[None, :] * tl.load(rows + k[None, :], mask=(k < columns)[None, :], other=0.0)
    logit = tl.sum(sums, 1)
    if HAS_BIAS:
        logit += tl.load(bias + e, mask=e < experts, other=0.0)
    tl.store(logits + token * experts + e, logit, mask=e < experts, cache_modifier=".cg")
    tl.debug_barrier()  # what all threads wrote is there before one of them says so
    if tl.atomic_add(done + token, 1) == tl.num_programs(0) - 1:
        tl.store(done + token, 0)
        i, place = experts_by_group(experts, size, EXPERTS, GROUPS), tl.arange(0, PLACES)
        at = logits + token * experts + i
        all_logits = tl.load(at, mask=i < experts, other=float("-inf"), cache_modifier=".cg")
        weight, number = best_of(
            *(all_logits, i, correction, experts, least, scale),
            *(SIGMOID, BY_LOGITS, CORRECTED, NORMALISED, CHOSEN, PLACES, GROUPS, GROUPS_CHOSEN),
        )
        into = token * CHOSEN + place
        tl.store(weights + into, weight, mask=place < CHOSEN)
        tl.store(numbers + into, number, mask=place < CHOSEN, cache_modifier=".cg")
        tl.debug_barrier()
        if tl.atomic_add(done + tokens, 1) == tokens - 1:
            tl.store(done + tokens, 0)
            every, pairs = tl.arange(0, PAIRS), tokens * CHOSEN
            theirs = _own(numbers, every, pairs, first, mine)
            for begin in range(0, pairs, PIECE):
                pair = begin + tl.arange(0, PIECE)
                its = _own(numbers, pair, pairs, first, mine)[:, None]
                is_earlier = (theirs[None, :] == its) & (every[None, :] < pair[:, None])
                before = tl.sum(((theirs[None, :] < its) | is_earlier).to(tl.int32), 1)
                tl.store(order + before, pair.to(tl.int64), mask=pair < pairs)
            for begin in range(0, mine + 1, PIECE):
                expert = begin + tl.arange(0, PIECE)
                lower = tl.sum((theirs[None, :] < expert[:, None]).to(tl.int32), 1)
                tl.store(starts + expert, lower, mask=expert <= mine)


@triton.jit
def _own(numbers, pair, pairs, first, mine):
    """The experts of pairs, as this rank counts its own; others', and those that are none, come behind."""
    number = tl.load(numbers + pair, mask=pair < pairs, other=-1, cache_modifier=".cg") - first
    return tl.where(pair < pairs, tl.where((number >= 0) & (number < mine), number, mine), mine + 1)


LAUNCH = Launcher(router_kernel)


def routed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    correction: Tensor | None,
    how: Choosing,
    mine: range,
) -> tuple[Tensor, Pairs]:
    """See `workers.kernels.fused.routed`; of up to `FEW` tokens, and `MOST` experts of each."""
    x = x.contiguous()
    (tokens, columns), experts, chosen = x.shape, len(weight), how.chosen
    logits, weights = (x.new_empty(tokens, size, dtype=torch.float32) for size in (experts, chosen))
    numbers, starts = (x.new_empty(size, dtype=torch.int32) for size in (tokens * chosen, len(mine) + 1))
    order = x.new_empty(tokens * chosen, dtype=torch.int64)
    LAUNCH(
        (triton.cdiv(experts, BLOCK_E), tokens, 1),
        *(x, weight, x if bias is None else bias, x if correction is None else correction),
        *(logits, numbers, weights, order, starts, counters(x.device)),
        *(tokens, mine.start, len(mine), columns, *numbers_of(experts, how)),
        *constants(experts, correction is not None, how).values(),
        *(bias is not None, most_pairs(tokens, chosen)),
        *(BLOCK_E, min(BLOCK_K, triton.next_power_of_2(columns))),
        num_warps=WARPS,
    )
    return weights.view(-1), Pairs(order, starts, chosen)


def most_pairs(tokens: int, chosen: int) -> int:
    """That are sorted, as the kernel is compiled for: of one token, or of any number."""
    return triton.next_power_of_2(chosen if tokens == 1 else FEW * chosen)
