"""Rotary position embedding (Su et al. 2021), with the context extensions of Llama 3 and YaRN."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workers.config import Rope


class Rotary:
    """The angles by which each position turns the pairs of a head's dimensions.

    Dimension i is paired with dimension i + head_dim / 2, as in all Hugging Face checkpoints.
    """

    def __init__(self, rope: Rope, head_dim: int, device: torch.device) -> None:
        self.frequencies = frequencies(rope, head_dim).to(device)  # [head_dim / 2], radians a token
        self.scale = attention_factor(rope)

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:  # [tokens]
        """Cosines and sines for `rotate`, `[tokens, 1, head_dim]` float32; once a step, for all layers."""
        angle = positions[:, None, None].float() * self.frequencies
        cos, sin = angle.cos() * self.scale, angle.sin() * self.scale
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # [tokens, heads, head_dim] float32
    """Turn every pair of dimensions by its token's angle."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def frequencies(rope: Rope, head_dim: int) -> Tensor:  # [head_dim / 2] float32
    """Radians per token of each pair."""
    plain = rope.rope_theta ** -(torch.arange(0, head_dim, 2).float() / head_dim)
    if rope.rope_type == "llama3":
        return _llama3(rope, plain)
    if rope.rope_type == "yarn":
        return _yarn(rope, plain)
    return plain


def attention_factor(rope: Rope) -> float:
    """What cosines and sines are multiplied with: YaRN sharpens attention as the context grows (eq. 22)."""
    if rope.rope_type != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)


def _llama3(rope: Rope, plain: Tensor) -> Tensor:
    """Slow pairs are stretched by `factor`, fast ones are kept, those between are blended."""
    turns = rope.original_max_position_embeddings * plain / (2 * math.pi)  # over the original context
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    return torch.lerp(plain / rope.factor, plain, blend.clamp(0, 1))


def _yarn(rope: Rope, plain: Tensor) -> Tensor:
    """The same idea, blended over the index of the pair instead of its wavelength (section 3.2)."""
    head_dim = 2 * len(plain)

    def pair(turns: float) -> float:
        """The index, not rounded, of the pair that turns so often over the original context."""
        wavelength = rope.original_max_position_embeddings / (turns * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(rope.rope_theta))

    low, high = pair(rope.beta_fast or 32), pair(rope.beta_slow or 1)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = (torch.arange(len(plain)).float() - low) / max(high - low, 0.001)
    return torch.lerp(plain, plain / rope.factor, ramp.clamp(0, 1))
