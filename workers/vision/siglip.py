"""The tower of SigLIP (https://arxiv.org/abs/2303.15343) and Gemma 3's projector: an image to its tokens.

pixels ─ patches ─ + positions ─ blocks ─ norm ─ projector ─ tokens
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from workers.checkpoints.vision import PIECE_PATCHES, Vision
from workers.models.mlp import activated
from workers.vision.tower import Block, Look, bands, embedded, squares
from workers.vision.weights import Weights


class SiglipTower:
    """See `Tower`. All images are of one size."""

    def __init__(self, vision: Vision, dtype: torch.dtype, device: torch.device) -> None:
        self.vision, self.dtype, self.device = vision, dtype, device
        weights = self.weights = Weights(dtype, device)
        hidden, eps = vision.hidden_size, vision.siglip.eps
        self.patches = weights.linear("embeddings.patch_embedding", hidden, vision.patch_values)
        self.positions = weights.table("embeddings.position_embedding.weight", vision.table_side**2, hidden)
        self.blocks = [_block(f"encoder.layers.{n}", vision, weights) for n in range(vision.depth)]
        self.norm = weights.layer_norm("post_layernorm", hidden, eps)
        self.projected_norm = weights.rms_norm("projector.mm_soft_emb_norm", hidden, eps, offset=1.0)
        self.projector = weights.table("projector.mm_input_projection_weight", hidden, vision.out_size)

    def look(self, image: Tensor) -> Look:
        vision = self.vision
        x = torch.empty_like(self.positions)
        yield from embedded(image, vision, self.patches, lambda y, part: y + self.positions[part], x)
        qkv = self.blocks[0].room(x)
        for block in self.blocks:
            yield from block.through(x, qkv)
        del qkv
        merge = vision.merge_size
        tokens = x.new_empty(len(x) // merge**2, vision.out_size)
        most = PIECE_PATCHES[self.device.type]
        for part, made in bands(len(x), vision.table_side, merge, most):
            averages = squares(self.norm(x[part]), vision.table_side, merge).mean(dim=1)
            tokens[made] = self.projected_norm(averages) @ self.projector
            yield len(averages) * x.shape[1] * vision.out_size
        return tokens


def _block(name: str, vision: Vision, weights: Weights) -> Block:
    hidden, inner, eps = vision.hidden_size, vision.intermediate_size, vision.siglip.eps
    return Block(
        norms=tuple(weights.layer_norm(f"{name}.layer_norm{n}", hidden, eps) for n in (1, 2)),
        qkv=weights.linears([f"{name}.self_attn.{part}_proj" for part in "qkv"], hidden, hidden),
        output=weights.linear(f"{name}.self_attn.out_proj", hidden, hidden),
        up=weights.linear(f"{name}.mlp.fc1", inner, hidden),
        activate=partial(activated, name=vision.activation, exact=False),
        down=weights.linear(f"{name}.mlp.fc2", hidden, inner),
        heads=vision.num_heads,
    )
