"""The experts that a router's logits choose, and their weights, on a GPU in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.kernels.dependent_triton import wait_for_previous
from workers.kernels.launch import Launcher


@triton.jit
def best_of(
    logit,  # [EXPERTS] float32
    correction,
    experts,
    least,
    scale,
    SIGMOID: tl.constexpr,  # for these see `choice_kernel`
    CORRECTED: tl.constexpr,
    NORMALISED: tl.constexpr,
    CHOSEN: tl.constexpr,
    PLACES: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    """The weights and numbers of a token's experts, `[PLACES]` both. Of equal experts the first is chosen;
    one whose logit is NaN comes last."""
    i, place = tl.arange(0, EXPERTS), tl.arange(0, PLACES)
    there = i < experts
    if SIGMOID:
        score = 1.0 / (1.0 + tl.exp(-logit))
    else:
        score = tl.exp(logit - tl.max(logit, 0))
        score /= tl.sum(score, 0)
    ranking = score
    if CORRECTED:
        ranking += tl.load(correction + i, mask=there, other=0.0)
    ranking = tl.where(there, ranking, float("-inf"))
    weight, number = tl.zeros((PLACES,), tl.float32), tl.zeros((PLACES,), tl.int32)
    for n in range(CHOSEN):
        best = tl.min(tl.where(ranking == tl.max(ranking, 0), i, experts - 1), 0)
        weight = tl.where(place == n, tl.sum(tl.where(i == best, score, 0.0), 0), weight)
        number = tl.where(place == n, best, number)
        ranking = tl.where(i == best, float("-inf"), ranking)
    if NORMALISED:
        weight /= tl.sum(weight, 0) + least
    return weight * scale, number


@triton.jit(do_not_specialize=["experts"])
def choice_kernel(
    logits,  # [tokens, experts] float32
    correction,  # [experts] float32, or anything
    weights,  # [tokens, CHOSEN] float32
    numbers,  # [tokens, CHOSEN] int64
    experts,
    least,  # is added to the sum that NORMALISED divides by
    scale,
    SIGMOID: tl.constexpr,  # each by itself; else by softmax
    CORRECTED: tl.constexpr,
    NORMALISED: tl.constexpr,
    CHOSEN: tl.constexpr,
    PLACES: tl.constexpr,  # the next power of two
    EXPERTS: tl.constexpr,  # the same
):
    """A program has a token."""
    wait_for_previous()
    token, i, place = tl.program_id(0).to(tl.int64), tl.arange(0, EXPERTS), tl.arange(0, PLACES)
    logit = tl.load(logits + token * experts + i, mask=i < experts, other=float("-inf"))
    weight, number = best_of(
        *(logit, correction, experts, least, scale, SIGMOID, CORRECTED, NORMALISED, CHOSEN, PLACES, EXPERTS)
    )
    into = token * CHOSEN + place
    tl.store(weights + into, weight, mask=place < CHOSEN)
    tl.store(numbers + into, number.to(tl.int64), mask=place < CHOSEN)


LAUNCH = Launcher(choice_kernel)


def choice(
    logits: Tensor, correction: Tensor | None, chosen: int, sigmoid: bool, least: float | None, scale: float
) -> tuple[Tensor, Tensor]:
    """See `workers.kernels.fused.choice`."""
    tokens, experts = logits.shape
    weights = logits.new_empty(tokens, chosen)
    numbers = torch.empty(tokens, chosen, dtype=torch.int64, device=logits.device)
    LAUNCH(
        (tokens, 1, 1),
        *(logits, logits if correction is None else correction, weights, numbers, experts),
        *(0.0 if least is None else least, scale),
        *(sigmoid, correction is not None, least is not None, chosen),
        *(triton.next_power_of_2(chosen), triton.next_power_of_2(experts)),
        num_warps=warps(experts),
    )
    return weights, numbers


def warps(experts: int) -> int:
    """Of a program: one, whose threads wait for no other's, while a thread has few experts."""
    return 1 if experts <= 256 else 4
