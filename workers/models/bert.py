"""The encoder of BERT (Devlin et al. 2018), RoBERTa and XLM-R.

tokens + positions + types ─ norm ─┬─ attention ─┬+─ norm ─┬─ mlp ─┬+─ norm ─ … ─ hidden states
                                   └─────────────┘         └───────┘
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.attention.backend import Attend
from workers.checkpoints.families.bert import NORM, POSITIONS, TYPES, WORDS
from workers.checkpoints.model_config import ModelConfig
from workers.layers.embedding import Embedding, VocabularySlice
from workers.layers.layer_norm import LayerNorm
from workers.layers.linear import ColumnParallel, Linear, RowParallel
from workers.models.encoder import Encoder
from workers.models.mlp import activated
from workers.parallel import RankGroup
from workers.weights.blocks import Empty
from workers.weights.loader import Slice


class Bert(Encoder):
    """One rank's share of the model: token ids to hidden states."""

    def __init__(
        self,
        config: ModelConfig,
        group: RankGroup,
        dtype: torch.dtype,
        formats: Mapping[str, str] | None = None,  # of weights that are kept in blocks, by name
    ) -> None:
        empty = Empty(dtype, group.device, formats)
        encoder, hidden = config.encoder, config.hidden_size
        self.vocab_size = config.vocab_size
        self.embedding = Embedding(WORDS, VocabularySlice(config.vocab_size, group), hidden, empty)
        self.positions = empty(encoder.positions, hidden)
        self.first_position = encoder.first_position
        self.types = empty(encoder.token_types, hidden)
        self.embedding_norm = LayerNorm(NORM, hidden, config.norm_eps, empty)
        self.blocks = [Block(i, config, group, empty) for i in range(config.num_layers)]

    def tables(self) -> Iterator[Slice]:
        yield from self.embedding.pieces()
        yield Slice(f"{POSITIONS}.weight", tuple(self.positions.shape), self.positions)
        if len(self.types):
            yield Slice(f"{TYPES}.weight", tuple(self.types.shape), self.types)
        yield from self.embedding_norm.pieces()

    def __call__(
        self, token_ids: Tensor, positions: Tensor, attend: Attend, types: Tensor | None = None
    ) -> Tensor:  # [tokens, hidden]
        """Run all blocks.

        Args:
            token_ids: `[tokens]` int64.
            positions: the same, from 0 in each sequence.
            types: the same: 0, and in the second text of a pair 1; None: the model has none.
        """
        x = self.embedding(token_ids) + F.embedding(positions + self.first_position, self.positions)
        if types is not None:
            x = x + F.embedding(types.clamp(max=len(self.types) - 1), self.types)
        x = self.embedding_norm(x)
        for block in self.blocks:
            x = block(x, attend)
        return x


class Block:
    """Attention, then the feed-forward network, with a norm behind each sum."""

    def __init__(self, number: int, config: ModelConfig, group: RankGroup, empty: Empty) -> None:
        name, hidden, inner = f"encoder.layer.{number}", config.hidden_size, config.intermediate_size
        self.number, self.head_dim = number, config.head_dim
        self.activation, self.exact = config.activation, False
        heads = group.share(config.num_heads)
        share = range(heads.start * config.head_dim, heads.stop * config.head_dim)
        projections = [(f"{name}.attention.self.{each}", hidden, share) for each in ("query", "key", "value")]
        self.qkv = ColumnParallel(projections, hidden, True, empty)
        self.output = RowParallel(f"{name}.attention.output.dense", hidden, hidden, True, group, empty)
        self.attention_norm = LayerNorm(f"{name}.attention.output.LayerNorm", hidden, config.norm_eps, empty)
        wide = [(f"{name}.intermediate.dense", inner, group.share(inner))]
        self.up = ColumnParallel(wide, hidden, True, empty)
        self.down = RowParallel(f"{name}.output.dense", hidden, inner, True, group, empty)
        self.mlp_norm = LayerNorm(f"{name}.output.LayerNorm", hidden, config.norm_eps, empty)

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.qkv, self.output, self.up, self.down

    def norms(self) -> Iterator[Slice]:
        yield from self.attention_norm.pieces()
        yield from self.mlp_norm.pieces()

    def __call__(self, x: Tensor, attend: Attend) -> Tensor:  # [tokens, hidden]
        x = self.attention_norm(x + self._attended(x, attend))
        inner = activated(self.up(x), self.activation, self.exact)
        return self.mlp_norm(x + self.down(inner))

    def _attended(self, x: Tensor, attend: Attend) -> Tensor:  # [tokens, hidden]
        q, keys, values = self.qkv(x).view(len(x), 3, -1, self.head_dim).unbind(1)
        return self.output(attend(self.number, q, keys, values).reshape(len(x), -1))
