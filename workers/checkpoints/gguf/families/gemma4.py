"""Gemma 4 as llama.cpp has it: layers of two shapes, and inputs, experts and scales of its own."""

from __future__ import annotations

from workers.checkpoints.files import refuse
from workers.checkpoints.gguf.keys import Json, Keys, floats, of_layers, pattern

INPUT_NAMES = {
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
}
BESIDE_MLP = {
    "ffn_gate_inp": "router.proj",
    "post_ffw_norm_1": "post_feedforward_layernorm_1",
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
    "post_ffw_norm_2": "post_feedforward_layernorm_2",
}
TABLE = {
    "per_layer_token_embd.weight": "model.embed_tokens_per_layer.weight",
    "per_layer_model_proj.weight": "model.per_layer_model_projection.weight",
    "per_layer_proj_norm.weight": "model.per_layer_projection_norm.weight",
}
WHOLE = TABLE | {
    "layer_output_scale.weight": "layer_scalar",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_down_exps.scale": "router.per_expert_scale",
}


def config(keys: Keys) -> Json:
    """Layers of two shapes: heads of another size and number see all tokens."""
    types = pattern(keys, every=6)
    count, large, small = len(types), keys.head_dim(), keys.size("attention.key_length_swa")
    full = [number for number, kind in enumerate(types) if kind == "full_attention"]
    for name, size in (("attention.value_length_swa", small), ("rope.dimension_count_swa", small)):
        if (value := keys.number(name, size)) != size:
            refuse(keys.path, f"{name} {value} is not supported: heads in a window have {size}")
    kv_heads = of_layers(keys, "attention.head_count_kv", count)
    inner, shared = (
        of_layers(keys, "feed_forward_length", count),
        keys.number("attention.shared_kv_layers", 0),
    )
    local = [number for number in range(count) if number not in full]
    if not full or not local or len({kv_heads[n] for n in local}) > 1:
        refuse(keys.path, "attention.head_count_kv and sliding_window_pattern are of no Gemma 4")
    own = {"head_dim": large, "num_key_value_heads": kv_heads[full[0]]}
    factors = floats(keys.file, "rope_freqs.weight")
    turning = sum(factor == 1.0 for factor in factors)
    if len(factors) != large // 2 or any(factor < 1e20 for factor in factors[turning:]):
        refuse(
            keys.path, "rope_freqs.weight is not supported: it does more than leave some pairs as they are"
        )
    wide = inner[-1] == 2 * inner[0]
    if inner != [inner[0]] * (count - shared * wide) + [2 * inner[0]] * (shared * wide):
        refuse(
            keys.path, "feed_forward_length is not supported: layers that share keys may have twice as much"
        )
    table = keys.file.tensors.get("per_layer_token_embd.weight")
    given = {
        "head_dim": small,
        "num_key_value_heads": kv_heads[local[0]],
        "per_layer_config": {str(number): own for number in full},
        "attention_k_eq_v": not keys.has(f"blk.{full[0]}.attn_v.weight"),
        "num_kv_shared_layers": shared,
        "intermediate_size": inner[0],
        "use_double_wide_mlp": wide,
        "hidden_size_per_layer_input": keys.number("embedding_length_per_layer_input", 0),
        "sliding_window": keys.size("attention.sliding_window"),
        "layer_types": types,
        "final_logit_softcapping": keys.get("final_logit_softcapping") or None,
        "rope_parameters": {
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": turning / len(factors),
                "rope_theta": keys.number("rope.freq_base"),
            },
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": keys.number("rope.freq_base_swa", 10_000.0),
            },
        },
        "rope_scaling": None,
    }
    if table is not None:
        given["vocab_size_per_layer_input"] = table.shape[0]
    if keys.get("expert_count"):
        given |= {
            "enable_moe_block": True,
            "num_experts": keys.number("expert_count"),
            "top_k_experts": keys.number("expert_used_count"),
            "moe_intermediate_size": keys.number("expert_feed_forward_length"),
        }
    return given
