"""The tower of SigLIP (https://arxiv.org/abs/2303.15343) and Gemma 3's projector: an image to its tokens.

pixels ─ patches ─ + positions ─┬─ norm ─ attention ─┬+─ norm ─ mlp ─┬+─ … ─ norm ─ projector ─ tokens
                                └────────────────────┘└──────────────┘
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.checkpoints.vision import BLOCK_PATCHES, PREFIX, Vision
from workers.layers.layer_norm import LayerNorm
from workers.layers.linear import ColumnParallel
from workers.layers.norm import RMSNorm
from workers.models.mlp import activated
from workers.vision.pixtral import by_rows
from workers.vision.tower import attended
from workers.weights.blocks import Empty
from workers.weights.loader import Shard, Slice, bytes_filled


class SiglipTower:
    """All of it, on rank 0."""

    def __init__(self, vision: Vision, dtype: torch.dtype, device: torch.device) -> None:
        self.vision, self.dtype, self.device = vision, dtype, device
        empty = Empty(dtype, device)
        hidden = vision.hidden_size
        self.patches = _linear("embeddings.patch_embedding", hidden, vision.patch_values, empty)
        self.positions = empty(vision.table_side**2, hidden)
        self.blocks = [Block(f"encoder.layers.{number}", vision, empty) for number in range(vision.depth)]
        self.norm = LayerNorm(f"{PREFIX}post_layernorm", hidden, vision.siglip.eps, empty)
        self.projector = Projector(vision, empty)

    def parts(self) -> Iterator[Shard]:
        """What is read from the checkpoint."""
        name = f"{PREFIX}embeddings.position_embedding.weight"
        yield Shard([Slice(name, tuple(self.positions.shape), self.positions), *self.norm.pieces()])
        yield _shard(self.patches)
        for part in (*self.blocks, self.projector):
            yield from part.parts()

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return bytes_filled(self.parts())

    def __call__(self, image: Tensor) -> Tensor:  # [tokens, out_size]
        """What each token of an image is in the language model.

        Args:
            image: `[side, side, 3]` uint8, of the one size that there is.
        """
        x = self.patches(by_rows(image, self.vision, self.dtype, self.device)) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.projector(self.norm(x))


class Block:
    """Attention of all patches to all, then the feed-forward network."""

    def __init__(self, name: str, vision: Vision, empty: Empty) -> None:
        hidden, inner, eps = vision.hidden_size, vision.intermediate_size, vision.siglip.eps
        self.heads, self.activation = vision.num_heads, vision.activation
        self.norms = [LayerNorm(f"{PREFIX}{name}.layer_norm{n}", hidden, eps, empty) for n in (1, 2)]
        heads = [(f"{PREFIX}{name}.self_attn.{part}_proj", hidden, range(hidden)) for part in "qkv"]
        self.qkv = ColumnParallel(heads, hidden, True, empty)
        self.output = _linear(f"{name}.self_attn.out_proj", hidden, hidden, empty)
        self.up = _linear(f"{name}.mlp.fc1", inner, hidden, empty)
        self.down = _linear(f"{name}.mlp.fc2", hidden, inner, empty)

    def parts(self) -> Iterator[Shard]:
        yield Shard([piece for norm in self.norms for piece in norm.pieces()])
        for linear in (self.qkv, self.output, self.up, self.down):
            yield _shard(linear)

    def __call__(self, x: Tensor) -> Tensor:  # [patches, hidden]
        x = x + self.output(attended(self.qkv(self.norms[0](x)).view(len(x), 3, self.heads, -1)))
        parts = self.norms[1](x).split(BLOCK_PATCHES)
        return x + torch.cat([self.down(activated(self.up(part), self.activation, False)) for part in parts])


class Projector:
    """Squares of patches, averaged, to vectors of the language model."""

    def __init__(self, vision: Vision, empty: Empty) -> None:
        self.side, self.merge = vision.table_side, vision.merge_size
        name, hidden = f"{PREFIX}projector", vision.hidden_size
        self.norm = RMSNorm(f"{name}.mm_soft_emb_norm", hidden, vision.siglip.eps, empty, offset=1.0)
        self.weight = empty(hidden, vision.out_size)
        self.name = f"{name}.mm_input_projection_weight"

    def parts(self) -> Iterator[Shard]:
        yield Shard([*self.norm.pieces(), Slice(self.name, tuple(self.weight.shape), self.weight)])

    def __call__(self, x: Tensor) -> Tensor:  # [patches, hidden] -> [tokens, out_size]
        grid = x.t().view(1, -1, self.side, self.side)
        return self.norm(F.avg_pool2d(grid, self.merge)[0].flatten(1).t().contiguous()) @ self.weight


def _linear(name: str, rows: int, columns: int, empty: Empty) -> ColumnParallel:
    return ColumnParallel([(PREFIX + name, rows, range(rows))], columns, True, empty)


def _shard(linear: ColumnParallel) -> Shard:
    return Shard([*linear.pieces()], linear.pack)
