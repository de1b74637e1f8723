"""What a step computes between its products, on a GPU: each thing in one launch, by Triton.

Each has a plain reference where it is called, which is taken where `has_triton` says no. Triton comes with
torch where there is CUDA, and is imported when it is used. All is float32 until a result is kept.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor

from workers.kernels.choosing import Choosing
from workers.kernels.gates import Gates
from workers.kernels.pairs import Pairs

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # kernels run on a CPU as well, as tests want it


class Turn(NamedTuple):
    """What is still to be done to query and key heads, in this order, when attention gets them."""

    weights: tuple[Tensor, Tensor] | None = None  # [head_dim] each: heads are normalised, each by itself
    offset: float = 0.0  # of these weights
    eps: float = 0.0
    angles: tuple[Tensor, Tensor] | None = None  # cosines and sines, [tokens, 1, turned] float32
    interleaved: bool = False  # as of `workers.layers.rotary.Rotary`
    then_normed: bool = False  # without weights
    growth: Tensor | None = None  # of queries, [tokens, 1, 1] float32


def has_triton(device: torch.device) -> bool:
    """Whether Triton's kernels compute there."""
    return device.type == "cuda" or INTERPRETED


def norm(
    x: Tensor,  # [..., size]
    weight: Tensor,  # [size]
    eps: float,
    offset: float,
    residual: Tensor | None = None,  # as x
) -> Tensor:
    """`residual + x / rms(x) * (weight + offset)`, normalised over the last dimension."""
    from workers.kernels import norm_triton

    return norm_triton.norm(x, weight, eps, offset, residual)


def norm_of_sum(x: Tensor, y: Tensor, weight: Tensor, eps: float, offset: float) -> tuple[Tensor, Tensor]:
    """`x + y`, rounded to their type, and that normalised; `[tokens, size]` each."""
    from workers.kernels import norm_triton

    return norm_triton.norm_of_sum(x, y, weight, eps, offset)


def gated(gate_up: Tensor, gates: Gates) -> Tensor:  # [tokens, 2 * inner] -> [tokens, inner]
    """The gates, activated, times what they open."""
    from workers.kernels import gated_triton

    return gated_triton.gated(gate_up, gates)


def latent_heads(
    through: Tensor,  # [tokens, heads, rank]: what queries are for latent vectors, each head contiguous
    turning: Tensor,  # [tokens, heads, turned]: what turns of them, the same
    compressed: Tensor,  # [tokens, rank + turned or more]: vectors, and what turns of keys
    weight: Tensor,  # [rank], by which vectors are normalised
    eps: float,
    angles: tuple[Tensor, Tensor],  # cosines and sines, [tokens, 1, turned] float32
    interleaved: bool,  # as of `workers.layers.rotary.Rotary`
) -> tuple[Tensor, Tensor]:
    """Queries `[tokens, heads, rank + turned]`, and keys `[tokens, 1, rank + turned]`, as they attend."""
    from workers.kernels import latent_triton

    return latent_triton.latent_heads(through, turning, compressed, weight, eps, angles, interleaved)


def choice(
    logits: Tensor,  # [tokens, experts] float32, contiguous
    correction: Tensor | None,  # [experts] float32: added to scores for the choice alone
    how: Choosing,
) -> tuple[Tensor, Tensor]:
    """The weights of the experts that are chosen for a token, float32, and their numbers: `[tokens, chosen]`
    both. Of equal experts, and of equal groups, the first is chosen."""
    from workers.kernels import choice_triton

    return choice_triton.choice(logits, correction, how)


def routed(
    x: Tensor,  # [tokens, columns]
    weight: Tensor,  # [experts, columns] float32, contiguous
    bias: Tensor | None,  # [experts] float32
    correction: Tensor | None,  # for these see `choice`
    how: Choosing,
    mine: range,
) -> tuple[Tensor, Pairs] | None:
    """The weights of pairs, `[pairs]` float32, and these: of what `choice` makes of a product, with experts
    numbered as a rank does that has those of `mine`. None: of so many it is not one launch."""
    from workers.kernels import router_triton

    if len(x) > router_triton.FEW or how.chosen > router_triton.MOST:
        return None
    return router_triton.routed(x, weight, bias, correction, how, mine)


def decay_and_beta(
    beta: Tensor,  # [tokens, heads], as projected
    step: Tensor,  # the same
    bias: Tensor,  # [heads] float32, of the steps
    rate: Tensor,  # [heads] float32, the logarithm
) -> tuple[Tensor, Tensor]:
    """Of a Gated DeltaNet the logarithms of decays, and its betas: `[tokens, heads]` float32 both."""
    from workers.kernels import delta_gates_triton

    return delta_gates_triton.decay_and_beta(beta, step, bias, rate)


def gated_norm(
    x: Tensor,  # [tokens, heads, size] float32
    gates: Tensor,  # [tokens, heads * size], each row of which is contiguous
    weight: Tensor,  # [size]
    eps: float,
) -> Tensor:  # as gates
    """Each head normalised by itself, rounded, and multiplied with the SiLU of its gates."""
    from workers.kernels import delta_gates_triton

    return delta_gates_triton.gated_norm(x, gates, weight, eps)


def sum_of_chosen(
    pairs: Tensor,  # [tokens * chosen, columns]
    chosen: int,
    beside: Tensor | None = None,  # [tokens, columns]
    gates: Tensor | None = None,  # [tokens, 1], whose sigmoids open that
) -> Tensor:  # [tokens, columns]
    """Of each token the sum of its pairs, in their order, and of what stands beside; in float32."""
    from workers.kernels import chosen_triton

    return chosen_triton.sum_of_chosen(pairs, chosen, beside, gates)
