"""What GGUF files for tests say of a model, as llama.cpp's converters do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PretrainedConfig

Keys = Callable[..., None]  # `tests.workers.gguf_files.Writer.keys`


def say(keys: Keys, config: PretrainedConfig, architecture: str) -> None:
    """All of it, but of the tokenizer."""
    _usual_keys(keys, config)
    if architecture == "gemma4":
        _gemma4_keys(keys, config)
    if architecture == "muse-glimmer":
        keys(logit_scale=config.output_multiplier)
    if architecture == "gemma3n":
        _gemma3n_keys(keys, config)
    if architecture == "cohere2moe":
        _cohere2_moe_keys(keys, config)
    if architecture == "laguna":
        _laguna_keys(keys, config)
    if architecture.startswith("lfm2"):
        _lfm2_keys(keys, config)
    if hasattr(config, "linear_num_key_heads"):
        _delta_net_keys(keys, config)
    if architecture == "granite_swa" and config.layer_rope_theta:
        theta = next(each for each in config.layer_rope_theta if each)
        keys(rope__freq_base=float(theta))
        keys(attention__rope_pattern=[each != 0 for each in config.layer_rope_theta])
    if architecture == "granitemoe":
        keys(expert_shared_feed_forward_length=getattr(config, "shared_intermediate_size", None))
    if architecture == "granitehybrid":
        _space_keys(keys, config)
    if architecture.startswith("nemotron_h"):
        _nemotron_keys(keys, config)
    if architecture == "falcon-h1":
        _falcon_keys(keys, config)


def latent_keys(config: PretrainedConfig) -> dict[str, Any]:
    """What is said of a latent vector in place of heads."""
    kept = config.kv_lora_rank
    scaling = config.rope_parameters.get("mscale_all_dim")
    gating = {"deepseek_v2": 1, "mistral4": 1, "youtu": None}
    return {
        "attention__head_count_kv": 1,
        "attention__key_length": kept + config.qk_rope_head_dim,
        "attention__value_length": kept,
        "attention__key_length_mla": config.qk_nope_head_dim + config.qk_rope_head_dim,
        "attention__value_length_mla": config.v_head_dim,
        "attention__q_lora_rank": config.q_lora_rank,
        "attention__kv_lora_rank": kept,
        "rope__dimension_count": config.qk_rope_head_dim,
        "rope__scaling__yarn_log_multiplier": None if scaling is None else 0.1 * scaling,
        **(_no_experts(config) if config.model_type == "youtu" else {}),
        "expert_gating_func": gating.get(config.model_type, 2),
    }


def _no_experts(config: PretrainedConfig) -> dict[str, Any]:
    """What is said of experts where there are none."""
    return {
        "leading_dense_block_count": config.num_hidden_layers,
        "expert_feed_forward_length": config.intermediate_size,
        "expert_shared_count": 0,
    }


def _usual_keys(keys: Keys, config: PretrainedConfig) -> None:
    """What `set_gguf_parameters` of the converters writes."""
    rope = config.rope_parameters
    whole = rope.get("full_attention", rope)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    sizes: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": getattr(config, "intermediate_size_mlp", None)
        or getattr(config, "intermediate_size", None),
        "attention__head_count": config.num_attention_heads,
        "attention__head_count_kv": config.num_key_value_heads,
        "attention__layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", None),
        "attention__layer_norm_epsilon": getattr(config, "norm_epsilon", None)
        or getattr(config, "layer_norm_eps", None),
        "attention__key_length": head_dim,
        "attention__value_length": head_dim,
        "rope__freq_base": float(whole["rope_theta"]),
        "rope__freq_base_swa": rope.get("sliding_attention", {}).get("rope_theta"),
        "rope__dimension_count": int(head_dim * (whole.get("partial_rotary_factor") or 1.0)),
        "attn_logit_softcapping": getattr(config, "attn_logit_softcapping", None),
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None),
        "attention__scale": getattr(config, "attention_multiplier", None),
        "embedding_scale": None
        if config.model_type == "falcon_h1"  # whose weights are multiplied
        else getattr(config, "embedding_multiplier", None),
        "residual_scale": getattr(config, "residual_multiplier", None),
        "logit_scale": getattr(config, "logits_scaling", None) or getattr(config, "logit_scale", None),
    }
    if hasattr(config, "kv_lora_rank"):
        sizes |= latent_keys(config)
    keys(**sizes)
    if whole["rope_type"] in ("linear", "yarn", "longrope"):
        keys(
            rope__scaling__type=whole["rope_type"],
            rope__scaling__factor=whole.get("factor"),
            rope__scaling__original_context_length=whole.get("original_max_position_embeddings"),
            rope__scaling__yarn_beta_fast=whole.get("beta_fast"),
            rope__scaling__yarn_beta_slow=whole.get("beta_slow"),
            rope__scaling__yarn_attn_factor=whole.get("attention_factor"),
        )
    if config.model_type == "ministral3":
        keys(
            rope__scaling__yarn_log_multiplier=whole.get("mscale_all_dim"),
            attention__temperature_scale=whole["llama_4_scaling_beta"],
        )
    types = getattr(config, "layer_types", None) or []
    if "sliding_attention" in types:
        keys(
            attention__sliding_window=config.sliding_window,
            attention__sliding_window_pattern=[each == "sliding_attention" for each in types],
        )
    names = ("num_experts", "n_routed_experts", "num_local_experts")
    if count := next((number for name in names if (number := getattr(config, name, None))), None):
        keys(
            expert_count=count,
            expert_used_count=getattr(config, "num_experts_per_tok", None)
            or getattr(config, "moe_topk", None),
            expert_feed_forward_length=None
            if config.model_type == "olmoe"
            else getattr(config, "moe_intermediate_size", None) or config.intermediate_size,
            expert_shared_count=getattr(config, "n_shared_experts", None)
            or getattr(config, "moe_num_shared_experts", None)
            or getattr(config, "num_shared_experts", None),
            expert_weights_scale=getattr(config, "routed_scaling_factor", None)
            or getattr(config, "route_scale", None),
            expert_weights_norm=config.model_type == "afmoe" or getattr(config, "norm_topk_prob", None),
            expert_shared_feed_forward_length=getattr(config, "shared_expert_intermediate_size", None),
            interleave_moe_layer_step=getattr(config, "interleave_moe_layer_step", None)
            or getattr(config, "moe_layer_interval", None),
            expert_group_count=getattr(config, "n_group", None),
            expert_group_used_count=getattr(config, "topk_group", None),
            leading_dense_block_count=getattr(config, "first_k_dense_replace", None)
            or getattr(config, "moe_layer_start_index", None)
            or getattr(config, "num_dense_layers", None)
            or [*(getattr(config, "mlp_layer_types", None) or ())].count("dense"),
        )


def _gemma4_keys(keys: Keys, config: PretrainedConfig) -> None:
    """What the converter of Gemma 4 writes in another way, or besides."""
    local = [each == "sliding_attention" for each in config.layer_types]
    layers = list(config.per_layer_config)
    full = layers[local.index(False)].head_dim
    first = config.num_hidden_layers - config.num_kv_shared_layers
    inner = config.intermediate_size
    if config.use_double_wide_mlp:
        inner = [inner * (1 if number < first else 2) for number in range(config.num_hidden_layers)]
    keys(
        feed_forward_length=inner,
        attention__head_count_kv=[layer.num_key_value_heads for layer in layers],
        attention__key_length=full,
        attention__value_length=full,
        attention__key_length_swa=config.head_dim,
        attention__value_length_swa=config.head_dim,
        attention__shared_kv_layers=config.num_kv_shared_layers,
        embedding_length_per_layer_input=config.hidden_size_per_layer_input,
        rope__dimension_count=full,
        rope__dimension_count_swa=config.head_dim,
        expert_used_count=config.top_k_experts,
    )


def _gemma3n_keys(keys: Keys, config: PretrainedConfig) -> None:
    """The same of Gemma 3n."""
    shares = torch.tensor(config.activation_sparsity_pattern)
    keys(
        feed_forward_length=config.intermediate_size,
        altup__active_idx=config.altup_active_idx,
        altup__num_inputs=config.altup_num_inputs,
        activation_sparsity_scale=torch.distributions.Normal(0, 1).icdf(shares).tolist(),
        attention__shared_kv_layers=config.num_kv_shared_layers,
        embedding_length_per_layer_input=config.hidden_size_per_layer_input,
    )


def _cohere2_moe_keys(keys: Keys, config: PretrainedConfig) -> None:
    """The same of Cohere's with experts."""
    keys(
        feed_forward_length=config.prefix_dense_intermediate_size or config.intermediate_size,
        expert_feed_forward_length=config.intermediate_size,
        leading_dense_block_count=config.mlp_layer_types.count("dense"),
        expert_gating_func=2 if config.expert_selection_fn == "sigmoid" else 1,
    )


def _laguna_keys(keys: Keys, config: PretrainedConfig) -> None:
    """The same of Laguna."""
    shares = {kind: each.get("partial_rotary_factor", 1.0) for kind, each in config.rope_parameters.items()}
    keys(
        attention__head_count=config.num_attention_heads_per_layer,
        expert_weights_norm=True,
        expert_weights_scale=config.moe_routed_scaling_factor,
        expert_gating_func=2,
        rope__dimension_count_swa=int(config.head_dim * shares["sliding_attention"]),
    )


def _lfm2_keys(keys: Keys, config: PretrainedConfig) -> None:
    """The same of LFM2."""
    inner = config.intermediate_size
    if config.model_type == "lfm2":
        unit = config.block_multiple_of
        inner = -(-int(2 * inner / 3) // unit) * unit
    heads = [config.num_key_value_heads if kind != "conv" else 0 for kind in config.layer_types]
    keys(
        attention__head_count_kv=heads,
        attention__layer_norm_rms_epsilon=config.norm_eps,
        shortconv__l_cache=config.conv_L_cache,
        feed_forward_length=inner,
        leading_dense_block_count=getattr(config, "num_dense_layers", None),
    )


def _space_keys(keys: Keys, config: PretrainedConfig) -> None:
    """The same of Granite 4."""
    kinds = config.layer_types
    keys(
        attention__head_count_kv=[(kind == "full_attention") * config.num_key_value_heads for kind in kinds],
        rope__scaling__finetuned=config.position_embedding_type == "rope",
        ssm__conv_kernel=config.mamba_d_conv,
        ssm__state_size=config.mamba_d_state,
        ssm__group_count=config.mamba_n_groups,
        ssm__time_step_rank=config.mamba_n_heads,
        ssm__inner_size=config.mamba_expand * config.hidden_size,
        expert_count=config.num_local_experts,
        expert_used_count=config.num_experts_per_tok,
        expert_shared_feed_forward_length=config.shared_intermediate_size,
    )


def _nemotron_keys(keys: Keys, config: PretrainedConfig) -> None:
    """The same of Nemotron-H."""
    kinds, has_experts = config.layer_types, "moe" in config.layer_types
    heads = config.mamba_num_heads
    inner = {"mlp": config.intermediate_size, "moe": config.moe_intermediate_size}
    keys(
        attention__head_count_kv=[(kind == "full_attention") * config.num_key_value_heads for kind in kinds],
        feed_forward_length=[inner.get(kind, 0) for kind in kinds],
        attention__layer_norm_epsilon=config.layer_norm_epsilon,
        attention__layer_norm_rms_epsilon=config.layer_norm_epsilon,
        ssm__conv_kernel=config.conv_kernel,
        ssm__state_size=config.ssm_state_size,
        ssm__group_count=config.n_groups,
        ssm__time_step_rank=heads,
        ssm__inner_size=heads * config.mamba_head_dim,
    )
    if has_experts:
        keys(
            expert_shared_feed_forward_length=config.moe_shared_expert_intermediate_size,
            expert_gating_func=2,
        )


def _falcon_keys(keys: Keys, config: PretrainedConfig) -> None:
    """The same of Falcon-H1."""
    keys(
        ssm__conv_kernel=config.mamba_d_conv,
        ssm__state_size=config.mamba_d_state,
        ssm__group_count=config.mamba_n_groups,
        ssm__time_step_rank=config.mamba_n_heads,
        ssm__inner_size=config.mamba_d_ssm,
    )


def _delta_net_keys(keys: Keys, config: PretrainedConfig) -> None:
    """The same of Qwen3-Next and Qwen3.5."""
    heads = config.linear_num_value_heads
    keys(
        ssm__conv_kernel=config.linear_conv_kernel_dim,
        ssm__state_size=config.linear_key_head_dim,
        ssm__group_count=config.linear_num_key_heads,
        ssm__time_step_rank=heads,
        ssm__inner_size=config.linear_value_head_dim * heads,
        full_attention_interval=getattr(config, "full_attention_interval", 4),
        attention__recurrent_layers=[kind == "linear_attention" for kind in config.layer_types],
        rope__dimension_sections=[11, 11, 10, 0] if "qwen3_5" in config.model_type else None,
    )
