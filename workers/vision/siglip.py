"""The tower of SigLIP (https://arxiv.org/abs/2303.15343) and Gemma 3's projector: an image to its tokens.

pixels ─ patches ─ + positions ─ blocks ─ norm ─ projector ─ tokens
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.checkpoints.vision import Vision
from workers.models.mlp import activated
from workers.vision.tower import Block, by_rows
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

    def __call__(self, image: Tensor) -> Tensor:  # [tokens, out_size]
        x = self.patches(by_rows(image, self.vision, self.dtype, self.device)) + self.positions
        for block in self.blocks:
            x = block(x)
        return self._projected(self.norm(x))

    def _projected(self, x: Tensor) -> Tensor:  # [patches, hidden] -> [tokens, out_size]
        """Squares of patches, averaged, to vectors of the language model."""
        side = self.vision.table_side
        grid = x.t().view(1, -1, side, side)
        averages = F.avg_pool2d(grid, self.vision.merge_size)[0].flatten(1).t().contiguous()
        return self.projected_norm(averages) @ self.projector


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
