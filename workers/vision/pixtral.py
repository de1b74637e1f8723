"""The tower of Pixtral (https://arxiv.org/abs/2410.07073) and Mistral 3's projector: an image to its tokens.

pixels ─ patches ─ norm ─┬─ norm ─ attention ─┬+─ norm ─ mlp ─┬+─ … ─ projector ─ tokens
                         └────────────────────┘└──────────────┘
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from workers.checkpoints.vision import BLOCK_PATCHES, PREFIX, Vision
from workers.layers.linear import ColumnParallel
from workers.layers.norm import RMSNorm
from workers.models.mlp import ACTIVATIONS, gated
from workers.vision.tower import attended
from workers.weights.blocks import Empty
from workers.weights.loader import Shard, bytes_filled

EPS = 1e-5


class PixtralTower:
    """All of it, on rank 0."""

    def __init__(self, vision: Vision, dtype: torch.dtype, device: torch.device) -> None:
        self.vision, self.dtype, self.device = vision, dtype, device
        empty = Empty(dtype, device)
        hidden = vision.hidden_size
        self.patches = _linear("patch_conv", hidden, vision.patch_values, empty)
        self.norm = RMSNorm(f"{PREFIX}ln_pre", hidden, EPS, empty)
        self.blocks = [Block(f"transformer.layers.{n}", vision, empty) for n in range(vision.depth)]
        self.projector = Projector(vision, empty)

    def parts(self) -> Iterator[Shard]:
        """What is read from the checkpoint."""
        yield Shard([*self.patches.pieces()], self.patches.pack)
        yield Shard([*self.norm.pieces()])
        for part in (*self.blocks, self.projector):
            yield from part.parts()

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return bytes_filled(self.parts())

    def __call__(self, image: Tensor) -> Tensor:  # [tokens, out_size]
        """What each token of an image is in the language model.

        Args:
            image: `[rows, columns, 3]` uint8, both multiples of `vision.side`.
        """
        rows, columns = (size // self.vision.patch_size for size in image.shape[:2])
        x = self.norm(self.patches(by_rows(image, self.vision, self.dtype, self.device)))
        angles = self._angles(rows, columns)
        for block in self.blocks:
            x = block(x, angles)
        return self.projector(x, rows, columns)

    def _angles(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:  # [patches, 1, head_dim] float32
        """Cosines and sines: the even frequencies turn with rows, the odd ones with columns."""
        head_dim = self.vision.hidden_size // self.vision.num_heads
        exponents = torch.arange(0, head_dim, 2, device=self.device).float() / head_dim
        frequencies = 1.0 / self.vision.pixtral.theta**exponents
        down = torch.arange(rows, device=self.device).float()[:, None] * frequencies[0::2]
        across = torch.arange(columns, device=self.device).float()[:, None] * frequencies[1::2]
        down = down[:, None].expand(-1, columns, -1).flatten(0, 1)
        angle = torch.cat((down, across.repeat(rows, 1)), dim=-1)
        angle = torch.cat((angle, angle), dim=-1)[:, None]
        return angle.cos(), angle.sin()


class Block:
    """Attention of all patches to all, then the gated feed-forward network."""

    def __init__(self, name: str, vision: Vision, empty: Empty) -> None:
        hidden, inner = vision.hidden_size, vision.intermediate_size
        self.heads, self.activation = vision.num_heads, vision.activation
        self.norms = [
            RMSNorm(f"{PREFIX}{name}.{norm}", hidden, EPS, empty) for norm in ("attention_norm", "ffn_norm")
        ]
        heads = [(f"{PREFIX}{name}.attention.{part}_proj", hidden, range(hidden)) for part in "qkv"]
        self.qkv = ColumnParallel(heads, hidden, False, empty)
        self.output = _linear(f"{name}.attention.o_proj", hidden, hidden, empty)
        both = [(f"{PREFIX}{name}.feed_forward.{part}_proj", inner, range(inner)) for part in ("gate", "up")]
        self.gate_up = ColumnParallel(both, hidden, False, empty)
        self.down = _linear(f"{name}.feed_forward.down_proj", hidden, inner, empty)

    def parts(self) -> Iterator[Shard]:
        yield Shard([piece for norm in self.norms for piece in norm.pieces()])
        for linear in (self.qkv, self.output, self.gate_up, self.down):
            yield Shard([*linear.pieces()], linear.pack)

    def __call__(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:  # [patches, hidden]
        qkv = self.qkv(self.norms[0](x)).view(len(x), 3, self.heads, -1)
        x = x + self.output(attended(qkv, angles))
        parts = self.norms[1](x).split(BLOCK_PATCHES)
        return x + torch.cat([self.down(gated(self.gate_up(part), self.activation, False)) for part in parts])


class Projector:
    """The patches of a token to one vector of the language model."""

    def __init__(self, vision: Vision, empty: Empty) -> None:
        hidden, out, merge = vision.hidden_size, vision.out_size, vision.merge_size
        about = vision.pixtral
        self.merge, self.activation = merge, ACTIVATIONS[about.projector_activation]
        self.norm = RMSNorm(f"{PREFIX}projector.norm", hidden, about.projector_eps, empty)
        self.merger = _linear("projector.patch_merger.merging_layer", hidden, hidden * merge**2, empty)
        self.up = _linear("projector.linear_1", out, hidden, empty, about.projector_bias)
        self.down = _linear("projector.linear_2", out, out, empty, about.projector_bias)

    def parts(self) -> Iterator[Shard]:
        yield Shard([*self.norm.pieces()])
        for linear in (self.merger, self.up, self.down):
            yield Shard([*linear.pieces()], linear.pack)

    def __call__(
        self, x: Tensor, rows: int, columns: int
    ) -> Tensor:  # [patches, hidden] -> [tokens, out_size]
        grid = self.norm(x).view(rows // self.merge, self.merge, columns // self.merge, self.merge, -1)
        merged = grid.permute(0, 2, 4, 1, 3).reshape(-1, x.shape[1] * self.merge**2)
        return self.down(self.activation(self.up(self.merger(merged))))


def by_rows(
    image: Tensor, vision: Vision, dtype: torch.dtype, device: torch.device
) -> Tensor:  # [patches, patch_values]
    """The patches of an image row by row, each colour by colour."""
    mean, deviation = (torch.tensor(each, device=device) for each in (vision.mean, vision.deviation))
    colours = (image.to(device).float() / 255 - mean) / deviation
    size = vision.patch_size
    grid = colours.unflatten(0, (-1, size)).unflatten(2, (-1, size))  # row, y, column, x, colour
    return grid.permute(0, 2, 4, 1, 3).reshape(-1, vision.patch_values).to(dtype)


def _linear(name: str, rows: int, columns: int, empty: Empty, bias: bool = False) -> ColumnParallel:
    return ColumnParallel([(PREFIX + name, rows, range(rows))], columns, bias, empty)
