"""Rotary position embedding (Su et al. 2021), and how contexts are extended by it: linear, Llama 3,
YaRN, LongRoPE (https://arxiv.org/abs/2402.13753)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workers.checkpoints.rope import Rope

Angles = tuple[Tensor, Tensor]  # cosines and sines, [tokens, 1, head_dim] float32


class Rotary:
    """The angles by which each position turns the pairs of a head's dimensions.

    Args:
        interleaved: the pairs are neighbours. Otherwise, as in most checkpoints of Hugging Face, dimension i
            is paired with dimension i + head_dim / 2.
        sections: pairs that turn with rows and columns of what is seen; see `ModelConfig.rope_sections`.
    """

    def __init__(
        self,
        rope: Rope,
        head_dim: int,
        device: torch.device,
        interleaved: bool = False,
        sections: tuple[int, int, int] | None = None,
    ) -> None:
        def of_both(first: Tensor, second: Tensor) -> Tensor:  # [head_dim / 2] both -> [head_dim]
            both = torch.stack((first, second), dim=-1) if interleaved else torch.stack((first, second))
            return both.flatten().to(device)

        each = frequencies(rope, head_dim)
        # the first of a pair gets the other's sine taken off: it turns backwards, with the same cosine
        self.frequencies = of_both(-each, each)  # radians a token
        self.scale = attention_factor(rope)
        self.axes = None if sections is None else of_both(axes(sections), axes(sections))

    def __call__(self, positions: Tensor) -> Angles:
        """For `rotate`; once a step, for all layers.

        Args:
            positions: `[tokens]`, or of what is seen `[3, tokens]`: time, row and column.
        """
        turning = positions[:, None] if positions.dim() == 1 else positions.t().index_select(1, self.axes)
        angle = turning[:, None].float() * self.frequencies
        cos, sin = angle.cos(), angle.sin()
        return (cos, sin) if self.scale == 1.0 else (cos * self.scale, sin * self.scale)


def axes(sections: tuple[int, int, int]) -> Tensor:  # [head_dim / 2] int64
    """Which part of a position turns each pair: 0, 1, 2, 0, 1, 2, … as long as rows and columns have some."""
    found = torch.zeros(sum(sections), dtype=torch.int64)
    for axis in (1, 2):
        found[axis : 3 * sections[axis] : 3] = axis
    return found


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Turn every pair of dimensions of `x` `[tokens, heads, head_dim]` float32 by its token's angle."""
    half = x.shape[-1] // 2
    partner = x.unflatten(-1, (half, 2)).flip(-1).flatten(-2) if interleaved else x.roll(half, dims=-1)
    return torch.addcmul(x * cos, partner, sin)


def rotate_part(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """The same of as many dimensions as there are angles for; the others stay."""
    size = cos.shape[-1]
    if size == x.shape[-1]:
        return rotate(x, cos, sin, interleaved)
    return torch.cat((rotate(x[..., :size], cos, sin, interleaved), x[..., size:]), dim=-1)


def frequencies(rope: Rope, head_dim: int) -> Tensor:  # [head_dim / 2] float32
    """Radians per token of each pair.

    Each product and quotient stands as transformers has it: at position 40,000 one unit in the last place
    of a frequency is 2e-3 radians.
    """
    wavelengths = rope.rope_theta ** (torch.arange(0, head_dim, 2).float() / head_dim)  # over 2 pi
    match rope.rope_type:
        case "linear":
            return 1.0 / wavelengths / rope.factor
        case "llama3":
            return _llama3(rope, 1.0 / wavelengths)
        case "yarn":
            return _yarn(rope, wavelengths)
        case "proportional":
            turning = int(rope.proportion * head_dim // 2)
            kept = torch.zeros(head_dim // 2 - turning)
            return torch.cat((1.0 / wavelengths[:turning], kept)) / rope.factor
        case "longrope":
            return 1.0 / (torch.tensor(rope.long_factor if rope.is_long else rope.short_factor) * wavelengths)
    return 1.0 / wavelengths


def attention_factor(rope: Rope) -> float:
    """What cosines and sines are multiplied with: YaRN sharpens attention as the context grows (eq. 22), and
    LongRoPE does."""
    if rope.rope_type not in ("yarn", "longrope"):
        return 1.0
    if (mscale := rope.long_mscale if rope.is_long else rope.short_mscale) is not None:
        return mscale
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.rope_type == "longrope":
        if rope.factor <= 1.0:
            return 1.0
        return math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_max_position_embeddings))

    def sharpened(weight: float) -> float:
        return 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.mscale and rope.mscale_all_dim:
        return sharpened(rope.mscale) / sharpened(rope.mscale_all_dim)
    return sharpened(1.0)


def _llama3(rope: Rope, plain: Tensor) -> Tensor:
    """Slow pairs are stretched by `factor`, fast ones are kept, any between (none in Llama 4) are blended."""
    context, low, high = rope.original_max_position_embeddings, rope.low_freq_factor, rope.high_freq_factor
    wavelengths = 2 * math.pi / plain
    stretched = torch.where(wavelengths > context / low, plain / rope.factor, plain)
    if low == high:
        return stretched
    blend = (context / wavelengths - low) / (high - low)
    blended = (1 - blend) * stretched / rope.factor + blend * stretched
    between = (wavelengths >= context / high) & (wavelengths <= context / low)
    return torch.where(between, blended, stretched)


def _yarn(rope: Rope, wavelengths: Tensor) -> Tensor:
    """The same idea, blended over the index of the pair instead of its wavelength (section 3.2)."""
    pairs = len(wavelengths)

    def pair(turns: float) -> float:
        """The index, not rounded, of the pair that turns so often over the original context."""
        wavelength = rope.original_max_position_embeddings / (turns * 2 * math.pi)
        return 2 * pairs * math.log(wavelength) / (2 * math.log(rope.rope_theta))

    low, high = pair(rope.beta_fast or 32), pair(rope.beta_slow or 1)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    if low == high:
        high += 0.001
    kept = 1 - ((torch.arange(pairs).float() - low) / (high - low)).clamp(0, 1)
    return 1.0 / (rope.factor * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept
