"""Llama, and the tensors that every decoder of its shape has.

The sharding is Megatron's (https://arxiv.org/abs/1909.08053): attention and MLP split by column on the way
in and by row on the way out, embedding and head by vocabulary, padded to equal parts. Norms are on every
rank, and so are the biases that are added after a row split. Where there are fewer KV heads than ranks, each
rank holds a copy of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from workers.checkpoints import config
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.experts import Experts
from workers.checkpoints.family import Family, TensorSpec
from workers.checkpoints.model_config import ModelConfig

EMBEDDING = "model.embed_tokens.weight"
HEAD, HEAD_BIAS = "lm_head.weight", "lm_head.bias"
MTP_JOINS = "eh_proj.weight"  # of a head that predicts several tokens: what an embedding and a state become

# tensors of a part of a layer, under names that begin with the layer's, which it is given
Mixer = Callable[[ModelConfig, str], Iterator[TensorSpec]]


def dense_tensors(model: ModelConfig) -> Iterator[TensorSpec]:
    """Every tensor that is loaded; a tied head is the embedding and not listed again."""
    return decoder_tensors(model, attention_tensors)


def decoder_tensors(model: ModelConfig, attention: Mixer, state: Mixer | None = None) -> Iterator[TensorSpec]:
    """The same, with other tensors of attention, and those of layers that keep a state in place of it."""
    hidden = model.hidden_size
    yield TensorSpec(EMBEDDING, (model.vocab_size, hidden), "vocabulary")
    for layer in range(model.num_layers + model.mtp):
        prefix = f"model.layers.{layer}."
        if layer == model.num_layers:
            yield from _mtp_tensors(prefix, model)
        for norm in filter(None, msgspec.structs.astuple(model.norms_of(layer))):
            yield from _norm(f"{prefix}{norm}", model)
        keeps_state = state is not None and model.layers[layer].kind == "state"
        yield from (state if keeps_state else attention)(model.of_layer(layer), prefix)
        if model.experts is not None and layer in model.experts.layers:
            yield from expert_tensors(prefix + "mlp.", hidden, model.experts)
        elif model.fused_gate_up:
            yield TensorSpec(
                prefix + "mlp.gate_up_proj.weight", (2 * model.intermediate_size, hidden), "rows"
            )
            yield TensorSpec(prefix + "mlp.down_proj.weight", (hidden, model.intermediate_size), "columns")
        else:
            inner, bias = model.intermediate_size, model.mlp_bias
            yield from mlp_tensors(prefix + "mlp.", hidden, inner, bias, gates=model.gates)
    yield from _norm("model.norm", model)
    if not model.tied_head:
        yield TensorSpec(HEAD, (model.vocab_size, hidden), "vocabulary")
    if model.head_bias:
        yield TensorSpec(HEAD_BIAS, (model.vocab_size,), "vocabulary")


def _mtp_tensors(prefix: str, model: ModelConfig) -> Iterator[TensorSpec]:
    """What a head that predicts the token after the next has beside its layer, under DeepSeek V3's names
    (https://arxiv.org/abs/2412.19437, section 2.2)."""
    for name in ("enorm", "hnorm", "shared_head.norm"):
        yield from _norm(prefix + name, model)
    yield TensorSpec(prefix + MTP_JOINS, (model.hidden_size, 2 * model.hidden_size), "columns")


def _norm(name: str, model: ModelConfig) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (model.hidden_size,), "none")
    if model.layer_norm and model.norm_bias:
        yield TensorSpec(f"{name}.bias", (model.hidden_size,), "none")


def attention_tensors(model: ModelConfig, layer: str) -> Iterator[TensorSpec]:
    """Attention, under names that begin with `layer`."""
    prefix, hidden, head = layer + "self_attn.", model.hidden_size, model.head_dim
    queries, keys = model.num_heads * head, model.num_kv_heads * head
    projected = 2 * queries if model.attention_gate == "within" else queries
    if model.fused_qkv:
        yield TensorSpec(prefix + "qkv_proj.weight", (queries + 2 * keys, hidden), "qkv_rows")
    else:
        yield TensorSpec(prefix + "q_proj.weight", (projected, hidden), "rows")
        yield TensorSpec(prefix + "k_proj.weight", (keys, hidden), "kv_rows")
        yield TensorSpec(prefix + "v_proj.weight", (keys, hidden), "kv_rows")
    yield TensorSpec(prefix + "o_proj.weight", (hidden, queries), "columns")
    if model.attention_gate in ("apart", "heads"):
        gates = queries if model.attention_gate == "apart" else model.num_heads
        yield TensorSpec(prefix + "gate_proj.weight", (gates, hidden), "rows")
    if model.qk_norm in ("heads", "turned_heads"):
        yield TensorSpec(prefix + "q_norm.weight", (head,), "none")
        yield TensorSpec(prefix + "k_norm.weight", (head,), "none")
    elif model.qk_norm == "whole":
        yield TensorSpec(prefix + "q_norm.weight", (queries,), "rows")
        yield TensorSpec(prefix + "k_norm.weight", (keys,), "kv_rows")
    if model.qkv_bias:
        yield TensorSpec(prefix + "q_proj.bias", (projected,), "rows")
        yield TensorSpec(prefix + "k_proj.bias", (keys,), "kv_rows")
        yield TensorSpec(prefix + "v_proj.bias", (keys,), "kv_rows")
    if model.output_bias:
        yield TensorSpec(prefix + "o_proj.bias", (hidden,), "none")
    if model.sinks:
        yield TensorSpec(prefix + "sinks", (model.num_heads,), "rows")


def expert_tensors(prefix: str, hidden: int, experts: Experts, *, gates: bool = True) -> Iterator[TensorSpec]:
    """Router, experts, and what stands beside them, under names that begin with `prefix`."""
    router, inner = prefix + experts.router, experts.intermediate_size
    yield TensorSpec(f"{router}.weight", (experts.count, hidden), "wide")
    if experts.biased:
        yield TensorSpec(f"{router}.bias", (experts.count,), "wide")
    if experts.corrected:
        yield TensorSpec(f"{router}.e_score_correction_bias", (experts.count,), "wide")
    for expert in range(experts.count):
        own = f"{prefix}experts.{expert}."
        if not experts.interleaved:
            yield from mlp_tensors(own, hidden, inner, experts.biased, gates=gates)
            continue
        yield TensorSpec(own + "gate_up_proj.weight", (2 * inner, hidden), "rows")
        yield TensorSpec(own + "down_proj.weight", (hidden, inner), "columns")
        if experts.biased:
            yield TensorSpec(own + "gate_up_proj.bias", (2 * inner,), "rows")
            yield TensorSpec(own + "down_proj.bias", (hidden,), "none")
    if experts.shared_size:
        yield from mlp_tensors(f"{prefix}{experts.shared_name}.", hidden, experts.shared_size, gates=gates)
    if experts.shared_gate:
        yield TensorSpec(f"{prefix}{experts.shared_name}_gate.weight", (1, hidden), "none")


def mlp_tensors(
    prefix: str, hidden: int, inner: int, bias: bool = False, *, gates: bool = True
) -> Iterator[TensorSpec]:
    """A feed-forward network, gated or not, under names that begin with `prefix`."""
    for name in ("gate_proj", "up_proj") if gates else ("up_proj",):
        yield TensorSpec(f"{prefix}{name}.weight", (inner, hidden), "rows")
        if bias:
            yield TensorSpec(f"{prefix}{name}.bias", (inner,), "rows")
    yield TensorSpec(prefix + "down_proj.weight", (hidden, inner), "columns")
    if bias:
        yield TensorSpec(prefix + "down_proj.bias", (hidden,), "none")


class LlamaFile(ConfigFile, kw_only=True):
    """The keys of Llama's `config.json`."""

    activation: Literal["swiglu"] | None = None  # of Falcon 3, which says so what all are


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Llama has no windows, but for those who ask for them by `use_sliding_window` or `layer_types`."""
    file = config.read(path, given, LlamaFile)
    windows = config.windows_of(path, file, first=file.max_window_layers or 0)
    return config.model_config(path, file, windows, mlp_bias=file.mlp_bias)


# InternLM 3 and IQuest Coder, whose own code is that of a Llama.
LLAMA = Family(
    "llama", ("LlamaForCausalLM", "InternLM3ForCausalLM", "IQuestCoderForCausalLM"), read, dense_tensors
)
