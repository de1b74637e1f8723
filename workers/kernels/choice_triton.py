"""The experts that a router's logits choose, and their weights, on a GPU in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.kernels.choosing import Choosing
from workers.kernels.dependent_triton import wait_for_previous
from workers.kernels.launch import Launcher


@triton.jit
def experts_by_group(experts, size, EXPERTS: tl.constexpr, GROUPS: tl.constexpr):
    """The numbers of experts `[EXPERTS]`, of each group, which has `size` of them, in a row of as many as a
    power of two; `experts` where there is none."""
    i, row = tl.arange(0, EXPERTS), EXPERTS // GROUPS
    expert = i // row * size + i % row
    return tl.where((i % row < size) & (expert < experts), expert, experts)


@triton.jit
def within_best_groups(ranking, TWO: tl.constexpr, GROUPS: tl.constexpr, GROUPS_CHOSEN: tl.constexpr):
    """`ranking`, and minus infinity for experts of other groups than the best: by their best expert, or TWO.
    Of equal groups the first is chosen."""
    row: tl.constexpr = ranking.shape[0] // GROUPS
    group, i = tl.arange(0, GROUPS), tl.arange(0, row)[None, :]
    each = tl.reshape(ranking, (GROUPS, row))
    worth = tl.max(each, 1)
    if TWO:
        first = tl.min(tl.where(each == worth[:, None], i, row), 1)
        worth += tl.max(tl.where(i == first[:, None], float("-inf"), each), 1)
    is_chosen = group < 0
    for _ in range(GROUPS_CHOSEN):
        best = tl.min(tl.where(worth == tl.max(worth, 0), group, GROUPS), 0)
        is_chosen |= group == best
        worth = tl.where(group == best, float("-inf"), worth)
    return tl.reshape(tl.where(is_chosen[:, None], each, float("-inf")), (GROUPS * row,))


@triton.jit
def best_of(
    logit,  # [EXPERTS] float32
    i,  # [EXPERTS], their numbers, of `experts_by_group`
    correction,
    experts,
    least,
    scale,
    SIGMOID: tl.constexpr,  # for these see `choice_kernel`
    BY_LOGITS: tl.constexpr,
    CORRECTED: tl.constexpr,
    NORMALISED: tl.constexpr,
    CHOSEN: tl.constexpr,
    PLACES: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUPS_CHOSEN: tl.constexpr,
):
    """The weights and numbers of a token's experts, `[PLACES]` both. Of equal experts the first is chosen;
    one whose logit is NaN comes last."""
    place = tl.arange(0, PLACES)
    there = i < experts
    if SIGMOID:
        score = 1.0 / (1.0 + tl.exp(-logit))
    else:
        score = tl.exp(logit - tl.max(logit, 0))
        score /= tl.sum(score, 0)
    ranking = logit if BY_LOGITS else score
    if CORRECTED:
        ranking += tl.load(correction + i, mask=there, other=0.0)
    ranking = tl.where(there, ranking, float("-inf"))
    if GROUPS > 1:
        ranking = within_best_groups(ranking, CORRECTED, GROUPS, GROUPS_CHOSEN)
    weight, number = tl.zeros((PLACES,), tl.float32), tl.zeros((PLACES,), tl.int32)
    for n in range(CHOSEN):
        most = tl.max(tl.where(there, ranking, float("-inf")), 0)
        best = tl.min(tl.where(there & (ranking == most), i, experts - 1), 0)
        weight = tl.where(place == n, tl.sum(tl.where(i == best, score, 0.0), 0), weight)
        number = tl.where(place == n, best, number)
        there &= i != best
    if NORMALISED:
        weight /= tl.sum(weight, 0) + least
    return weight * scale, number


@triton.jit(do_not_specialize=["experts", "size"])
def choice_kernel(
    logits,  # [tokens, experts] float32
    correction,  # [experts] float32, or anything
    weights,  # [tokens, CHOSEN] float32
    numbers,  # [tokens, CHOSEN] int64
    experts,
    size,  # of a group
    least,  # is added to the sum that NORMALISED divides by
    scale,
    SIGMOID: tl.constexpr,  # each by itself; else by softmax
    BY_LOGITS: tl.constexpr,  # the best are those of the largest logits, not scores
    CORRECTED: tl.constexpr,
    NORMALISED: tl.constexpr,
    CHOSEN: tl.constexpr,
    PLACES: tl.constexpr,  # the next power of two
    GROUPS: tl.constexpr,  # the same
    GROUPS_CHOSEN: tl.constexpr,
    EXPERTS: tl.constexpr,  # places for them, of GROUPS rows
):
    """A program has a token."""
    wait_for_previous()
    token, place = tl.program_id(0).to(tl.int64), tl.arange(0, PLACES)
    i = experts_by_group(experts, size, EXPERTS, GROUPS)
    logit = tl.load(logits + token * experts + i, mask=i < experts, other=float("-inf"))
    weight, number = best_of(
        *(logit, i, correction, experts, least, scale),
        *(SIGMOID, BY_LOGITS, CORRECTED, NORMALISED, CHOSEN, PLACES, GROUPS, GROUPS_CHOSEN),
    )
    into = token * CHOSEN + place
    tl.store(weights + into, weight, mask=place < CHOSEN)
    tl.store(numbers + into, number.to(tl.int64), mask=place < CHOSEN)


LAUNCH = Launcher(choice_kernel)


def choice(logits: Tensor, correction: Tensor | None, how: Choosing) -> tuple[Tensor, Tensor]:
    """See `workers.kernels.fused.choice`."""
    tokens, experts = logits.shape
    compiled_for = constants(experts, correction is not None, how)
    weights = logits.new_empty(tokens, how.chosen)
    numbers = torch.empty(tokens, how.chosen, dtype=torch.int64, device=logits.device)
    LAUNCH(
        (tokens, 1, 1),
        *(logits, logits if correction is None else correction, weights, numbers),
        *numbers_of(experts, how),
        *compiled_for.values(),
        num_warps=warps(compiled_for["EXPERTS"]),
    )
    return weights, numbers


def numbers_of(experts: int, how: Choosing) -> tuple[int, int, float, float]:
    """From `experts` to `scale`, as kernels take them."""
    return experts, experts // how.groups, 0.0 if how.least is None else how.least, how.scale


def constants(experts: int, corrected: bool, how: Choosing) -> dict[str, int]:
    """What they are compiled for, in their order."""
    groups = triton.next_power_of_2(how.groups)
    return {
        "SIGMOID": how.sigmoid,
        "BY_LOGITS": how.by_logits,
        "CORRECTED": corrected,
        "NORMALISED": how.least is not None,
        "CHOSEN": how.chosen,
        "PLACES": triton.next_power_of_2(how.chosen),
        "GROUPS": groups,
        "GROUPS_CHOSEN": how.groups_chosen,
        "EXPERTS": groups * triton.next_power_of_2(experts // how.groups),
    }


def warps(places: int) -> int:
    """Of a program: one, whose threads wait for no other's, while a thread has few places for experts."""
    return 1 if places <= 256 else 4
