"""Llama, and the tensors that every decoder of its shape has.

The sharding is Megatron's (https://arxiv.org/abs/1909.08053): attention and MLP split by column on the way
in and by row on the way out, embedding and head by vocabulary, padded to equal parts. Norms are on every
rank, and so are the biases that are added after a row split. Where there are fewer KV heads than ranks, each
rank holds a copy of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from workers.checkpoints import config
from workers.checkpoints.config import ModelConfig
from workers.checkpoints.family import Family, TensorSpec

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def dense_tensors(model: ModelConfig) -> Iterator[TensorSpec]:
    """Every tensor that is loaded; a tied head is the embedding and not listed again."""
    hidden, head = model.hidden_size, model.head_dim
    queries, keys = model.num_heads * head, model.num_kv_heads * head
    yield TensorSpec(EMBEDDING, (model.vocab_size, hidden), "vocabulary")
    for layer in range(model.num_layers):
        prefix = f"model.layers.{layer}."
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        for norm in filter(None, msgspec.structs.astuple(model.norms)):
            yield TensorSpec(f"{prefix}{norm}.weight", (hidden,), "none")
        if model.fused_qkv:
            yield TensorSpec(attention + "qkv_proj.weight", (queries + 2 * keys, hidden), "qkv_rows")
        else:
            yield TensorSpec(attention + "q_proj.weight", (queries, hidden), "rows")
            yield TensorSpec(attention + "k_proj.weight", (keys, hidden), "kv_rows")
            yield TensorSpec(attention + "v_proj.weight", (keys, hidden), "kv_rows")
        yield TensorSpec(attention + "o_proj.weight", (hidden, queries), "columns")
        if model.experts is not None and layer in model.experts.layers:
            yield TensorSpec(mlp + "gate.weight", (model.experts.count, hidden), "none")
            for expert in range(model.experts.count):
                yield from _mlp(f"{mlp}experts.{expert}.", hidden, model.experts.intermediate_size)
        elif model.fused_gate_up:
            yield TensorSpec(mlp + "gate_up_proj.weight", (2 * model.intermediate_size, hidden), "rows")
            yield TensorSpec(mlp + "down_proj.weight", (hidden, model.intermediate_size), "columns")
        else:
            yield from _mlp(mlp, hidden, model.intermediate_size, model.mlp_bias)
        if model.qk_norm == "heads":
            yield TensorSpec(attention + "q_norm.weight", (head,), "none")
            yield TensorSpec(attention + "k_norm.weight", (head,), "none")
        elif model.qk_norm == "whole":
            yield TensorSpec(attention + "q_norm.weight", (queries,), "rows")
            yield TensorSpec(attention + "k_norm.weight", (keys,), "kv_rows")
        if model.qkv_bias:
            yield TensorSpec(attention + "q_proj.bias", (queries,), "rows")
            yield TensorSpec(attention + "k_proj.bias", (keys,), "kv_rows")
            yield TensorSpec(attention + "v_proj.bias", (keys,), "kv_rows")
        if model.output_bias:
            yield TensorSpec(attention + "o_proj.bias", (hidden,), "none")
    yield TensorSpec("model.norm.weight", (hidden,), "none")
    if not model.tied_head:
        yield TensorSpec(HEAD, (model.vocab_size, hidden), "vocabulary")


def _mlp(prefix: str, hidden: int, inner: int, bias: bool = False) -> Iterator[TensorSpec]:
    yield TensorSpec(prefix + "gate_proj.weight", (inner, hidden), "rows")
    yield TensorSpec(prefix + "up_proj.weight", (inner, hidden), "rows")
    yield TensorSpec(prefix + "down_proj.weight", (hidden, inner), "columns")
    if bias:
        yield TensorSpec(prefix + "gate_proj.bias", (inner,), "rows")
        yield TensorSpec(prefix + "up_proj.bias", (inner,), "rows")
        yield TensorSpec(prefix + "down_proj.bias", (hidden,), "none")


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Llama has no windows, but for those who ask for them by `use_sliding_window` or `layer_types`."""
    file = config.read(path, given)
    windows = config.windows_of(path, file, first=file.max_window_layers or 0)
    return config.model_config(path, file, windows, mlp_bias=file.mlp_bias)


LLAMA = Family("llama", ("LlamaForCausalLM",), read, dense_tensors)
