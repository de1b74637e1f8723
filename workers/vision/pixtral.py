"""The tower of Pixtral (https://arxiv.org/abs/2410.07073) and Mistral 3's projector: an image to its tokens.

pixels ─ patches ─ norm ─ blocks ─ projector ─ tokens
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from workers.checkpoints.vision import PIECE_PATCHES, Vision
from workers.models.mlp import ACTIVATIONS, gated
from workers.vision.tower import Angles, Block, Look, Work, bands, embedded, squares
from workers.vision.weights import Weights

EPS = 1e-5


class PixtralTower:
    """See `Tower`."""

    def __init__(self, vision: Vision, dtype: torch.dtype, device: torch.device) -> None:
        self.vision, self.dtype, self.device = vision, dtype, device
        weights = self.weights = Weights(dtype, device)
        hidden = vision.hidden_size
        self.patches = weights.linear("patch_conv", hidden, vision.patch_values, bias=False)
        self.norm = weights.rms_norm("ln_pre", hidden, EPS)
        self.blocks = [_block(f"transformer.layers.{n}", vision, weights) for n in range(vision.depth)]
        self.projector = Projector(vision, weights)

    def look(self, image: Tensor) -> Look:
        vision = self.vision
        rows, columns = (size // vision.patch_size for size in image.shape[:2])
        x = torch.empty(rows * columns, vision.hidden_size, dtype=self.dtype, device=self.device)
        yield from embedded(image, vision, self.patches, lambda y, _: self.norm(y), x)
        angles = self._angles(rows, columns)
        qkv = self.blocks[0].room(x)
        for block in self.blocks:
            yield from block.through(x, qkv, angles)
        del qkv
        tokens = x.new_empty(len(x) // vision.merge_size**2, vision.out_size)
        yield from self.projector.through(x, columns, tokens)
        return tokens

    def _angles(self, rows: int, columns: int) -> Angles:
        """The even frequencies turn with rows, the odd ones with columns."""
        head_dim = self.vision.hidden_size // self.vision.num_heads
        exponents = torch.arange(0, head_dim, 2, device=self.device).float() / head_dim
        frequencies = 1.0 / self.vision.pixtral.theta**exponents
        down = torch.arange(rows, device=self.device).float()[:, None] * frequencies[0::2]
        across = torch.arange(columns, device=self.device).float()[:, None] * frequencies[1::2]
        down = down[:, None].expand(-1, columns, -1).flatten(0, 1)
        angle = torch.cat((down, across.repeat(rows, 1)), dim=-1)[:, None]
        return angle.cos(), angle.sin()


def _block(name: str, vision: Vision, weights: Weights) -> Block:
    hidden, inner = vision.hidden_size, vision.intermediate_size
    attention, mlp = f"{name}.attention", f"{name}.feed_forward"
    return Block(
        norms=(
            weights.rms_norm(f"{name}.attention_norm", hidden, EPS),
            weights.rms_norm(f"{name}.ffn_norm", hidden, EPS),
        ),
        qkv=weights.linears([f"{attention}.{part}_proj" for part in "qkv"], hidden, hidden, bias=False),
        output=weights.linear(f"{attention}.o_proj", hidden, hidden, bias=False),
        up=weights.linears([f"{mlp}.gate_proj", f"{mlp}.up_proj"], inner, hidden, bias=False),
        activate=partial(gated, name=vision.activation, exact=False),
        down=weights.linear(f"{mlp}.down_proj", hidden, inner, bias=False),
        heads=vision.num_heads,
    )


class Projector:
    """The patches of a token to one vector of the language model."""

    def __init__(self, vision: Vision, weights: Weights) -> None:
        hidden, out, merge, about = vision.hidden_size, vision.out_size, vision.merge_size, vision.pixtral
        self.merge, self.activation = merge, ACTIVATIONS[about.projector_activation]
        self.norm = weights.rms_norm("projector.norm", hidden, about.projector_eps)
        name, bias = "projector.patch_merger.merging_layer", about.projector_bias
        self.merger = weights.linear(name, hidden, hidden * merge**2, bias=False)
        self.up = weights.linear("projector.linear_1", out, hidden, bias)
        self.down = weights.linear("projector.linear_2", out, out, bias)

    def through(self, x: Tensor, columns: int, tokens: Tensor) -> Work:
        """Fill in tokens, `[tokens, out_size]`, for patches, `[patches, hidden]`."""
        for part, made in bands(len(x), columns, self.merge, PIECE_PATCHES[x.device.type]):
            each = squares(self.norm(x[part]), columns, self.merge).transpose(1, 2).flatten(1)
            tokens[made] = self.down(self.activation(self.up(self.merger(each))))
            yield len(each) * (each.shape[1] * x.shape[1] + tokens.shape[1] * (x.shape[1] + tokens.shape[1]))
