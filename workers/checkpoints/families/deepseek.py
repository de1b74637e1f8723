"""DeepSeek V2 and V3 (also R1, V3.1 and Kimi K2, of that shape), GLM-4.7 Flash, and Youtu, which has no
experts: keys and values of all heads are kept as one vector a token.

V3 is https://arxiv.org/abs/2412.19437.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from workers.checkpoints import config
from workers.checkpoints.experts import Experts
from workers.checkpoints.families.glm_moe import RoutedFile, experts_of, mtp, scored_by_sigmoid
from workers.checkpoints.families.llama import decoder_tensors
from workers.checkpoints.family import Family, TensorSpec
from workers.checkpoints.files import refuse
from workers.checkpoints.layers import Layer
from workers.checkpoints.model_config import Latent, ModelConfig
from workers.checkpoints.rope import Rope, Size

DEFAULTS_2 = {
    "q_lora_rank": 1536,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "moe_intermediate_size": 1407,
    "first_k_dense_replace": 0,
}
DEFAULTS_3 = {
    "q_lora_rank": 1536,
    "n_routed_experts": 256,
    "routed_scaling_factor": 2.5,
    "moe_intermediate_size": 2048,
    "n_group": 8,
    "topk_group": 4,
    "first_k_dense_replace": 3,
}
DEFAULTS_GLM = {
    "rms_norm_eps": 1e-5,
    "q_lora_rank": 768,
    "v_head_dim": 256,
    "qk_nope_head_dim": 192,
    "n_routed_experts": 64,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1536,
    "routed_scaling_factor": 1.8,
    "first_k_dense_replace": 1,
}
DEFAULTS_YOUTU = {"q_lora_rank": 1536, "tie_word_embeddings": True}
NONE_SPARSE = {"first_k_dense_replace": 1 << 31, "n_group": None, "topk_group": None}
LATENT_EPS = 1e-6  # of the norms of the compressed vectors, whatever rms_norm_eps is


class LatentFile(RoutedFile, kw_only=True):
    """The keys of such a `config.json`."""

    kv_lora_rank: Size = 512
    q_lora_rank: Size | None
    qk_rope_head_dim: Size = 64
    qk_nope_head_dim: Size = 128
    v_head_dim: Size = 128
    qk_head_dim: Size | None = None  # the sum of two of these
    rope_interleave: bool = True


def tensors(model: ModelConfig) -> Iterator[TensorSpec]:
    """What is compressed is on every rank, and each has the heads that are made of it."""
    return decoder_tensors(model, _attention)


def _attention(model: ModelConfig, layer: str) -> Iterator[TensorSpec]:
    prefix = layer + "self_attn."
    hidden, heads, latent = model.hidden_size, model.num_heads, model.latent
    queries, both = heads * model.head_dim, latent.plain_dim + latent.value_dim
    if latent.query_rank is None:
        yield TensorSpec(prefix + "q_proj.weight", (queries, hidden), "rows")
    else:
        yield TensorSpec(prefix + "q_a_proj.weight", (latent.query_rank, hidden), "none")
        yield TensorSpec(prefix + "q_a_layernorm.weight", (latent.query_rank,), "none")
        yield TensorSpec(prefix + "q_b_proj.weight", (queries, latent.query_rank), "rows")
    kept = latent.rank + latent.rope_dim
    yield TensorSpec(prefix + "kv_a_proj_with_mqa.weight", (kept, hidden), "none")
    yield TensorSpec(prefix + "kv_a_layernorm.weight", (latent.rank,), "none")
    yield TensorSpec(prefix + "kv_b_proj.weight", (heads * both, latent.rank), "plain_rows")
    yield TensorSpec(prefix + "o_proj.weight", (hidden, heads * latent.value_dim), "columns")
    if model.qkv_bias:
        if latent.query_rank is not None:
            yield TensorSpec(prefix + "q_a_proj.bias", (latent.query_rank,), "none")
        yield TensorSpec(prefix + "kv_a_proj_with_mqa.bias", (kept,), "none")
    if model.output_bias:
        yield TensorSpec(prefix + "o_proj.bias", (hidden,), "none")


def read_2(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Scores are a softmax over all experts, and a group has the score of its best one."""
    file = config.read(path, DEFAULTS_2 | dict(given), LatentFile)
    if file.scoring_func == "sigmoid" or file.topk_method == "noaux_tc":
        refuse(path, f"scoring_func {file.scoring_func}, topk_method {file.topk_method}: V2 has others")
    limited = file.topk_method == "group_limited_greedy"
    file = msgspec.structs.replace(
        file,
        n_group=file.n_group if limited else 1,
        topk_group=file.topk_group if limited else 1,
        norm_topk_prob=False,  # whatever the file says
        rope_interleave=True,
    )
    experts = experts_of(path, file)
    if experts is not None:
        experts = msgspec.structs.replace(experts, scoring="softmax", corrected=False)
    return latent_config(path, file, experts)


def read_3(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """As of GLM with experts."""
    return _routed(path, DEFAULTS_3 | dict(given))


def read_glm(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """The same in smaller."""
    return _routed(path, DEFAULTS_GLM | dict(given))


def read_youtu(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """No layer has experts."""
    return _routed(path, DEFAULTS_YOUTU | dict(given) | NONE_SPARSE)


def _routed(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    file = config.read(path, given, LatentFile)
    return latent_config(path, file, scored_by_sigmoid(path, file))


def latent_config(path: Path, file: LatentFile, experts: Experts | None) -> ModelConfig:
    """What `file` says of a decoder that keeps one vector of a token."""
    head_dim = file.qk_nope_head_dim + file.qk_rope_head_dim
    # what turns is a key of its own, and all of it does; each head has keys and values
    file = msgspec.structs.replace(
        file, head_dim=file.qk_rope_head_dim, num_key_value_heads=file.num_attention_heads
    )
    windows: list[int | None] = [None] * file.num_hidden_layers
    model = config.model_config(path, file, windows, interleaved=file.rope_interleave, experts=experts)
    latent = Latent(
        file.kv_lora_rank,
        file.qk_rope_head_dim,
        file.qk_nope_head_dim,
        file.v_head_dim,
        file.q_lora_rank,
    )
    kept = Layer("latent", latent_size=file.kv_lora_rank + file.qk_rope_head_dim)
    return msgspec.structs.replace(
        model,
        head_dim=head_dim,
        latent=latent,
        layers=(kept,) * file.num_hidden_layers,
        attention_scale=head_dim**-0.5 * _sharpening(model.rope),
    )


def _sharpening(rope: Rope) -> float:
    """What scores are multiplied with where a context is stretched."""
    if rope.rope_type == "default" or not rope.mscale_all_dim or rope.factor <= 1:
        return 1.0
    return (0.1 * rope.mscale_all_dim * math.log(rope.factor) + 1.0) ** 2


DEEPSEEK_V2 = Family("deepseek_v2", ("DeepseekV2ForCausalLM",), read_2, tensors)
DEEPSEEK_V3 = Family("deepseek_v3", ("DeepseekV3ForCausalLM",), read_3, tensors, mtp=mtp)
GLM4_MOE_LITE = Family("glm4_moe_lite", ("Glm4MoeLiteForCausalLM",), read_glm, tensors, mtp=mtp)
YOUTU = Family("youtu", ("YoutuForCausalLM",), read_youtu, tensors)
