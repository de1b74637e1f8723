"""The tensors of a dense decoder, by name and shape, and how many bytes of each a rank holds.

The sharding is Megatron's (https://arxiv.org/abs/1909.08053): attention and MLP split by column on the way
in and by row on the way out, embedding and head by vocabulary, padded to equal parts. Norms are on every
rank, and so are the biases that are added after a row split. Where there are fewer KV heads than ranks, each
rank holds a copy of one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

import msgspec

Positive = Annotated[int, msgspec.Meta(ge=1)]
Split = Literal["rows", "columns", "kv_rows", "vocabulary", "none"]

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


class Weight(NamedTuple):
    """A tensor that a model must have."""

    name: str
    shape: tuple[int, ...]
    split: Split


class DecoderShape(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a `config.json` that decide shapes; sizes in elements."""

    vocab_size: Positive
    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    num_key_value_heads: Positive | None = None
    head_dim: Positive | None = None
    max_position_embeddings: Positive
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def weights(self, qk_norm: bool) -> Iterator[Weight]:
        """Every tensor that is loaded; a tied head is the embedding and not listed again."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_attention_heads * self.head_size, self.kv_heads * self.head_size
        yield Weight(EMBEDDING, (self.vocab_size, hidden), "vocabulary")
        for layer in range(self.num_hidden_layers):
            prefix = f"model.layers.{layer}."
            attention, mlp = prefix + "self_attn.", prefix + "mlp."
            yield Weight(prefix + "input_layernorm.weight", (hidden,), "none")
            yield Weight(prefix + "post_attention_layernorm.weight", (hidden,), "none")
            yield Weight(attention + "q_proj.weight", (queries, hidden), "rows")
            yield Weight(attention + "k_proj.weight", (keys, hidden), "kv_rows")
            yield Weight(attention + "v_proj.weight", (keys, hidden), "kv_rows")
            yield Weight(attention + "o_proj.weight", (hidden, queries), "columns")
            yield Weight(mlp + "gate_proj.weight", (inner, hidden), "rows")
            yield Weight(mlp + "up_proj.weight", (inner, hidden), "rows")
            yield Weight(mlp + "down_proj.weight", (hidden, inner), "columns")
            if qk_norm:
                yield Weight(attention + "q_norm.weight", (self.head_size,), "none")
                yield Weight(attention + "k_norm.weight", (self.head_size,), "none")
            if self.attention_bias:
                yield Weight(attention + "q_proj.bias", (queries,), "rows")
                yield Weight(attention + "k_proj.bias", (keys,), "kv_rows")
                yield Weight(attention + "v_proj.bias", (keys,), "kv_rows")
                yield Weight(attention + "o_proj.bias", (hidden,), "none")
            if self.mlp_bias:
                yield Weight(mlp + "gate_proj.bias", (inner,), "rows")
                yield Weight(mlp + "up_proj.bias", (inner,), "rows")
                yield Weight(mlp + "down_proj.bias", (hidden,), "none")
        yield Weight("model.norm.weight", (hidden,), "none")
        if not self.tie_word_embeddings:
            yield Weight(HEAD, (self.vocab_size, hidden), "vocabulary")

    def elements_on_rank(self, weight: Weight, world_size: int) -> int:
        """Elements of `weight` that each rank holds; the ranks hold equal parts."""
        first, *rest = weight.shape
        if weight.split == "none":
            return math.prod(weight.shape)
        if weight.split == "columns":
            return first * (rest[0] // world_size)
        if weight.split == "kv_rows":
            return self.kv_heads_on_rank(world_size) * self.head_size * math.prod(rest)
        return -(-first // world_size) * math.prod(rest)

    def kv_heads_on_rank(self, world_size: int) -> int:
        """KV heads of each rank: a part of them, or a copy of one."""
        return max(1, self.kv_heads // world_size)

    def splits_into(self, world_size: int) -> bool:
        """Whether the model can be spread over so many ranks."""
        return (
            self.num_attention_heads % world_size == 0
            and self.intermediate_size % world_size == 0
            and (self.kv_heads % world_size == 0 or world_size % self.kv_heads == 0)
        )
