"""BERT with rotary positions and a gated MLP: Nomic's (Nussbaum et al. 2024), and GTE (Zhang et al. 2024).

In Nomic's second every other layer has experts, and no MLP has gates.

tokens + types ─ norm ─┬─ attention ─┬+─ norm ─┬─ mlp ─┬+─ norm ─ … ─ hidden states
                       └─────────────┘         └───────┘
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.attention.backend import Attend
from workers.checkpoints.families.nomic_bert import NORM, TYPES, WORDS
from workers.checkpoints.model_config import ModelConfig
from workers.layers.embedding import Embedding, VocabularySlice
from workers.layers.layer_norm import LayerNorm
from workers.layers.linear import ColumnParallel, Linear, RowParallel
from workers.layers.rotary import Angles, Rotary, rotate
from workers.models.encoder import Encoder
from workers.models.experts import MixtureOfExperts
from workers.models.mlp import activated, gated
from workers.parallel import RankGroup
from workers.weights.blocks import Empty
from workers.weights.loader import Slice


class NomicBert(Encoder):
    """One rank's share of the model: token ids to hidden states."""

    def __init__(
        self,
        config: ModelConfig,
        group: RankGroup,
        dtype: torch.dtype,
        formats: Mapping[str, str] | None = None,  # of weights that are kept in blocks, by name
    ) -> None:
        empty = Empty(dtype, group.device, formats)
        hidden = config.hidden_size
        self.vocab_size = config.vocab_size
        self.embedding = Embedding(WORDS, VocabularySlice(config.vocab_size, group), hidden, empty)
        self.types = empty(config.encoder.token_types, hidden)
        self.embedding_norm = LayerNorm(NORM, hidden, config.norm_eps, empty)
        self.rotary = Rotary(config.rope, config.rotary_dim, group.device)
        self.blocks = [Block(i, config, group, empty) for i in range(config.num_layers)]

    def tables(self) -> Iterator[Slice]:
        yield from self.embedding.pieces()
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
        x = self.embedding(token_ids)
        if types is not None:
            x = x + F.embedding(types.clamp(max=len(self.types) - 1), self.types)
        x, angles = self.embedding_norm(x), self.rotary(positions)
        for block in self.blocks:
            x = block(x, angles, attend)
        return x


class MLP:
    """Gated, or with one projection in."""

    def __init__(self, name: str, config: ModelConfig, group: RankGroup, empty: Empty) -> None:
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gates, self.activation, self.exact = config.gates, config.activation, False
        names = ("fc12", "fc11") if config.gates else ("fc1",)
        wide = [(f"{name}.{each}", inner, group.share(inner)) for each in names]
        self.up = ColumnParallel(wide, hidden, config.mlp_bias, empty)
        self.down = RowParallel(f"{name}.fc2", hidden, inner, config.encoder.down_bias, group, empty)

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.up, self.down

    def vectors(self) -> Iterator[Slice]:
        """All that is no product."""
        return iter(())

    def __call__(self, x: Tensor) -> Tensor:  # [tokens, hidden]
        function = gated if self.gates else activated
        return self.down(function(self.up(x), self.activation, self.exact))


class Mixture(MixtureOfExperts):
    """Experts, and what is added to their sum."""

    def __init__(self, name: str, config: ModelConfig, group: RankGroup, empty: Empty) -> None:
        super().__init__(name, config, group, empty)
        self.name = name
        self.bias = empty(config.hidden_size) if config.experts.summed_bias else None

    def vectors(self) -> Iterator[Slice]:
        """All that is no product."""
        if self.bias is not None:
            yield Slice(f"{self.name}.experts.bias", tuple(self.bias.shape), self.bias)

    def __call__(self, x: Tensor) -> Tensor:  # [tokens, hidden]
        y = super().__call__(x)
        return y if self.bias is None else y + self.bias


class Block:
    """Attention, then the feed-forward network, with a norm behind each sum."""

    def __init__(self, number: int, config: ModelConfig, group: RankGroup, empty: Empty) -> None:
        name, hidden = f"encoder.layers.{number}", config.hidden_size
        self.number, self.head_dim = number, config.head_dim
        heads = group.share(config.num_heads)
        shares = [
            range(start + heads.start * config.head_dim, start + heads.stop * config.head_dim)
            for start in (0, hidden, 2 * hidden)
        ]
        projections = [(f"{name}.attn.Wqkv", 3 * hidden, share) for share in shares]
        self.qkv = ColumnParallel(projections, hidden, config.qkv_bias, empty)
        bias = config.output_bias
        self.output = RowParallel(f"{name}.attn.out_proj", hidden, hidden, bias, group, empty)
        self.attention_norm = LayerNorm(f"{name}.norm1", hidden, config.norm_eps, empty)
        has_experts = config.experts is not None and number in config.experts.layers
        self.mlp = (Mixture if has_experts else MLP)(f"{name}.mlp", config, group, empty)
        self.mlp_norm = LayerNorm(f"{name}.norm2", hidden, config.norm_eps, empty)

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.qkv, self.output, *self.mlp.linears

    @property
    def exact(self) -> bool:
        """Whether each token is computed as if it were alone."""
        return self.mlp.exact

    @exact.setter
    def exact(self, exact: bool) -> None:
        self.mlp.exact = exact

    def norms(self) -> Iterator[Slice]:
        yield from self.attention_norm.pieces()
        yield from self.mlp_norm.pieces()
        yield from self.mlp.vectors()

    def __call__(self, x: Tensor, angles: Angles, attend: Attend) -> Tensor:  # [tokens, hidden]
        x = self.attention_norm(x + self._attended(x, angles, attend))
        return self.mlp_norm(x + self.mlp(x))

    def _attended(self, x: Tensor, angles: Angles, attend: Attend) -> Tensor:  # [tokens, hidden]
        qkv = self.qkv(x).view(len(x), 3, -1, self.head_dim)
        q, keys = (rotate(each.float(), *angles).to(x.dtype) for each in qkv[:, :2].unbind(1))
        return self.output(attend(self.number, q, keys, qkv[:, 2]).reshape(len(x), -1))
