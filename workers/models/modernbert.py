"""ModernBERT (Warner et al. 2024): norms before each part, rotary positions, a gated MLP.

tokens ─ embedding ─ norm ─┬─ attention ─┬+─ norm ─ mlp ─┬+─ norm ─ … ─ norm ─ hidden states
                           └─────────────┘└──────────────┘
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from workers.attention.backend import Attend
from workers.checkpoints.families.modernbert import LAST_NORM, NORM, WORDS
from workers.checkpoints.model_config import ModelConfig
from workers.layers.embedding import Embedding, VocabularySlice
from workers.layers.layer_norm import LayerNorm
from workers.layers.linear import ColumnParallel, Linear, RowParallel
from workers.layers.rotary import Angles, Rotary, rotate
from workers.models.encoder import Encoder
from workers.models.mlp import gated
from workers.parallel import RankGroup
from workers.weights.blocks import Empty
from workers.weights.loader import Slice


class ModernBert(Encoder):
    """One rank's share of the model: token ids to hidden states."""

    def __init__(
        self,
        config: ModelConfig,
        group: RankGroup,
        dtype: torch.dtype,
        formats: Mapping[str, str] | None = None,  # of weights that are kept in blocks, by name
    ) -> None:
        empty = Empty(dtype, group.device, formats)
        hidden, eps, bias = config.hidden_size, config.norm_eps, config.encoder.norm_bias
        self.vocab_size = config.vocab_size
        self.embedding = Embedding(WORDS, VocabularySlice(config.vocab_size, group), hidden, empty)
        self.embedding_norm = LayerNorm(NORM, hidden, eps, empty, bias)
        self.rotaries = [
            Rotary(rope, config.rotary_dim, group.device) for rope in (config.rope, config.window_rope)
        ]
        self.blocks = [Block(i, config, group, empty) for i in range(config.num_layers)]
        self.norm = LayerNorm(LAST_NORM, hidden, eps, empty, bias)

    def tables(self) -> Iterator[Slice]:
        yield from self.embedding.pieces()
        yield from self.embedding_norm.pieces()
        yield from self.norm.pieces()

    def __call__(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:  # [tokens, hidden]
        """Run all blocks; before the last norm.

        Args:
            token_ids: `[tokens]` int64.
            positions: the same, from 0 in each sequence.
        """
        angles = [rotary(positions) for rotary in self.rotaries]
        x = self.embedding_norm(self.embedding(token_ids))
        for block in self.blocks:
            x = block(x, angles, attend)
        return x


class Block:
    """Attention, then the feed-forward network, each on the normalised residual stream."""

    def __init__(self, number: int, config: ModelConfig, group: RankGroup, empty: Empty) -> None:
        name, hidden, inner = f"layers.{number}", config.hidden_size, config.intermediate_size
        self.number, self.head_dim = number, config.head_dim
        self.activation, self.exact = config.activation, False
        self.rope = int(config.layers[number].kind == "window")  # which of the model's
        bias, eps = config.encoder.norm_bias, config.norm_eps
        # the first layer's attention reads what the embedding's norm wrote
        self.attention_norm = LayerNorm(f"{name}.attn_norm", hidden, eps, empty, bias) if number else None
        self.mlp_norm = LayerNorm(f"{name}.mlp_norm", hidden, eps, empty, bias)
        heads = group.share(config.num_heads)
        shares = [
            range(start + heads.start * config.head_dim, start + heads.stop * config.head_dim)
            for start in (0, hidden, 2 * hidden)
        ]
        projections = [(f"{name}.attn.Wqkv", 3 * hidden, share) for share in shares]
        self.qkv = ColumnParallel(projections, hidden, config.qkv_bias, empty)
        self.output = RowParallel(f"{name}.attn.Wo", hidden, hidden, config.output_bias, group, empty)
        upper = group.share(inner)
        lower = range(inner + upper.start, inner + upper.stop)
        wide = [(f"{name}.mlp.Wi", 2 * inner, share) for share in (upper, lower)]
        self.up = ColumnParallel(wide, hidden, config.mlp_bias, empty)
        self.down = RowParallel(f"{name}.mlp.Wo", hidden, inner, config.mlp_bias, group, empty)

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.qkv, self.output, self.up, self.down

    def norms(self) -> Iterator[Slice]:
        for norm in filter(None, (self.attention_norm, self.mlp_norm)):
            yield from norm.pieces()

    def __call__(self, x: Tensor, angles: list[Angles], attend: Attend) -> Tensor:  # [tokens, hidden]
        x = x + self._attended(x if self.attention_norm is None else self.attention_norm(x), angles, attend)
        return x + self.down(gated(self.up(self.mlp_norm(x)), self.activation, self.exact))

    def _attended(self, x: Tensor, angles: list[Angles], attend: Attend) -> Tensor:  # [tokens, hidden]
        qkv = self.qkv(x).view(len(x), 3, -1, self.head_dim)
        q, keys = (rotate(each.float(), *angles[self.rope]).to(x.dtype) for each in qkv[:, :2].unbind(1))
        return self.output(attend(self.number, q, keys, qkv[:, 2]).reshape(len(x), -1))
