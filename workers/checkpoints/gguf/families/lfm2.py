"""LFM2 as llama.cpp has it: layers that are convolutions, beside such that attend."""

from __future__ import annotations

from workers.checkpoints.files import refuse
from workers.checkpoints.gguf.keys import Json, Keys
from workers.checkpoints.gguf.unread import SIGMOID

LAYER = {f"shortconv.{name}": f"conv.{name}" for name in ("conv", "in_proj", "out_proj")}
LAYER |= {"attn_norm": "operator_norm", "ffn_norm": "ffn_norm"}
WHOLE = {"token_embd_norm.weight": "model.norm.weight"}


def config(keys: Keys) -> Json:
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


def with_experts(keys: Keys) -> Json:
    """The same, with experts in all layers but the first ones."""
    if (gating := keys.number("expert_gating_func", SIGMOID)) != SIGMOID:
        refuse(keys.path, f"expert_gating_func {gating} is not supported; {SIGMOID} is")
    return config(keys) | {
        "num_experts": keys.number("expert_count"),
        "num_experts_per_tok": keys.number("expert_used_count"),
        "moe_intermediate_size": keys.number("expert_feed_forward_length"),
        "num_dense_layers": keys.number("leading_dense_block_count", 0),
        "norm_topk_prob": True,
        "routed_scaling_factor": keys.number("expert_weights_scale", 1.0),
    }
