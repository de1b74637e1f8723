"""The tower of Qwen3-VL (https://arxiv.org/abs/2511.21631) and Qwen3.5: an image to the tokens that it is.

pixels ─ patches ─ + positions ─┬─ norm ─ attention ─┬+─ norm ─ mlp ─┬+─ … ─ merger ─ tokens
                                └────────────────────┘└──────────────┘
The outputs of some layers go through mergers of their own, and are added to the first layers of the language
model (DeepStack, https://arxiv.org/abs/2406.04334).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.checkpoints.vision import BLOCK_PATCHES, PREFIX, Vision
from workers.layers.layer_norm import LayerNorm
from workers.layers.linear import ColumnParallel
from workers.models.mlp import activated
from workers.weights.blocks import Empty
from workers.weights.loader import Shard, Slice, bytes_filled

EPS = 1e-6
BASE = 10_000.0  # of the angles by which rows and columns turn


class Tower:
    """All of it, on rank 0."""

    def __init__(self, vision: Vision, dtype: torch.dtype, device: torch.device) -> None:
        self.vision, self.dtype, self.device = vision, dtype, device
        empty = Empty(dtype, device)
        hidden = vision.hidden_size
        self.patches = _linear("patch_embed.proj", hidden, vision.patch_values, empty)
        self.table = empty(vision.table_side**2, hidden)
        self.blocks = [Block(f"blocks.{number}", vision, empty) for number in range(vision.depth)]
        self.merger = Merger("merger", vision, empty, merged_first=False)
        self.deepstack = {
            layer: Merger(f"deepstack_merger_list.{number}", vision, empty, merged_first=True)
            for number, layer in enumerate(vision.deepstack)
        }

    def parts(self) -> Iterator[Shard]:
        """What is read from the checkpoint."""
        table = Slice(f"{PREFIX}pos_embed.weight", tuple(self.table.shape), self.table)
        yield Shard([table])
        yield _shard(self.patches)
        for part in (*self.blocks, self.merger, *self.deepstack.values()):
            yield from part.parts()

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return bytes_filled(self.parts())

    def __call__(self, image: Tensor) -> Tensor:  # [tokens, (1 + len(deepstack)) * out_size]
        """What each token of an image is in the language model, and what it adds to its first layers.

        Args:
            image: `[rows, columns, 3]` uint8, both multiples of `vision.side`.
        """
        rows, columns = (size // self.vision.patch_size for size in image.shape[:2])
        places = self._places(rows, columns)
        x = self.patches(self._patches(image)) + self._positions(rows, columns, places)
        angles = self._angles(places)
        seen: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks):
            x = block(x, angles)
            if number in self.deepstack:
                seen[number] = self.deepstack[number](x)
        return torch.cat([self.merger(x), *(seen[layer] for layer in self.vision.deepstack)], dim=1)

    def _patches(self, image: Tensor) -> Tensor:  # [patches, patch_values]
        """The patches of one token together, colour by colour, each as often as a film has frames."""
        vision = self.vision
        mean, deviation = (torch.tensor(each, device=self.device) for each in (vision.mean, vision.deviation))
        colours = (image.to(self.device).float() / 255 - mean) / deviation
        size, merge = vision.patch_size, vision.merge_size
        tokens = colours.unflatten(0, (-1, merge, size)).unflatten(3, (-1, merge, size))
        patches = tokens.permute(0, 3, 1, 4, 6, 2, 5)  # row, column, row in it, column in it, colour, y, x
        filmed = patches.unsqueeze(5).expand(-1, -1, -1, -1, -1, vision.frames, -1, -1)
        return filmed.reshape(-1, vision.patch_values).to(self.dtype)

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

    def _angles(self, places: Tensor) -> tuple[Tensor, Tensor]:  # [patches, 1, head_dim] float32
        """Cosines and sines: a quarter of the pairs' halves turns with rows, the next one with columns."""
        half = self.vision.hidden_size // self.vision.num_heads // 2
        frequencies = 1.0 / BASE ** (torch.arange(0, half, 2, device=self.device).float() / half)
        angle = (places[:, :, None].float() * frequencies).flatten(1)
        angle = torch.cat((angle, angle), dim=-1)[:, None]
        return angle.cos(), angle.sin()


class Block:
    """Attention of all patches to all, then the feed-forward network."""

    def __init__(self, name: str, vision: Vision, empty: Empty) -> None:
        hidden, inner = vision.hidden_size, vision.intermediate_size
        self.heads, self.activation = vision.num_heads, vision.activation
        self.norms = [LayerNorm(f"{PREFIX}{name}.norm{n}", hidden, EPS, empty) for n in (1, 2)]
        self.qkv = _linear(f"{name}.attn.qkv", 3 * hidden, hidden, empty)
        self.output = _linear(f"{name}.attn.proj", hidden, hidden, empty)
        self.up = _linear(f"{name}.mlp.linear_fc1", inner, hidden, empty)
        self.down = _linear(f"{name}.mlp.linear_fc2", hidden, inner, empty)

    def parts(self) -> Iterator[Shard]:
        yield Shard([piece for norm in self.norms for piece in norm.pieces()])
        for linear in (self.qkv, self.output, self.up, self.down):
            yield _shard(linear)

    def __call__(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:  # [patches, hidden]
        qkv = self.qkv(self.norms[0](x)).view(len(x), 3, self.heads, -1)
        x = x + self.output(attended(qkv, angles))
        parts = self.norms[1](x).split(BLOCK_PATCHES)
        return x + torch.cat([self.down(activated(self.up(part), self.activation, False)) for part in parts])


class Merger:
    """The patches of a token to one vector of the language model.

    Args:
        merged_first: whether they are put side by side before they are normalised.
    """

    def __init__(self, name: str, vision: Vision, empty: Empty, *, merged_first: bool) -> None:
        self.size = vision.hidden_size * vision.merge_size**2
        self.merged_first = merged_first
        norm_size = self.size if merged_first else vision.hidden_size
        self.norm = LayerNorm(f"{PREFIX}{name}.norm", norm_size, EPS, empty)
        self.up = _linear(f"{name}.linear_fc1", self.size, self.size, empty)
        self.down = _linear(f"{name}.linear_fc2", vision.out_size, self.size, empty)

    def parts(self) -> Iterator[Shard]:
        yield Shard([*self.norm.pieces()])
        yield _shard(self.up)
        yield _shard(self.down)

    def __call__(self, x: Tensor) -> Tensor:  # [patches, hidden] -> [tokens, out_size]
        merged = self.norm(x.view(-1, self.size)) if self.merged_first else self.norm(x).view(-1, self.size)
        return self.down(F.gelu(self.up(merged)))


def _linear(name: str, rows: int, columns: int, empty: Empty) -> ColumnParallel:
    return ColumnParallel([(PREFIX + name, rows, range(rows))], columns, True, empty)


def _shard(linear: ColumnParallel) -> Shard:
    return Shard([*linear.pieces()], linear.pack)


def attended(
    qkv: Tensor, angles: tuple[Tensor, Tensor] | None = None
) -> Tensor:  # [patches, heads x head_dim]
    """What each patch has of all of an image.

    Args:
        qkv: `[patches, 3, heads, head_dim]`: queries, keys and values.
        angles: cosines and sines by which the first two turn, `[patches, 1, head_dim]` float32.
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


def _taps(places: Tensor, size: int, side: int) -> list[tuple[Tensor, Tensor]]:
    """The two entries of a line of `side` that each of `size` places lies between, and its share of each."""
    at = places.float() * (side - 1) / max(size - 1, 1)
    below = at.floor()
    share = at - below
    first = below.long()
    return [(first, 1 - share), ((first + 1).clamp(max=side - 1), share)]
