"""The tower of Gemma 4 and its projector: an image to its tokens.

pixels ─ patches ─ + positions ─ blocks ─ averages ─ norm ─ projector ─ tokens

A block has a norm behind its attention and its MLP as well, and one of each head's queries, keys and values.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.checkpoints.gemma4_vision import AXES, BOUNDS, NORMS
from workers.checkpoints.vision import PIECE_PATCHES, Vision
from workers.layers.norm import over_rms
from workers.models.mlp import activated
from workers.vision.tower import Angles, Look, Work, attended, bands, cuts, embedded, squares, turned
from workers.vision.weights import Weights


class Gemma4Tower:
    """See `Tower`."""

    def __init__(self, vision: Vision, dtype: torch.dtype, device: torch.device) -> None:
        self.vision, self.dtype, self.device = vision, dtype, device
        weights = self.weights = Weights(dtype, device)
        hidden, about = vision.hidden_size, vision.gemma4
        name = "patch_embedder"
        self.patches = weights.linear(f"{name}.input_proj", hidden, vision.patch_values, bias=False)
        table = weights.table(f"{name}.position_embedding_table", AXES * about.positions, hidden)
        self.columns, self.rows = table.chunk(AXES)
        self.blocks = [Block(f"encoder.layers.{n}", vision, weights) for n in range(vision.depth)]
        self.standard: list[Tensor] = []  # what is subtracted from averages, and their scale then
        if about.standardised:
            self.standard = [weights.table(each, hidden) for each in ("std_bias", "std_scale")]
        name = "projector.embedding_projection"
        self.projector = weights.linear(name, vision.out_size, hidden, bias=False)

    def look(self, image: Tensor) -> Look:
        vision = self.vision
        rows, columns = (size // vision.patch_size for size in image.shape[:2])
        x = torch.empty(rows * columns, vision.hidden_size, dtype=self.dtype, device=self.device)
        yield from embedded(image, vision, self.patches, partial(placed, self.columns, self.rows, columns), x)
        angles = self._angles(rows, columns)
        qkv = self.blocks[0].room(x)
        for block in self.blocks:
            yield from block.through(x, qkv, angles)
        del qkv, angles
        merge, most = vision.merge_size, PIECE_PATCHES[self.device.type]
        tokens = x.new_empty(len(x) // merge**2, vision.out_size)
        for part, made in bands(len(x), columns, merge, most):
            tokens[made] = self.projector(self._pooled(squares(x[part], columns, merge)))
            yield len(tokens[made]) * x.shape[1] * vision.out_size
        return tokens

    def _angles(self, rows: int, columns: int) -> Angles:  # [patches, 1, 2, head_dim / 4] each
        """The first half of a head turns with columns, the second one with rows."""
        half = self.vision.hidden_size // self.vision.num_heads // AXES
        exponents = torch.arange(0, half, 2, device=self.device).float() / half
        frequencies = 1.0 / self.vision.gemma4.theta**exponents
        down, across = (
            torch.arange(size, device=self.device).float()[:, None] * frequencies for size in (rows, columns)
        )
        down = down[:, None].expand(-1, columns, -1)
        angle = torch.stack((across.expand(rows, -1, -1), down), dim=2).flatten(0, 1)[:, None]
        return angle.cos(), angle.sin()

    def _pooled(self, patches: Tensor) -> Tensor:  # [tokens, patches of one, hidden] -> [tokens, hidden]
        """What tokens are before the projector, whose averages are beyond float16."""
        averages = patches.mean(dim=1, dtype=torch.float32).mul_(patches.shape[-1] ** 0.5)
        if self.standard:
            bias, scale = self.standard
            averages.sub_(bias).mul_(scale)
        return averages.mul_(over_rms(averages, self.vision.gemma4.eps)).to(self.dtype)


def placed(columns: Tensor, rows: Tensor, across: int, y: Tensor, part: slice) -> Tensor:  # [patches, hidden]
    """Some patches with the embeddings of their columns and rows.

    Args:
        columns: the embeddings of all, `[positions, hidden]`.
        rows: the same.
        across: patches in a row of the image.
        y: what they are before, `[patches, hidden]`.
        part: which they are.
    """
    place = torch.arange(part.start, part.stop, device=y.device)
    found = F.embedding(place % across, columns)
    return found.add_(F.embedding(place // across, rows)).add_(y)


class Block:
    """Attention of all patches to all, then the feed-forward network, each between two norms."""

    def __init__(self, name: str, vision: Vision, weights: Weights) -> None:
        hidden, inner, about = vision.hidden_size, vision.intermediate_size, vision.gemma4
        self.heads, self.head_dim, self.eps = vision.num_heads, hidden // vision.num_heads, about.eps
        self.activation = vision.activation
        norms = [weights.rms_norm(f"{name}.{each}", hidden, about.eps) for each in NORMS]
        self.before_attention, self.after_attention, self.before_mlp, self.after_mlp = norms
        clipped = partial(Clipped, weights, about.clipped)
        attention, mlp = f"{name}.self_attn", f"{name}.mlp"
        self.qkv = [clipped(f"{attention}.{part}_proj", hidden, hidden) for part in "qkv"]
        self.head_norms = [weights.table(f"{attention}.{part}_norm.weight", self.head_dim) for part in "qk"]
        self.output = clipped(f"{attention}.o_proj", hidden, hidden)
        self.gate, self.up = (clipped(f"{mlp}.{part}_proj", inner, hidden) for part in ("gate", "up"))
        self.down = clipped(f"{mlp}.down_proj", hidden, inner)
        self.inner = inner

    def room(self, x: Tensor) -> Tensor:  # [patches, 3, heads, head_dim]
        """For queries, keys and values, of one layer after the other."""
        return x.new_empty(len(x), 3, self.heads, self.head_dim)

    def through(self, x: Tensor, qkv: Tensor, angles: Angles) -> Work:
        """Make of the patches what leaves the block, in place.

        Args:
            x: `[patches, hidden]`.
            qkv: what is written over, see `room`.
            angles: by which queries and keys turn.
        """
        hidden, pieces = x.shape[1], cuts(len(x), PIECE_PATCHES[x.device.type])
        for piece in pieces:
            self._project(x[piece], qkv[piece], [each[piece] for each in angles])
            yield len(x[piece]) * 3 * hidden**2
        queries, keys, values = (each.transpose(0, 1)[None] for each in qkv.unbind(1))
        for piece in pieces:
            x[piece] = self.after_attention.added(x[piece], self._seen(queries[:, :, piece], keys, values))
            yield len(x[piece]) * hidden * (2 * len(x) + hidden)
        for piece in pieces:
            x[piece] = self.after_mlp.added(x[piece], self._fed(self.before_mlp(x[piece])))
            yield len(x[piece]) * 3 * hidden * self.inner

    def _project(self, x: Tensor, qkv: Tensor, angles: list[Tensor]) -> None:
        """Fill in queries, keys and values of some patches."""
        x = self.before_attention(x)
        for part in range(3):
            y = self.qkv[part](x).view(len(x), self.heads, self.head_dim).float()
            y.mul_(over_rms(y, self.eps))
            if part < 2:
                y.mul_(self.head_norms[part])
                y = turned(y.unflatten(2, (AXES, -1)), *angles).flatten(2)
            qkv[:, part] = y
            del y

    def _seen(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:  # [patches, hidden]
        return self.output(attended(queries, keys, values, scale=1.0))

    def _fed(self, x: Tensor) -> Tensor:  # [patches, hidden]
        gates = activated(self.gate(x), self.activation, exact=False)
        return self.down(gates.mul_(self.up(x)))


class Clipped:
    """A product; where it is clipped, what goes into it and what comes of it stay within bounds."""

    def __init__(self, weights: Weights, clipped: bool, name: str, rows: int, columns: int) -> None:
        self.product = weights.linear(f"{name}.linear", rows, columns, bias=False)
        self.bounds = [weights.table(f"{name}.{bound}", 1) for bound in BOUNDS if clipped]

    def __call__(self, x: Tensor) -> Tensor:  # [patches, columns] -> [patches, rows]
        if not self.bounds:
            return self.product(x)
        least, most, least_out, most_out = self.bounds
        return self.product(x.clamp(least, most)).clamp_(least_out, most_out)
