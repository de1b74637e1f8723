"""What the towers have in common: the patches of an image go through blocks, all of which see all of it.

x ─┬─ norm ─ attention ─┬+─ norm ─ mlp ─┬+─
   └────────────────────┘└──────────────┘
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.checkpoints.vision import BLOCK_PATCHES, Vision
from workers.layers.layer_norm import LayerNorm
from workers.layers.linear import ColumnParallel
from workers.layers.norm import RMSNorm
from workers.vision.weights import Weights

Angles = tuple[
    Tensor, Tensor
]  # cosines and sines by which queries and keys turn, [patches, 1, head_dim] float32


class Tower(Protocol):
    """All of one, on rank 0."""

    weights: Weights

    def __call__(self, image: Tensor) -> Tensor:  # [tokens, width]
        """What each token of an image is in the language model.

        Args:
            image: `[rows, columns, 3]` uint8, both multiples of `Vision.side`.
        """
        ...


class Block(NamedTuple):
    """Attention of all patches to all, then the feed-forward network."""

    norms: tuple[LayerNorm | RMSNorm, LayerNorm | RMSNorm]
    qkv: ColumnParallel
    output: ColumnParallel
    up: ColumnParallel
    activate: Callable[[Tensor], Tensor]
    down: ColumnParallel
    heads: int

    def __call__(self, x: Tensor, angles: Angles | None = None) -> Tensor:  # [patches, hidden]
        qkv = self.qkv(self.norms[0](x)).view(len(x), 3, self.heads, -1)
        x = x + self.output(attended(qkv, angles))
        parts = self.norms[1](x).split(BLOCK_PATCHES)
        return x + torch.cat([self.down(self.activate(self.up(part))) for part in parts])


def attended(qkv: Tensor, angles: Angles | None = None) -> Tensor:  # [patches, heads x head_dim]
    """What each patch has of all of an image.

    Args:
        qkv: `[patches, 3, heads, head_dim]`: queries, keys and values.
        angles: by which the first two turn; None: they do not.
    """
    q, keys, values = qkv.unbind(1)
    if angles is not None:
        q, keys = (_turned(each, *angles) for each in (q, keys))
    heads = [each.transpose(0, 1)[None] for each in (q, keys, values)]
    return F.scaled_dot_product_attention(*heads)[0].transpose(0, 1).reshape(len(qkv), -1)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # [patches, heads, head_dim]
    wide = x.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def normalised(image: Tensor, vision: Vision, device: torch.device) -> Tensor:  # [rows, columns, 3] float32
    """The colours of an image, as a model takes them."""
    mean, deviation = (torch.tensor(each, device=device) for each in (vision.mean, vision.deviation))
    return (image.to(device).float() / 255 - mean) / deviation


def by_rows(
    image: Tensor, vision: Vision, dtype: torch.dtype, device: torch.device
) -> Tensor:  # [patches, patch_values]
    """The patches of an image row by row, each colour by colour."""
    size = vision.patch_size
    grid = normalised(image, vision, device).unflatten(0, (-1, size)).unflatten(2, (-1, size))
    return grid.permute(0, 2, 4, 1, 3).reshape(-1, vision.patch_values).to(dtype)  # row, column, colour, y, x
