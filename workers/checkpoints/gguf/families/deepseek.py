"""DeepSeek V2 and V3 as llama.cpp has them, and their kin: latent attention, and experts in groups."""

from __future__ import annotations

from workers.checkpoints.families.mistral import ROPE_4
from workers.checkpoints.files import refuse
from workers.checkpoints.gguf import rope
from workers.checkpoints.gguf.families.experts import routed
from workers.checkpoints.gguf.keys import Json, Keys
from workers.checkpoints.gguf.unread import SIGMOID, SOFTMAX

LAYER = {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_k_b": "self_attn.k_b_proj",
    "attn_v_b": "self_attn.v_b_proj",
}


def config(keys: Keys) -> Json:
    """Scores of V3 and its kin are sigmoids, those of V2 a softmax, which old files do not name. Without
    experts it is a Youtu."""
    if not keys.get("expert_count"):
        keys.asked.update(name for name in keys.names() if name.startswith("expert_"))  # of none
        if (dense := keys.number("leading_dense_block_count", 0)) < keys.layers():
            refuse(
                keys.path,
                f"deepseek2.leading_dense_block_count {dense} is below its layers, and it has no experts",
            )
        return _latent(keys) | {"architectures": ["YoutuForCausalLM"]}
    gating = keys.number("expert_gating_func", SOFTMAX)
    normalised, groups = keys.get("expert_weights_norm", False), keys.number("expert_group_count", 1)
    if gating not in (SOFTMAX, SIGMOID) or (gating == SOFTMAX and normalised):
        refuse(keys.path, f"expert_gating_func {gating}, expert_weights_norm {normalised} is not supported")
    return (
        _latent(keys)
        | routed(keys)
        | {
            "architectures": ["DeepseekV3ForCausalLM" if gating == SIGMOID else "DeepseekV2ForCausalLM"],
            "topk_method": None if gating == SIGMOID or groups == 1 else "group_limited_greedy",
            "n_group": groups,
            "topk_group": keys.number("expert_group_used_count", 1),
        }
    )


def mistral4(keys: Keys) -> Json:
    """How its queries grow is in no file."""
    growth = {"llama_4_scaling_beta": keys.get("attention.temperature_scale", ROPE_4["llama_4_scaling_beta"])}
    if (scaling := rope.scaling(keys)) is None or scaling["rope_type"] != "yarn":
        refuse(keys.path, "is a mistral4 whose rope is no yarn, which is not supported")
    return _latent(keys) | routed(keys) | {"rope_scaling": scaling | growth}


def _latent(keys: Keys) -> Json:
    turning = keys.size("rope.dimension_count")
    key = keys.size("attention.key_length_mla", keys.head_dim())
    return {
        "q_lora_rank": keys.get("attention.q_lora_rank") or None,
        "kv_lora_rank": keys.size("attention.kv_lora_rank"),
        "qk_rope_head_dim": turning,
        "qk_nope_head_dim": key - turning,
        "v_head_dim": keys.size("attention.value_length_mla", keys.get("attention.value_length")),
    }
