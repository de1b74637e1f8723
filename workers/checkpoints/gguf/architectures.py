"""The architectures of llama.cpp: which of Hugging Face's each is, and its metadata as a `config.json`.

So the family's own reader says what is supported, and refuses the rest by its name. What llama.cpp knows of a
model without a key for it (every second layer of a Gemma 2 has a window) stands here as it stands there:
`src/models/` and `conversion/` in https://github.com/ggml-org/llama.cpp
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from workers.checkpoints.files import refuse
from workers.checkpoints.gguf import bert, delta_net, gemma4, pooling, unread
from workers.checkpoints.gguf.header import Gguf
from workers.checkpoints.gguf.keys import WINDOW, Json, Keys, floats, pattern
from workers.checkpoints.gguf.unread import SIGMOID, SOFTMAX, SOFTMAX_OF_CHOSEN


@dataclass(frozen=True, slots=True)
class Architecture:
    """How files of one architecture are read.

    Args:
        name: of the architecture in `config.json`.
        config: what of `config.json` is not the same for all.
        halves_as_pairs: rows of queries and keys are stored so that the two dimensions that turn together are
            neighbours, where `config.json` means them half a head apart.
        norms_with_one: weights of norms are stored with the 1 that the model adds to them.
        tensors: names that are others than in `names.LAYER`.
        whole: names of tensors, their endings included; of a layer without its number.
        experts: what the names of a layer's experts begin with.
        layers: what the names of all layers begin with.
        embeds: it is an encoder: `config` is all of `config.json`.
        encodes: it is one whose config is that of a decoder.
        latent: what is kept of a token is one vector, of which all heads make their keys and values.
        neutral: values of keys that nobody reads and that change nothing, where they are others than in
            `unread.NEUTRAL`.
    """

    name: str
    config: Callable[[Keys], Json] = lambda keys: {}
    halves_as_pairs: bool = False
    norms_with_one: bool = False
    tensors: Mapping[str, str] = field(default_factory=dict)
    whole: Mapping[str, str] = field(default_factory=dict)
    experts: str = "mlp.experts"
    layers: str = "model.layers"
    embeds: bool = False
    encodes: bool = False
    latent: bool = False
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


def config_json(file: Gguf, architecture: Architecture) -> Json:
    """What `config.json` would say of the model in `file`.

    Raises:
        CortexError: MODEL_LOAD_FAILED naming the key that is missing, or that nothing here understands.
    """
    keys = Keys(file)
    if (embedding := file.tensors.get("token_embd.weight")) is None:
        refuse(file.path, "has no tensor 'token_embd.weight', so no language model")
    if architecture.embeds:
        given = {"architectures": [architecture.name], "vocab_size": embedding.shape[0]}
        given |= architecture.config(keys)
        unread.check(keys, architecture.neutral)
        return given
    heads, head_dim = keys.size("attention.head_count"), keys.head_dim()
    if not architecture.latent and (values := keys.number("attention.value_length", head_dim)) != head_dim:
        refuse(file.path, f"has keys of {head_dim} and values of {values}, which is not supported")
    turning = keys.number("rope.dimension_count", head_dim)
    own = architecture.config(keys)
    given = {
        "architectures": [architecture.name],
        "vocab_size": embedding.shape[0],
        "hidden_size": keys.size("embedding_length"),
        "intermediate_size": own.get("intermediate_size")
        or keys.number("feed_forward_length", keys.get("expert_feed_forward_length")),
        "num_hidden_layers": keys.layers(),
        "num_attention_heads": heads,
        "num_key_value_heads": own.get("num_key_value_heads")
        or keys.number("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": keys.size("context_length"),
        "rms_norm_eps": keys.number(
            "attention.layer_norm_rms_epsilon", keys.get("attention.layer_norm_epsilon")
        ),
        "tie_word_embeddings": not keys.has("output.weight"),
        "attention_bias": keys.has("blk.0.attn_q.bias"),
        "mlp_bias": keys.has("blk.0.ffn_gate.bias"),
        "sliding_window": None,
        "rope_theta": keys.number("rope.freq_base", 10_000.0),
        "rope_scaling": _rope_scaling(keys),
    }
    if turning != head_dim and not architecture.latent:
        given["partial_rotary_factor"] = turning / head_dim
    given |= own
    unread.check(keys, _neutral(given, head_dim, turning) | architecture.neutral)
    return given


def _neutral(given: Json, head_dim: int, turning: int) -> dict[str, tuple[Any, ...]]:
    """Values that change nothing, of keys that say once more what the model has already."""
    scaled_by = given.get("query_pre_attn_scalar", head_dim)
    return {
        "attention.scale": (0, scaled_by**-0.5),
        "attention.key_length_swa": (head_dim,),
        "attention.value_length_swa": (head_dim,),
        "rope.dimension_count_swa": (turning,),
        "rope.freq_base_swa": (given["rope_theta"],),
        "embedding_length_out": (given["hidden_size"],),
    }


def _rope_scaling(keys: Keys) -> Json | None:
    """Where no type stands there, it is linear; one that is none has no factor, whatever stands there."""
    kind, context = keys.get("rope.scaling.type", "linear"), keys.size("context_length")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0)) or 1.0
    original = keys.number("rope.scaling.original_context_length", 0) or None
    attention = keys.get("rope.scaling.attn_factor")
    tensors = keys.file.tensors
    if "rope_freqs.weight" in tensors:
        if kind not in ("none", "linear"):
            refuse(keys.path, f"rope.scaling.type {kind!r} beside rope_freqs.weight is not supported")
        if kind == "linear" and factor != 1.0:
            why = f"rope.scaling.factor {factor} beside rope_freqs.weight is not supported"
            refuse(keys.path, f"{keys.file.architecture}.{why}")
        # What Llama 3 stretches each pair by was computed when the file was written.
        factors = floats(keys.file, "rope_freqs.weight")
        given = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "factor": 1.0}
        return given | {"attention_factor": attention or 1.0, "original_max_position_embeddings": context}
    if "rope_factors_long.weight" in tensors or kind == "longrope":
        given = {"rope_type": "longrope", "attention_factor": attention}
        for name in ("short", "long"):
            given[f"{name}_factor"] = floats(keys.file, f"rope_factors_{name}.weight")
        return given | {
            "factor": context / (original or context),
            "original_max_position_embeddings": original,
        }
    if kind == "yarn":
        given = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
            **_yarn_scale(keys.get("rope.scaling.yarn_attn_factor"), attention),
            "beta_fast": keys.get("rope.scaling.yarn_beta_fast"),
            "beta_slow": keys.get("rope.scaling.yarn_beta_slow"),
        }
        sharpening = keys.get("rope.scaling.yarn_log_multiplier", 0.0)
        if sharpening and keys.has("blk.0.attn_kv_a_mqa.weight"):
            given |= dict.fromkeys(("mscale", "mscale_all_dim"), round(10 * sharpening, 6))
        elif sharpening and keys.file.architecture == "mistral3":
            given |= {"mscale": 1.0, "mscale_all_dim": sharpening}
        elif sharpening:
            refuse(keys.path, f"rope.scaling.yarn_log_multiplier {sharpening} is not supported")
        if (value := keys.get("rope.scaling.yarn_ext_factor", 1.0)) != 1.0:
            refuse(keys.path, f"rope.scaling.yarn_ext_factor {value} is not supported")
        return {key: value for key, value in given.items() if value is not None}
    if kind not in ("none", "linear"):
        refuse(keys.path, f"rope.scaling.type {kind!r} is not supported")
    if attention not in (None, 0, 1):
        refuse(keys.path, f"rope.scaling.attn_factor {attention} of such a rope is not supported")
    return {"rope_type": "linear", "factor": factor} if kind == "linear" and factor != 1.0 else None


def _yarn_scale(absolute: float | None, times: float | None) -> Json:
    """A converter writes both of what `config.json` may say under the first of these; what is absolute is 1
    or more."""
    if times is None and absolute is not None and absolute < 1:
        absolute, times = None, absolute
    return {"attention_factor": absolute, "attn_factor": None if times in (0, 1) else times}


# --- what is their own --------------------------------------------------------------------------------------


def _gemma(keys: Keys, every: int, large: int) -> Json:
    """What Gemma 2 and 3 share; `large`: layers of the one whose heads are scaled otherwise."""
    heads, width = keys.size("attention.head_count"), keys.size("embedding_length")
    return {
        "query_pre_attn_scalar": width // heads if keys.layers() == large else keys.head_dim(),
        "sliding_window": keys.get(WINDOW) or None,
        "layer_types": pattern(keys, every),
        "final_logit_softcapping": keys.get("final_logit_softcapping") or None,
        "hidden_activation": "gelu_pytorch_tanh",
    }


def _gemma2(keys: Keys) -> Json:
    caps = {"attn_logit_softcapping": keys.get("attn_logit_softcapping", 50.0) or None}
    return _gemma(keys, every=2, large=46) | caps


def _gemma3(keys: Keys) -> Json:
    return _gemma(keys, every=6, large=62) | {
        "rope_local_base_freq": keys.get("rope.freq_base_swa", 10_000.0)
    }


def _gemma_embedding(keys: Keys) -> Json:
    """A Gemma 3 whose tokens see those behind them, too."""
    for part in ("dense_2", "dense_3"):  # whose matrices say it
        for side in ("in", "out"):
            keys.get(f"{part}_feat_{side}")
    return _gemma3(keys) | {"use_bidirectional_attention": True}


def _qwen3_moe(keys: Keys) -> Json:
    return {
        "num_experts": keys.number("expert_count"),
        "num_experts_per_tok": keys.number("expert_used_count"),
        "moe_intermediate_size": keys.number("expert_feed_forward_length"),
        "norm_topk_prob": True,
    }


def _mellum(keys: Keys) -> Json:
    """Layers with a window do not stretch their positions."""
    theta = keys.number("rope.freq_base", 10_000.0)
    return _qwen3_moe(keys) | {
        "sliding_window": keys.get(WINDOW) or None,
        "layer_types": pattern(keys, 4),
        "rope_scaling": None,
        "rope_parameters": {
            "full_attention": {"rope_theta": theta} | (_rope_scaling(keys) or {}),
            "sliding_attention": {"rope_theta": keys.number("rope.freq_base_swa", theta)},
        },
    }


def _qwen2_moe(keys: Keys) -> Json:
    return _qwen3_moe(keys) | {
        "norm_topk_prob": False,  # llama.cpp does so, whatever the config said that was converted
        "shared_expert_intermediate_size": keys.number("expert_shared_feed_forward_length"),
        "qkv_bias": keys.has("blk.0.attn_q.bias"),
    }


def _llama(keys: Keys) -> Json:
    if keys.get("expert_count"):
        return {
            "architectures": ["MixtralForCausalLM"],
            "num_local_experts": keys.number("expert_count"),
            "num_experts_per_tok": keys.number("expert_used_count"),
        }
    return {}


def _deepseek2(keys: Keys) -> Json:
    """Scores of V3 and its kin are sigmoids, those of V2 a softmax, which old files do not name."""
    gating = keys.number("expert_gating_func", SOFTMAX)
    normalised, groups = keys.get("expert_weights_norm", False), keys.number("expert_group_count", 1)
    if gating not in (SOFTMAX, SIGMOID) or (gating == SOFTMAX and normalised):
        refuse(keys.path, f"expert_gating_func {gating}, expert_weights_norm {normalised} is not supported")
    turning = keys.size("rope.dimension_count")
    key = keys.size("attention.key_length_mla", keys.head_dim())
    return {
        "architectures": ["DeepseekV3ForCausalLM" if gating == SIGMOID else "DeepseekV2ForCausalLM"],
        "topk_method": None if gating == SIGMOID or groups == 1 else "group_limited_greedy",
        "q_lora_rank": keys.get("attention.q_lora_rank") or None,
        "kv_lora_rank": keys.size("attention.kv_lora_rank"),
        "qk_rope_head_dim": turning,
        "qk_nope_head_dim": key - turning,
        "v_head_dim": keys.size("attention.value_length_mla", keys.get("attention.value_length")),
        "n_routed_experts": keys.number("expert_count"),
        "num_experts_per_tok": keys.number("expert_used_count"),
        "moe_intermediate_size": keys.number("expert_feed_forward_length"),
        "n_shared_experts": keys.number("expert_shared_count", 0),
        "first_k_dense_replace": keys.number("leading_dense_block_count", 0),
        "routed_scaling_factor": keys.number("expert_weights_scale", 1.0),
        "norm_topk_prob": normalised,
        "n_group": groups,
        "topk_group": keys.number("expert_group_used_count", 1),
    }


def _mistral3(keys: Keys) -> Json:
    """Queries of Ministral 3 grow with the context, by as much as the file says."""
    if not (weight := keys.get("attention.temperature_scale")):
        return {}
    if (scaling := _rope_scaling(keys)) is None or scaling["rope_type"] != "yarn":
        refuse(keys.path, "attention.temperature_scale beside a rope that is no yarn is not supported")
    return {
        "architectures": ["Ministral3ForCausalLM"],
        "rope_scaling": scaling | {"llama_4_scaling_beta": weight},
    }


def _phi3(keys: Keys) -> Json:
    given = {"sliding_window": keys.get(WINDOW) or None}
    if (original := keys.get("rope.scaling.original_context_length")) is not None:
        given["original_max_position_embeddings"] = original
    return given


def _granite(keys: Keys) -> Json:
    return {
        "attention_multiplier": keys.number("attention.scale", keys.head_dim() ** -0.5),
        "embedding_multiplier": keys.number("embedding_scale", 1.0),
        "residual_multiplier": keys.number("residual_scale", 1.0),
        "logits_scaling": keys.number("logit_scale"),
    }


def _olmo2(keys: Keys) -> Json:
    window = keys.get(WINDOW)
    if not window:
        return {}
    return {"architectures": ["Olmo3ForCausalLM"], "sliding_window": window, "layer_types": pattern(keys, 4)}


def _glm4_moe(keys: Keys) -> Json:
    keys.get("rope.dimension_sections")  # of one that sees; of text all of them have one position
    return {
        "n_routed_experts": keys.number("expert_count"),
        "num_experts_per_tok": keys.number("expert_used_count"),
        "moe_intermediate_size": keys.number("expert_feed_forward_length"),
        "n_shared_experts": keys.number("expert_shared_count", 0),
        "first_k_dense_replace": keys.number("leading_dense_block_count", 0),
        "routed_scaling_factor": keys.number("expert_weights_scale", 1.0),
        "norm_topk_prob": keys.get("expert_weights_norm", False),
        "n_group": keys.number("expert_group_count", 1),
        "topk_group": keys.number("expert_group_used_count", 1),
        "use_qk_norm": keys.has("blk.0.attn_q_norm.weight"),
    }


def _llama4(keys: Keys) -> Json:
    """What llama.cpp has for all of them, without keys; one with 128 experts has no norms of queries."""
    if not (count := keys.number("expert_count", 0)) or keys.get(WINDOW) == 0:
        refuse(keys.path, "is a Llama 4 without experts or without chunks, which is not supported in GGUF")
    for name, known in (
        ("attention.chunk_size", 8192),
        (WINDOW, 8192),
        ("attention.sliding_window_pattern", 4),
    ):
        if (value := keys.get(name, known)) != known:
            refuse(keys.path, f"{keys.file.architecture}.{name} {value} is not supported; {known} is")
    return {
        "intermediate_size": keys.size("expert_feed_forward_length"),
        "intermediate_size_mlp": keys.size("feed_forward_length"),
        "num_local_experts": count,
        "num_experts_per_tok": keys.size("expert_used_count"),
        "interleave_moe_layer_step": keys.size("interleave_moe_layer_step"),
        "no_rope_layer_interval": 4,
        "attention_chunk_size": 8192,
        "floor_scale": 8192,
        "attn_scale": 0.1,
        "use_qk_norm": count != 128,
    }


def _gpt_oss(keys: Keys) -> Json:
    scaling = _rope_scaling(keys)
    return {
        "num_local_experts": keys.number("expert_count"),
        "num_experts_per_tok": keys.number("expert_used_count"),
        "intermediate_size": keys.number("expert_feed_forward_length"),
        "sliding_window": keys.get(WINDOW) or None,
        "layer_types": pattern(keys, 2),
        "rope_parameters": {"rope_theta": keys.number("rope.freq_base")}
        | ({"rope_type": "default"} if scaling is None else scaling | {"truncate": False}),
        "rope_scaling": None,
    }


def _cohere(keys: Keys) -> Json:
    return {
        "logit_scale": keys.number("logit_scale"),
        "layer_norm_eps": keys.number("attention.layer_norm_epsilon"),
        "use_qk_norm": keys.has("blk.0.attn_q_norm.weight"),
    }


def _cohere2(keys: Keys) -> Json:
    window = keys.get(WINDOW) or None
    return _cohere(keys) | {"sliding_window": window, "layer_types": pattern(keys, 4)}


def _seed_oss(keys: Keys) -> Json:
    return {"attention_out_bias": keys.has("blk.0.attn_output.bias")}


def _exaone4(keys: Keys) -> Json:
    return {
        "sliding_window": keys.get(WINDOW) or None,
        "layer_types": pattern(keys, 4),
    }


def _ernie4_5(keys: Keys) -> Json:
    return {"use_bias": keys.has("blk.0.attn_q.bias")}


def _ernie4_5_moe(keys: Keys) -> Json:
    return _ernie4_5(keys) | {
        "moe_num_experts": keys.number("expert_count"),
        "moe_k": keys.number("expert_used_count"),
        "moe_intermediate_size": keys.number("expert_feed_forward_length"),
        "moe_num_shared_experts": keys.number("expert_shared_count", 0),
        "moe_layer_start_index": keys.number("leading_dense_block_count", 0),
        "moe_layer_interval": keys.number("interleave_moe_layer_step", 1),
    }


def _olmoe(keys: Keys) -> Json:
    """Files say the size of an expert as that of an MLP."""
    return {
        "num_experts": keys.number("expert_count"),
        "num_experts_per_tok": keys.number("expert_used_count"),
        "norm_topk_prob": False,  # llama.cpp does so
        "clip_qkv": keys.get("attention.clamp_kqv") or None,
    }


def _minimax_m2(keys: Keys) -> Json:
    if (gating := keys.number("expert_gating_func", SIGMOID)) != SIGMOID:
        refuse(keys.path, f"expert_gating_func {gating} is not supported; {SIGMOID} is")
    return {
        "intermediate_size": keys.number("expert_feed_forward_length"),
        "num_local_experts": keys.number("expert_count"),
        "num_experts_per_tok": keys.number("expert_used_count"),
    }


def _arcee(keys: Keys) -> Json:
    return {"mlp_bias": keys.has("blk.0.ffn_up.bias")}


def _starcoder2(keys: Keys) -> Json:
    """Windows are in no file, and llama.cpp has none."""
    return {
        "norm_epsilon": keys.number("attention.layer_norm_epsilon"),
        "use_bias": keys.has("blk.0.attn_q.bias"),
    }


def _lfm2(keys: Keys) -> Json:
    """A layer without heads of keys is a convolution."""
    heads = keys.get("attention.head_count_kv")
    if not isinstance(heads, list) or not all(type(each) is int and each >= 0 for each in heads):
        refuse(keys.path, f"attention.head_count_kv {heads!r} is no list of numbers, one for each layer")
    attending = {*heads} - {0}
    if len(attending) != 1:
        refuse(keys.path, f"attention.head_count_kv {heads!r} is not supported: layers that attend are alike")
    return {
        "norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "conv_L_cache": keys.size("shortconv.l_cache"),
        "num_key_value_heads": attending.pop(),
        "layer_types": ["full_attention" if each else "conv" for each in heads],
        "block_auto_adjust_ff_dim": False,
    }


def _lfm2_moe(keys: Keys) -> Json:
    if (gating := keys.number("expert_gating_func", SIGMOID)) != SIGMOID:
        refuse(keys.path, f"expert_gating_func {gating} is not supported; {SIGMOID} is")
    return _lfm2(keys) | {
        "num_experts": keys.number("expert_count"),
        "num_experts_per_tok": keys.number("expert_used_count"),
        "moe_intermediate_size": keys.number("expert_feed_forward_length"),
        "num_dense_layers": keys.number("leading_dense_block_count", 0),
        "norm_topk_prob": True,
        "routed_scaling_factor": keys.number("expert_weights_scale", 1.0),
    }


AFTER = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
GEMMA_NORMS = AFTER | {"ffn_norm": "pre_feedforward_layernorm"}
GLM_NORMS = {"post_attention_norm": "post_self_attn_layernorm", "post_ffw_norm": "post_mlp_layernorm"}
FUSED = {"ffn_up": "mlp.gate_up_proj"}
SHARED_EXPERT = {f"ffn_{part}_shexp": f"mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down")}
LATENT = {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_k_b": "self_attn.k_b_proj",
    "attn_v_b": "self_attn.v_b_proj",
}

CONVOLUTION = {f"shortconv.{name}": f"conv.{name}" for name in ("conv", "in_proj", "out_proj")}
LFM2_NAMES = CONVOLUTION | {"attn_norm": "operator_norm", "ffn_norm": "ffn_norm"}
LFM2_WHOLE = {"token_embd_norm.weight": "model.norm.weight"}

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("LlamaForCausalLM", _llama, halves_as_pairs=True),
    "mistral3": Architecture("MistralForCausalLM", _mistral3, halves_as_pairs=True),
    "qwen2": Architecture("Qwen2ForCausalLM"),
    "qwen3": Architecture("Qwen3ForCausalLM"),
    "qwen3moe": Architecture("Qwen3MoeForCausalLM", _qwen3_moe),
    "mellum": Architecture("MellumForCausalLM", _mellum),
    "qwen2moe": Architecture(
        "Qwen2MoeForCausalLM", _qwen2_moe, tensors=SHARED_EXPERT, neutral={"expert_weights_norm": (False,)}
    ),
    "qwen3next": Architecture(
        "Qwen3NextForCausalLM",
        delta_net.with_experts,
        norms_with_one=True,
        tensors=SHARED_EXPERT | delta_net.LAYER,
        whole=delta_net.WHOLE,
    ),
    "qwen35": Architecture(
        "Qwen3_5ForCausalLM",
        delta_net.config,
        norms_with_one=True,
        tensors=delta_net.LAYER,
        whole=delta_net.WHOLE,
    ),
    "qwen35moe": Architecture(
        "Qwen3_5MoeForCausalLM",
        delta_net.with_experts,
        norms_with_one=True,
        tensors=SHARED_EXPERT | delta_net.LAYER,
        whole=delta_net.WHOLE,
    ),
    "deepseek2": Architecture(
        "DeepseekV3ForCausalLM",
        _deepseek2,
        tensors=LATENT,
        latent=True,
        neutral={"attention.scale": unread.NOTHING},
    ),
    "gemma": Architecture("GemmaForCausalLM", norms_with_one=True),
    "gemma2": Architecture("Gemma2ForCausalLM", _gemma2, norms_with_one=True, tensors=GEMMA_NORMS),
    "gemma3": Architecture("Gemma3ForCausalLM", _gemma3, norms_with_one=True, tensors=GEMMA_NORMS),
    "gemma-embedding": Architecture(
        "Gemma3TextModel",
        _gemma_embedding,
        norms_with_one=True,
        tensors=GEMMA_NORMS,
        whole=pooling.DENSE,
        encodes=True,
        neutral=bert.NEUTRAL,
    ),
    "bert": Architecture(
        "BertModel",
        bert.config,
        tensors=bert.LAYER,
        whole=bert.WHOLE,
        layers="encoder.layer",
        embeds=True,
        neutral=bert.NEUTRAL,
    ),
    "nomic-bert": Architecture(
        "NomicBertModel",
        bert.nomic_config,
        tensors=bert.NOMIC_LAYER,
        whole=bert.NOMIC_WHOLE,
        layers="encoder.layers",
        embeds=True,
        neutral=bert.NEUTRAL,
    ),
    "modern-bert": Architecture(
        "ModernBertModel",
        bert.modern_config,
        tensors=bert.MODERN_LAYER,
        whole=bert.MODERN_WHOLE,
        layers="layers",
        embeds=True,
        neutral=bert.NEUTRAL,
    ),
    "gemma4": Architecture(
        "Gemma4ForCausalLM",
        gemma4.config,
        tensors=GEMMA_NORMS | gemma4.INPUT_NAMES | gemma4.BESIDE_MLP,
        whole=gemma4.WHOLE,
        experts="experts",
        neutral={"attention.scale": (0, 1.0)},
    ),
    "phi3": Architecture("Phi3ForCausalLM", _phi3, tensors=FUSED),
    "granite": Architecture("GraniteForCausalLM", _granite, halves_as_pairs=True),
    "smollm3": Architecture("SmolLM3ForCausalLM", halves_as_pairs=True),
    "olmo2": Architecture("Olmo2ForCausalLM", _olmo2, tensors=AFTER),
    "glm4moe": Architecture(
        "Glm4MoeForCausalLM", _glm4_moe, tensors=AFTER, neutral={"expert_gating_func": (0, SIGMOID)}
    ),
    "gpt-oss": Architecture(
        "GptOssForCausalLM",
        _gpt_oss,
        tensors=AFTER | {"ffn_gate_inp": "mlp.router"},
        neutral={"expert_gating_func": (0, SOFTMAX, SOFTMAX_OF_CHOSEN), "swiglu_clamp_exp": (7.0,)},
    ),
    "glm4": Architecture("Glm4ForCausalLM", tensors=FUSED | GLM_NORMS),
    "command-r": Architecture("CohereForCausalLM", _cohere),
    "cohere2": Architecture("Cohere2ForCausalLM", _cohere2),
    "seed_oss": Architecture(
        "SeedOssForCausalLM", _seed_oss, tensors={"post_attention_norm": "post_attention_layernorm"}
    ),
    "exaone4": Architecture("Exaone4ForCausalLM", _exaone4, tensors=AFTER),
    "ernie4_5": Architecture("Ernie4_5ForCausalLM", _ernie4_5),
    "ernie4_5-moe": Architecture("Ernie4_5_MoeForCausalLM", _ernie4_5_moe),
    "olmoe": Architecture("OlmoeForCausalLM", _olmoe, neutral={"expert_weights_norm": (False,)}),
    "minimax-m2": Architecture("MiniMaxM2ForCausalLM", _minimax_m2),
    "arcee": Architecture("ArceeForCausalLM", _arcee, halves_as_pairs=True),
    "starcoder2": Architecture(
        "Starcoder2ForCausalLM", _starcoder2, whole={"output_norm.bias": "model.norm.bias"}
    ),
    "lfm2": Architecture("Lfm2ForCausalLM", _lfm2, tensors=LFM2_NAMES, whole=LFM2_WHOLE),
    "lfm2moe": Architecture("Lfm2MoeForCausalLM", _lfm2_moe, tensors=LFM2_NAMES, whole=LFM2_WHOLE),
    "hunyuan-dense": Architecture("HunYuanDenseV1ForCausalLM"),
    "llama4": Architecture(
        "Llama4ForCausalLM",
        _llama4,
        tensors=SHARED_EXPERT | {"ffn_gate_inp": "mlp.router"},
        neutral={"expert_gating_func": (0, SIGMOID), "expert_weights_norm": (False,)},
    ),
}


def find(file: Gguf) -> Architecture:
    """How `file` is read; raises CortexError for an unknown architecture, saying what the file is."""
    found = ARCHITECTURES.get(file.architecture)
    if found is None:
        refuse(file.path, f"is {file}: such files are not supported; there are {', '.join(ARCHITECTURES)}")
    return found
