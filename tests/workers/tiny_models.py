"""Tiny models of transformers, a function a kind: what all of that kind share, and what a test changes of it.

A class of its is named where it is used: to import all of them takes every process of tests half a second.
"""

from __future__ import annotations

from typing import Any

import transformers
from transformers import PreTrainedModel

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
TYPES = ["sliding_attention", "full_attention"]
TYPES3 = ["sliding_attention", "full_attention", "sliding_attention"]
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
SIZES = {
    "vocab_size": 131,  # prime: no number of ranks divides it
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "attention_dropout": 0.0,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
# of those that have no head_dim of their own: it is 12
NO_HEAD_DIM = {key: value for key, value in SIZES.items() if key != "head_dim"}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32}


def llama(**changes: Any) -> PreTrainedModel:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES | changes))


def mistral(**changes: Any) -> PreTrainedModel:
    return transformers.MistralForCausalLM(
        transformers.MistralConfig(**SIZES | {"sliding_window": None} | changes)
    )


def qwen3(**changes: Any) -> PreTrainedModel:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZES | changes))


def qwen2(**changes: Any) -> PreTrainedModel:
    return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**SIZES | {"num_hidden_layers": 3} | changes)
    )


def llama4(**changes: Any) -> PreTrainedModel:
    experts = {"num_local_experts": 4, "intermediate_size": 32, "intermediate_size_mlp": 64}
    chunk = {"attention_chunk_size": 32, "floor_scale": 24, "attn_scale": 0.5, "num_hidden_layers": 4}
    return transformers.Llama4ForCausalLM(transformers.Llama4TextConfig(**SIZES | experts | chunk | changes))


def phimoe(**changes: Any) -> PreTrainedModel:
    return transformers.PhimoeForCausalLM(
        transformers.PhimoeConfig(**NO_HEAD_DIM | {"num_local_experts": 6} | changes)
    )


def ministral3(**changes: Any) -> PreTrainedModel:
    rope = YARN | {"original_max_position_embeddings": 16, "llama_4_scaling_beta": 0.5}
    return transformers.Ministral3ForCausalLM(
        transformers.Ministral3Config(**SIZES | {"rope_parameters": rope} | changes)
    )


def qwen3_moe(**changes: Any) -> PreTrainedModel:
    return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**SIZES | EXPERTS | changes))


HYBRID = {
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
}
HYBRID_EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 40,
}


def qwen3_next(**changes: Any) -> PreTrainedModel:
    return transformers.Qwen3NextForCausalLM(
        transformers.Qwen3NextConfig(**SIZES | HYBRID | HYBRID_EXPERTS | changes)
    )


def qwen3_5(**changes: Any) -> PreTrainedModel:
    return transformers.Qwen3_5ForCausalLM(transformers.Qwen3_5TextConfig(**SIZES | HYBRID | changes))


def qwen3_5_moe(**changes: Any) -> PreTrainedModel:
    sizes = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
    return transformers.Qwen3_5MoeForCausalLM(
        transformers.Qwen3_5MoeTextConfig(**sizes | HYBRID | HYBRID_EXPERTS | changes)
    )


def gemma2(**changes: Any) -> PreTrainedModel:
    gemma = {"query_pre_attn_scalar": 20, "sliding_window": 24, "num_hidden_layers": 3}
    return transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**SIZES | gemma | changes, attn_implementation="eager")
    )


def gemma3(**changes: Any) -> PreTrainedModel:
    gemma = {"query_pre_attn_scalar": 20, "sliding_window": 24, "num_hidden_layers": 4}
    types = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    return transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(**SIZES | gemma | {"layer_types": types} | changes)
    )


def gemma3n(**changes: Any) -> PreTrainedModel:
    inputs = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 131, "laurel_rank": 4}
    layers = {"sliding_window": 24, "num_hidden_layers": 5, "num_kv_shared_layers": 0}
    return transformers.Gemma3nForCausalLM(
        transformers.Gemma3nTextConfig(**SIZES | {"pad_token_id": 0} | inputs | layers | changes)
    )


def gemma4(**changes: Any) -> PreTrainedModel:
    heads = {"global_head_dim": 32, "sliding_window": 24, "num_hidden_layers": 3}
    inputs = {"hidden_size_per_layer_input": 0, "layer_types": [TYPES[0], *TYPES]}
    return transformers.Gemma4ForCausalLM(transformers.Gemma4TextConfig(**SIZES | heads | inputs | changes))


def phi3(**changes: Any) -> PreTrainedModel:
    return transformers.Phi3ForCausalLM(transformers.Phi3Config(**NO_HEAD_DIM | changes))


def granite(**changes: Any) -> PreTrainedModel:
    scales = {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5}
    return transformers.GraniteForCausalLM(
        transformers.GraniteConfig(**SIZES | scales | {"logits_scaling": 0.7} | changes)
    )


def granite_moe(kind: str, **changes: Any) -> PreTrainedModel:
    config, model = getattr(transformers, f"{kind}Config"), getattr(transformers, f"{kind}ForCausalLM")
    scales = {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5}
    experts = {"num_local_experts": 6, "intermediate_size": 32}
    return model(config(**NO_HEAD_DIM | scales | experts | {"logits_scaling": 0.7} | changes))


def granite_hybrid(**changes: Any) -> PreTrainedModel:
    layers = {
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention"] * 2 + ["full_attention", "linear_attention"],
    }
    state = {"mamba_n_heads": 6, "mamba_d_state": 20, "shared_intermediate_size": 40}
    return granite_moe("GraniteMoeHybrid", **layers | state | changes)


def nemotron_h(**changes: Any) -> PreTrainedModel:
    sizes = {key: value for key, value in SIZES.items() if key != "num_hidden_layers"}
    layers = {"layers_block_type": ["linear_attention", "mlp", "full_attention", "linear_attention", "mlp"]}
    state = {"mamba_num_heads": 6, "mamba_head_dim": 12, "n_groups": 2, "ssm_state_size": 20}
    # which transformers has prompts keep to, and neither its single tokens nor what was trained
    state |= {"time_step_min": 1e-9}
    experts = {"n_routed_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
    experts |= {"moe_shared_expert_intermediate_size": 40}
    return transformers.NemotronHForCausalLM(
        transformers.NemotronHConfig(**sizes | layers | state | experts | changes)
    )


def exaone_moe(**changes: Any) -> PreTrainedModel:
    experts = EXPERTS | {"num_shared_experts": 1, "routed_scaling_factor": 1.3, "num_hidden_layers": 4}
    return transformers.ExaoneMoeForCausalLM(transformers.ExaoneMoeConfig(**SIZES | experts | changes))


def falcon_h1(**changes: Any) -> PreTrainedModel:
    sizes = {key: value for key, value in SIZES.items() if key != "head_dim"}  # which it does not have: 12
    state = {"mamba_d_ssm": 72, "mamba_n_heads": 6, "mamba_n_groups": 2, "mamba_d_state": 20}
    scales = {
        "embedding_multiplier": 3.0,
        "lm_head_multiplier": 0.7,
        "attention_in_multiplier": 1.2,
        "attention_out_multiplier": 0.8,
        "key_multiplier": 0.4,
        "ssm_in_multiplier": 0.9,
        "ssm_out_multiplier": 0.6,
        "ssm_multipliers": [0.8, 1.1, 0.7, 1.3, 0.9],
        "mlp_multipliers": [0.7, 0.5],
    }
    return transformers.FalconH1ForCausalLM(transformers.FalconH1Config(**sizes | state | scales | changes))


def smollm3(**changes: Any) -> PreTrainedModel:
    return transformers.SmolLM3ForCausalLM(
        transformers.SmolLM3Config(**SIZES | {"num_hidden_layers": 4} | changes)
    )


def hyperclovax(**changes: Any) -> PreTrainedModel:
    scales = {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 0.7}
    return transformers.HyperCLOVAXForCausalLM(transformers.HyperCLOVAXConfig(**SIZES | scales | changes))


def cwm(**changes: Any) -> PreTrainedModel:
    sizes = SIZES | {"num_hidden_layers": 3, "sliding_window": 24, "bos_token_id": 0}
    return transformers.CwmForCausalLM(transformers.CwmConfig(**sizes | changes))


def gemma(**changes: Any) -> PreTrainedModel:
    return transformers.GemmaForCausalLM(transformers.GemmaConfig(**SIZES | changes))


def mellum(**changes: Any) -> PreTrainedModel:
    sizes = SIZES | EXPERTS | {"num_hidden_layers": 3, "sliding_window": 24}
    return transformers.MellumForCausalLM(transformers.MellumConfig(**sizes | changes))


def olmo2(**changes: Any) -> PreTrainedModel:
    return transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**NO_HEAD_DIM | changes))


def olmo3(**changes: Any) -> PreTrainedModel:
    return transformers.Olmo3ForCausalLM(
        transformers.Olmo3Config(**NO_HEAD_DIM | {"sliding_window": 24} | changes)
    )


def olmo_hybrid(**changes: Any) -> PreTrainedModel:
    sizes = {key: value for key, value in (NO_HEAD_DIM | HYBRID).items() if key != "rope_parameters"}
    return transformers.OlmoHybridForCausalLM(transformers.OlmoHybridConfig(**sizes | changes))


def kolibri1(**changes: Any) -> PreTrainedModel:
    sizes = {key: value for key, value in (SIZES | EXPERTS).items() if key != "intermediate_size"}
    more = {"shared_expert_intermediate_size": 40, "sliding_window": 24, "num_hidden_layers": 6}
    return transformers.Kolibri1ForCausalLM(transformers.Kolibri1Config(**sizes | more | changes))


def muse_glimmer(**changes: Any) -> PreTrainedModel:
    text = SIZES | {"sliding_window": 24, "num_hidden_layers": 5, "qk_scale_factor": 3.875}
    text |= {"output_multiplier": 0.1875} | changes
    eye = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {"out_hidden_size": 64, "projector_hidden_size": 16}
    tied = changes.get("tie_word_embeddings", False)
    return transformers.MuseGlimmerForConditionalGeneration(
        transformers.MuseGlimmerConfig(text_config=text, vision_config=eye, tie_word_embeddings=tied, **sizes)
    )


ROUTED = {
    "num_experts_per_tok": 3,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "routed_scaling_factor": 1.3,
}
LATENT = ROUTED | {
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
}
GROUPS = {"n_group": 4, "topk_group": 2}


def latent_sizes(**changes: Any) -> dict[str, Any]:
    return NO_HEAD_DIM | LATENT | changes


def glm4_moe(**changes: Any) -> PreTrainedModel:
    return transformers.Glm4MoeForCausalLM(transformers.Glm4MoeConfig(**SIZES | ROUTED | changes))


def deepseek_v3(**changes: Any) -> PreTrainedModel:
    sizes = latent_sizes(**GROUPS | {"first_k_dense_replace": 1, "num_hidden_layers": 3} | changes)
    return transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**sizes))


def deepseek_v2(**changes: Any) -> PreTrainedModel:
    return transformers.DeepseekV2ForCausalLM(
        transformers.DeepseekV2Config(**latent_sizes(n_shared_experts=2, **changes))
    )


def qwen2_moe(**changes: Any) -> PreTrainedModel:
    experts = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    shared = {"shared_expert_intermediate_size": 40}
    return transformers.Qwen2MoeForCausalLM(
        transformers.Qwen2MoeConfig(**NO_HEAD_DIM | experts | shared | changes)
    )


def ernie4_5_moe(**changes: Any) -> PreTrainedModel:
    experts = {"moe_num_experts": 6, "moe_k": 3, "moe_intermediate_size": 32, "moe_num_shared_experts": 1}
    return transformers.Ernie4_5_MoeForCausalLM(
        transformers.Ernie4_5_MoeConfig(**NO_HEAD_DIM | experts | changes)
    )


def olmoe(**changes: Any) -> PreTrainedModel:
    experts = {"num_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 32}
    return transformers.OlmoeForCausalLM(transformers.OlmoeConfig(**NO_HEAD_DIM | experts | changes))


def minimax_m2(**changes: Any) -> PreTrainedModel:
    experts = {"num_local_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 32}
    return transformers.MiniMaxM2ForCausalLM(transformers.MiniMaxM2Config(**SIZES | experts | changes))


def cohere2(**changes: Any) -> PreTrainedModel:
    layers = {"num_hidden_layers": 4, "sliding_window": 24, "logit_scale": 0.6}
    return transformers.Cohere2ForCausalLM(transformers.Cohere2Config(**NO_HEAD_DIM | layers | changes))


def cohere2_moe(**changes: Any) -> PreTrainedModel:
    layers = {"num_hidden_layers": 4, "sliding_window": 24, "logit_scale": 0.6, "intermediate_size": 32}
    experts = {"num_experts": 6, "num_experts_per_tok": 3, "num_shared_experts": 1}
    return of("Cohere2Moe", **layers | experts | changes)


def starcoder2(**changes: Any) -> PreTrainedModel:
    return transformers.Starcoder2ForCausalLM(transformers.Starcoder2Config(**NO_HEAD_DIM | changes))


def apertus(**changes: Any) -> PreTrainedModel:
    model = transformers.ApertusForCausalLM(transformers.ApertusConfig(**SIZES | changes))
    for layer in model.model.layers:  # as they are read from files, in float32
        layer.mlp.act_fn.float()
    return model


def hunyuan(**changes: Any) -> PreTrainedModel:
    return transformers.HunYuanDenseV1ForCausalLM(transformers.HunYuanDenseV1Config(**SIZES | changes))


def lfm2(**changes: Any) -> PreTrainedModel:
    layers = {"num_hidden_layers": 4, "layer_types": ["conv", "conv", "full_attention", "conv"]}
    return transformers.Lfm2ForCausalLM(
        transformers.Lfm2Config(**NO_HEAD_DIM | layers | {"block_multiple_of": 16} | changes)
    )


def lfm2_moe(**changes: Any) -> PreTrainedModel:
    layers = {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "conv"]}
    experts = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
    return transformers.Lfm2MoeForCausalLM(
        transformers.Lfm2MoeConfig(**NO_HEAD_DIM | layers | experts | changes)
    )


def gpt_oss(**changes: Any) -> PreTrainedModel:
    experts = {"num_local_experts": 6, "num_experts_per_tok": 3, "sliding_window": 20, "swiglu_limit": 1.5}
    return transformers.GptOssForCausalLM(
        transformers.GptOssConfig(**SIZES | experts | changes, attn_implementation="eager")
    )


def of(kind: str, **changes: Any) -> PreTrainedModel:
    """A model of transformers that has nothing to be prepared, without the experts that it may have."""
    config, model = getattr(transformers, f"{kind}Config"), getattr(transformers, f"{kind}ForCausalLM")
    return model(config(**SIZES | changes))


def mistral4(**changes: Any) -> PreTrainedModel:
    rope = YARN | {"original_max_position_embeddings": 16, "llama_4_scaling_beta": 0.1}
    return transformers.Mistral4ForCausalLM(
        transformers.Mistral4Config(**latent_sizes(rope_parameters=rope) | changes)
    )


def youtu(**changes: Any) -> PreTrainedModel:
    sizes = {key: value for key, value in latent_sizes().items() if key not in ROUTED}
    return transformers.YoutuForCausalLM(transformers.YoutuConfig(**sizes | changes))


def vaultgemma(**changes: Any) -> PreTrainedModel:
    gemma = {"query_pre_attn_scalar": 20, "sliding_window": 24, "num_hidden_layers": 3}
    return of("VaultGemma", **gemma | {"attn_implementation": "eager"} | changes)


def granite_swa(kind: str, **changes: Any) -> PreTrainedModel:
    sizes = {"sliding_window": 24, "num_hidden_layers": 3, "attn_implementation": "eager"}
    scales = {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5}
    return of(kind, **sizes | scales | {"logits_scaling": 0.7} | changes)


def afmoe(**changes: Any) -> PreTrainedModel:
    experts = EXPERTS | {"num_shared_experts": 1, "route_scale": 1.3}
    return of("Afmoe", **experts | {"num_hidden_layers": 4, "sliding_window": 24} | changes)


def laguna(**changes: Any) -> PreTrainedModel:
    experts = EXPERTS | {"shared_expert_intermediate_size": 40, "moe_routed_scaling_factor": 1.3}
    sizes = {"num_hidden_layers": 3, "sliding_window": 24, "layer_types": ["full_attention", *2 * TYPES[:1]]}
    return of("Laguna", **experts | sizes | {"num_attention_heads_per_layer": [4, 8, 8]} | changes)


def hunyuan_moe(**changes: Any) -> PreTrainedModel:
    experts = {"num_experts": 6, "moe_topk": 3, "intermediate_size": 32}
    return of("HunYuanMoEV1", **experts | changes)


def flex_olmo(**changes: Any) -> PreTrainedModel:
    experts = {"num_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 32}
    return transformers.FlexOlmoForCausalLM(transformers.FlexOlmoConfig(**NO_HEAD_DIM | experts | changes))


def lfm3(**changes: Any) -> PreTrainedModel:
    types = ["conv", "sliding_attention", "full_attention", "conv"]
    return of("Lfm3", **{"num_hidden_layers": 4, "layer_types": types, "sliding_window": 24} | changes)


WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
