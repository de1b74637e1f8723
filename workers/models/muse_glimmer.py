"""The decoder of Muse Glimmer: the usual figure, whose embeddings are normalised as well.

Nothing is added to the weights of the last norm, and those behind attention and MLP have an epsilon of their
own.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.checkpoints.model_config import ModelConfig
from workers.models.decoder import Block, Decoder
from workers.parallel import RankGroup
from workers.weights.blocks import Empty


class MuseGlimmer(Decoder):
    """One rank's share of the model."""

    def __init__(
        self,
        config: ModelConfig,
        group: RankGroup,
        dtype: torch.dtype,
        formats: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(config, group, dtype, formats)
        self.norm.offset = 0.0

    def block(self, number: int, config: ModelConfig, group: RankGroup, empty: Empty) -> Block:
        block = Block(number, config, group, empty)
        block.after_attention.eps = block.after_mlp.eps = config.after_norm_eps
        return block

    def embedded(self, token_ids: Tensor) -> Tensor:  # [tokens, hidden]
        x = super().embedded(token_ids)
        return F.rms_norm(x, x.shape[-1:], eps=self.norm.eps)
