"""What the towers have in common: the patches of an image go through blocks, all of which see all of it.

x ─┬─ norm ─ attention ─┬+─ norm ─ mlp ─┬+─
   └────────────────────┘└──────────────┘

A look at a large image takes longer than others may wait for their next token. So it is a generator: it stops
behind each piece of its work, and goes on when it is asked to. The pieces are the same whether anything is
done between them or not, so what is seen is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.checkpoints.vision import CHANNELS, PIECE_PATCHES, Vision
from workers.layers.layer_norm import LayerNorm
from workers.layers.linear import ColumnParallel
from workers.layers.norm import RMSNorm
from workers.vision.weights import Weights

Angles = tuple[Tensor, Tensor]  # cosines and sines, [patches, 1, pairs] float32
Work = Generator[int, None, None]  # yields, behind each piece, the multiplications that it took
Look = Generator[int, None, Tensor]  # the same; what it returns are tokens, [tokens, width]


class Tower(Protocol):
    """All of one, on rank 0."""

    weights: Weights

    def look(self, image: Tensor) -> Look:
        """What each token of an image is in the language model.

        Args:
            image: `[rows, columns, 3]` uint8, both multiples of `Vision.side`.
        """
        ...


def seen(look: Look) -> Tensor:  # [tokens, width]
    """What a look comes to, all that is left of it at once."""
    while True:
        try:
            next(look)
        except StopIteration as end:
            return end.value


@dataclass(frozen=True, slots=True)
class Block:
    """Attention of all patches to all, then the feed-forward network."""

    norms: tuple[LayerNorm | RMSNorm, LayerNorm | RMSNorm]
    qkv: ColumnParallel
    output: ColumnParallel
    up: ColumnParallel
    activate: Callable[[Tensor], Tensor]
    down: ColumnParallel
    heads: int

    def room(self, x: Tensor) -> Tensor:  # [patches, 3, heads, head_dim]
        """For queries, keys and values: of one layer after the other, so that no memory is cut up."""
        return x.new_empty(len(x), 3, self.heads, x.shape[1] // self.heads)

    def through(self, x: Tensor, qkv: Tensor, angles: Angles | None = None) -> Work:
        """Make of the patches what leaves the block, in place.

        Args:
            x: `[patches, hidden]`.
            qkv: what is written over, see `room`.
            angles: by which queries and keys turn; None: they do not.
        """
        hidden, pieces = x.shape[1], cuts(len(x), PIECE_PATCHES[x.device.type])
        for piece in pieces:
            qkv[piece] = self.qkv(self.norms[0](x[piece])).view(-1, *qkv.shape[1:])
            if angles is not None:
                for part in (0, 1):
                    qkv[piece, part] = turned(qkv[piece, part], *(each[piece] for each in angles))
            yield len(x[piece]) * 3 * hidden**2
        queries, keys, values = (each.transpose(0, 1)[None] for each in qkv.unbind(1))
        for piece in pieces:
            x[piece].add_(self.output(attended(queries[:, :, piece], keys, values)))
            yield len(x[piece]) * hidden * (2 * len(x) + hidden)
        inner = self.down.columns + sum(rows for _, rows, _ in self.up.projections)
        for piece in pieces:
            x[piece].add_(self.down(self.activate(self.up(self.norms[1](x[piece])))))
            yield len(x[piece]) * hidden * inner


def attended(q: Tensor, keys: Tensor, values: Tensor, scale: float | None = None) -> Tensor:
    """What some patches have of all, `[patches, heads x head_dim]`; each of the three is
    `[1, heads, patches, head_dim]`.

    Args:
        scale: of scores; None: 1 / sqrt(head_dim).
    """
    return F.scaled_dot_product_attention(q, keys, values, scale=scale)[0].transpose(0, 1).flatten(1)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # [patches, heads, head_dim]
    """Queries or keys, whose first halves turn with the second ones."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def embedded(
    image: Tensor,
    vision: Vision,
    product: Callable[[Tensor], Tensor],
    placed: Callable[[Tensor, slice], Tensor],
    x: Tensor,
    square: int = 1,
) -> Work:
    """Fill in what the patches of an image are before the first block.

    Args:
        image: `[rows, columns, 3]` uint8.
        product: that each patch goes through.
        placed: what then becomes of some of them, `[patches, hidden]`, and which these are.
        x: `[patches, hidden]`: row by row of squares of `square` x `square` patches.
    """
    side, each = vision.patch_size * square, square**2
    rows, columns = (size // side for size in image.shape[:2])
    most = max(1, PIECE_PATCHES[x.device.type] // each)
    high, wide = max(1, most // columns), min(most, columns)
    for top in range(0, rows, high):
        for left in range(0, columns, wide):
            cells = image[top * side : (top + high) * side, left * side : (left + wide) * side]
            patches = arranged(cells, vision, square, x)
            first = (top * columns + left) * each
            piece = slice(first, first + len(patches))
            x[piece] = placed(product(patches), piece)
            yield len(patches) * patches.shape[1] * x.shape[1]


def arranged(image: Tensor, vision: Vision, square: int, like: Tensor) -> Tensor:  # [patches, patch_values]
    """Patches in the order of `embedded`, colour by colour, each as often as a film has frames; or pixel by
    pixel, where colours are last."""
    mean, deviation = (torch.tensor(each, device=like.device) for each in (vision.mean, vision.deviation))
    colours = image.to(like.device).float().div_(255).sub_(mean).div_(deviation).to(like.dtype)
    size = vision.patch_size
    squares = colours.unflatten(0, (-1, square, size)).unflatten(3, (-1, square, size))
    if vision.colours_last:
        return squares.permute(0, 3, 1, 4, 2, 5, 6).reshape(-1, CHANNELS * size**2)
    patches = squares.permute(0, 3, 1, 4, 6, 2, 5)  # row, column, row in it, column in it, colour, y, x
    filmed = patches.unsqueeze(5).expand(-1, -1, -1, -1, -1, vision.frames, -1, -1)
    return filmed.reshape(-1, CHANNELS * vision.frames * size**2)


def squares(x: Tensor, columns: int, side: int) -> Tensor:  # [tokens, side * side, hidden]
    """Whole rows of patches, row by row, as the squares that tokens are made of.

    Args:
        x: `[patches, hidden]`.
        columns: patches in a row.
    """
    grid = x.view(-1, side, columns // side, side, x.shape[1])
    return grid.transpose(1, 2).reshape(-1, side**2, x.shape[1])


def cuts(count: int, most: int) -> list[slice]:
    """Pieces of at most so many of `count`, one after the other."""
    return [slice(first, min(first + most, count)) for first in range(0, count, most)]


def bands(patches: int, columns: int, side: int, most: int) -> list[tuple[slice, slice]]:
    """Pieces of whole rows of squares, and the tokens that these are: about `most` patches, or one row.

    Args:
        patches: of an image.
        columns: of them in a row.
        side: of a square.
    """
    row, each = columns * side, side**2
    return [
        (slice(made.start * each, made.stop * each), made)
        for made in cuts(patches // each, max(1, most // row) * row // each)
    ]
