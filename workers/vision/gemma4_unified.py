"""What Gemma 4 12B has in the place of a tower: the pixels of a token to the token.

pixels ─ norm ─ product ─ norm ─ + positions ─ norm ─ norm ─ projector ─ tokens
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from workers.checkpoints.gemma4_unified_vision import PROJECTOR
from workers.checkpoints.gemma4_vision import AXES
from workers.checkpoints.vision import PIECE_PATCHES, Vision
from workers.layers.norm import over_rms
from workers.vision.gemma4 import placed
from workers.vision.tower import Look, cuts, embedded
from workers.vision.weights import Weights

EPS = 1e-5


class Gemma4Embedder:
    """See `Tower`. A token is one patch."""

    def __init__(self, vision: Vision, dtype: torch.dtype, device: torch.device) -> None:
        self.vision, self.dtype, self.device = vision, dtype, device
        weights = self.weights = Weights(dtype, device)
        hidden, values = vision.hidden_size, vision.patch_values
        self.before = weights.layer_norm("patch_ln1", values, EPS)
        self.patches = weights.linear("patch_dense", hidden, values)
        self.after = weights.layer_norm("patch_ln2", hidden, EPS)
        table = weights.table("pos_embedding", vision.gemma4.positions, AXES * hidden)
        self.columns, self.rows = table.chunk(AXES, dim=1)
        self.norm = weights.layer_norm("pos_norm", hidden, EPS)
        self.projector = weights.linear(PROJECTOR, vision.out_size, hidden, bias=False)

    def look(self, image: Tensor) -> Look:
        vision = self.vision
        rows, columns = (size // vision.side for size in image.shape[:2])
        x = torch.empty(rows * columns, vision.hidden_size, dtype=self.dtype, device=self.device)
        yield from embedded(image, vision, self._embed, partial(self._placed, columns), x)
        tokens = x.new_empty(len(x), vision.out_size)
        for part in cuts(len(x), PIECE_PATCHES[self.device.type]):
            tokens[part] = self.projector(self._normed(x[part]))
            yield len(tokens[part]) * x.shape[1] * vision.out_size
        return tokens

    def _embed(self, patches: Tensor) -> Tensor:  # [patches, patch_values] -> [patches, hidden]
        return self.after(self.patches(self.before(patches)))

    def _placed(self, across: int, y: Tensor, part: slice) -> Tensor:  # [patches, hidden]
        return self.norm(placed(self.columns, self.rows, across, y, part))

    def _normed(self, x: Tensor) -> Tensor:  # [patches, hidden]
        x = x.float()
        return (x * over_rms(x, self.vision.gemma4.eps)).to(self.dtype)
