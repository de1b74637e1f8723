"""The tower of Qwen3-VL (https://arxiv.org/abs/2511.21631) and Qwen3.5: an image to the tokens that it is.

pixels ─ patches ─ + positions ─ blocks ─ merger ─ tokens

The outputs of some layers go through mergers of their own, and are added to the first layers of the language
model (DeepStack, https://arxiv.org/abs/2406.04334).
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.checkpoints.vision import PIECE_PATCHES, Vision
from workers.models.mlp import activated
from workers.vision.tower import Angles, Block, Look, Work, cuts, embedded
from workers.vision.weights import Weights

EPS = 1e-6
BASE = 10_000.0  # of the angles by which rows and columns turn


class Qwen3VLTower:
    """See `Tower`. Behind what a token is, each has what it adds to the first layers of the language model:
    `[tokens, (1 + len(deepstack)) * out_size]`.
    """

    def __init__(self, vision: Vision, dtype: torch.dtype, device: torch.device) -> None:
        self.vision, self.dtype, self.device = vision, dtype, device
        weights = self.weights = Weights(dtype, device)
        hidden = vision.hidden_size
        self.patches = weights.linear("patch_embed.proj", hidden, vision.patch_values)
        self.table = weights.table("pos_embed.weight", vision.table_side**2, hidden)
        self.blocks = [_block(f"blocks.{number}", vision, weights) for number in range(vision.depth)]
        self.merger = Merger("merger", vision, weights, merged_first=False)
        self.deepstack = {
            layer: Merger(f"deepstack_merger_list.{number}", vision, weights, merged_first=True)
            for number, layer in enumerate(vision.deepstack)
        }

    def look(self, image: Tensor) -> Look:
        vision, out = self.vision, self.vision.out_size
        x, angles = yield from self._placed(image)
        tokens = x.new_empty(len(x) // vision.merge_size**2, out * (1 + len(vision.deepstack)))
        qkv = self.blocks[0].room(x)
        for number, block in enumerate(self.blocks):
            yield from block.through(x, qkv, angles)
            if number in self.deepstack:
                first = out * (1 + vision.deepstack.index(number))
                yield from self.deepstack[number].through(x, tokens[:, first : first + out])
        yield from self.merger.through(x, tokens[:, :out])
        return tokens

    def _placed(self, image: Tensor) -> Generator[int, None, tuple[Tensor, Angles]]:
        """Patches before the first block, `[patches, hidden]`."""
        vision = self.vision
        rows, columns = (size // vision.patch_size for size in image.shape[:2])
        x = torch.empty(rows * columns, vision.hidden_size, dtype=self.dtype, device=self.device)
        places = self._places(rows, columns)

        def placed(y: Tensor, part: slice) -> Tensor:
            return y + self._positions(rows, columns, places[part])

        yield from embedded(image, vision, self.patches, placed, x, vision.merge_size)
        return x, self._angles(places)

    def _places(self, rows: int, columns: int) -> Tensor:  # [patches, 2] int64
        """Row and column of each patch, in their order."""
        merge = self.vision.merge_size
        grid = torch.stack(
            torch.meshgrid(
                torch.arange(rows, device=self.device),
                torch.arange(columns, device=self.device),
                indexing="ij",
            ),
            dim=-1,
        )
        return grid.unflatten(0, (-1, merge)).unflatten(2, (-1, merge)).transpose(1, 2).reshape(-1, 2)

    def _positions(self, rows: int, columns: int, places: Tensor) -> Tensor:  # [patches, hidden]
        """The table of positions, stretched over the grid: bilinear, the corners on its corners."""
        side = self.vision.table_side
        total = torch.zeros(len(places), self.vision.hidden_size, device=self.device)
        taps = [_taps(places[:, axis], size, side) for axis, size in enumerate((rows, columns))]
        for row, row_share in taps[0]:
            for column, column_share in taps[1]:
                total += F.embedding(row * side + column, self.table) * (row_share * column_share)[:, None]
        return total.to(self.dtype)

    def _angles(self, places: Tensor) -> Angles:
        """A quarter of the pairs' halves turns with rows, the next one with columns."""
        half = self.vision.hidden_size // self.vision.num_heads // 2
        frequencies = 1.0 / BASE ** (torch.arange(0, half, 2, device=self.device).float() / half)
        angle = (places[:, :, None].float() * frequencies).flatten(1)[:, None]
        return angle.cos(), angle.sin()


def _block(name: str, vision: Vision, weights: Weights) -> Block:
    hidden, inner = vision.hidden_size, vision.intermediate_size
    return Block(
        norms=tuple(weights.layer_norm(f"{name}.norm{n}", hidden, EPS) for n in (1, 2)),
        qkv=weights.linear(f"{name}.attn.qkv", 3 * hidden, hidden),
        output=weights.linear(f"{name}.attn.proj", hidden, hidden),
        up=weights.linear(f"{name}.mlp.linear_fc1", inner, hidden),
        activate=partial(activated, name=vision.activation, exact=False),
        down=weights.linear(f"{name}.mlp.linear_fc2", hidden, inner),
        heads=vision.num_heads,
    )


class Merger:
    """The patches of a token to one vector of the language model.

    Args:
        merged_first: whether they are put side by side before they are normalised.
    """

    def __init__(self, name: str, vision: Vision, weights: Weights, *, merged_first: bool) -> None:
        self.size = vision.hidden_size * vision.merge_size**2
        self.merged_first = merged_first
        norm_size = self.size if merged_first else vision.hidden_size
        self.norm = weights.layer_norm(f"{name}.norm", norm_size, EPS)
        self.up = weights.linear(f"{name}.linear_fc1", self.size, self.size)
        self.down = weights.linear(f"{name}.linear_fc2", vision.out_size, self.size)

    def through(self, x: Tensor, tokens: Tensor) -> Work:
        """Fill in tokens, `[tokens, out_size]`, for patches, `[patches, hidden]`."""
        each = self.size // x.shape[1]
        for made in cuts(len(tokens), max(1, PIECE_PATCHES[x.device.type] // each)):
            part = x[made.start * each : made.stop * each]
            part = self.norm(part.view(-1, self.size)) if self.merged_first else self.norm(part)
            tokens[made] = self.down(F.gelu(self.up(part.view(-1, self.size))))
            yield len(tokens[made]) * self.size * (self.size + tokens.shape[1])


def _taps(places: Tensor, size: int, side: int) -> list[tuple[Tensor, Tensor]]:
    """The two entries of a line of `side` that each of `size` places lies between, and its share of each."""
    at = places.float() * (side - 1) / max(size - 1, 1)
    below = at.floor()
    share = at - below
    first = below.long()
    return [(first, 1 - share), ((first + 1).clamp(max=side - 1), share)]
