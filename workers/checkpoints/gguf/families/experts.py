"""Decoders with experts as llama.cpp has them: what of `config.json` is each one's own."""

from __future__ import annotations

from workers.checkpoints.files import refuse
from workers.checkpoints.gguf import rope
from workers.checkpoints.gguf.families import dense
from workers.checkpoints.gguf.keys import MOST_LAYERS, WINDOW, Json, Keys, of_layers, pattern
from workers.checkpoints.gguf.unread import SIGMOID, SOFTMAX


def routed(keys: Keys) -> Json:
    """What DeepSeek's and its kin say of their experts, of which the first layers have none."""
    return {
        "n_routed_experts": keys.number("expert_count"),
        "num_experts_per_tok": keys.number("expert_used_count"),
        "moe_intermediate_size": keys.number("expert_feed_forward_length"),
        "n_shared_experts": keys.number("expert_shared_count", 0),
        "first_k_dense_replace": keys.number("leading_dense_block_count", 0),
        "routed_scaling_factor": keys.number("expert_weights_scale", 1.0),
        "norm_topk_prob": keys.get("expert_weights_norm", False),
    }


def _check_sigmoid(keys: Keys) -> None:
    if (gating := keys.number("expert_gating_func", SIGMOID)) != SIGMOID:
        refuse(keys.path, f"expert_gating_func {gating} is not supported; {SIGMOID} is")


def llama(keys: Keys) -> Json:
    """One with experts is a Mixtral."""
    if keys.get("expert_count"):
        return {
            "architectures": ["MixtralForCausalLM"],
            "num_local_experts": keys.number("expert_count"),
            "num_experts_per_tok": keys.number("expert_used_count"),
        }
    return {}


def granite_moe(keys: Keys) -> Json:
    """Every layer has experts, and maybe an MLP beside them."""
    shared = keys.number("expert_shared_feed_forward_length", 0)
    return dense.granite(keys) | {
        "architectures": ["GraniteMoeSharedForCausalLM" if shared else "GraniteMoeForCausalLM"],
        "num_local_experts": keys.number("expert_count"),
        "num_experts_per_tok": keys.number("expert_used_count"),
        "shared_intermediate_size": shared,
    }


def granite_swa(keys: Keys) -> Json:
    """One with windows, and experts in every layer or none. Positions turn in the layers that it lists."""
    if shared := keys.number("expert_shared_feed_forward_length", 0):
        refuse(keys.path, f"granite_swa.expert_shared_feed_forward_length {shared} is not supported")
    count = keys.number("expert_count", 0)
    experts = {
        "architectures": ["GraniteMoeSWAForCausalLM"],
        "num_local_experts": count,
        "num_experts_per_tok": keys.number("expert_used_count", 0),
    }
    theta, turns = keys.number("rope.freq_base", 10_000.0), keys.get("attention.rope_pattern")
    if turns is not None and not isinstance(turns, list):
        refuse(keys.path, f"attention.rope_pattern {turns!r} is no list with an entry for each layer")
    return dense.granite_scales(keys) | {
        **(experts if count else {}),
        "sliding_window": keys.size(WINDOW),
        "layer_types": pattern(keys, 4, first=True),
        "layer_rope_theta": None if turns is None else [theta if each else 0 for each in turns],
    }


def qwen3_moe(keys: Keys) -> Json:
    """Weights of the experts that a token goes to add up to 1."""
    return {
        "num_experts": keys.number("expert_count"),
        "num_experts_per_tok": keys.number("expert_used_count"),
        "moe_intermediate_size": keys.number("expert_feed_forward_length"),
        "norm_topk_prob": True,
    }


def qwen3_vl(keys: Keys) -> Json:
    """The same of one that sees."""
    return qwen3_moe(keys) | dense.seeing(keys)


def mellum(keys: Keys) -> Json:
    """Layers with a window do not stretch their positions."""
    windows = {"sliding_window": keys.get(WINDOW) or None, "layer_types": pattern(keys, 4)}
    return qwen3_moe(keys) | windows | rope.by_type(keys)


def qwen2_moe(keys: Keys) -> Json:
    """One of its experts is for all tokens."""
    return qwen3_moe(keys) | {
        "norm_topk_prob": False,  # llama.cpp does so, whatever the config said that was converted
        "shared_expert_intermediate_size": keys.number("expert_shared_feed_forward_length"),
        "qkv_bias": keys.has("blk.0.attn_q.bias"),
    }


def glm4_moe(keys: Keys) -> Json:
    """Its first layers have no experts."""
    keys.get("rope.dimension_sections")  # of one that sees; of text all of them have one position
    return routed(keys) | {
        "n_group": keys.number("expert_group_count", 1),
        "topk_group": keys.number("expert_group_used_count", 1),
        "use_qk_norm": keys.has("blk.0.attn_q_norm.weight"),
    }


def llama4(keys: Keys) -> Json:
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


def gpt_oss(keys: Keys) -> Json:
    """Every second layer sees all tokens."""
    scaling = rope.scaling(keys)
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


def ernie4_5_moe(keys: Keys) -> Json:
    """Not all layers have experts."""
    return dense.ernie4_5(keys) | {
        "moe_num_experts": keys.number("expert_count"),
        "moe_k": keys.number("expert_used_count"),
        "moe_intermediate_size": keys.number("expert_feed_forward_length"),
        "moe_num_shared_experts": keys.number("expert_shared_count", 0),
        "moe_layer_start_index": keys.number("leading_dense_block_count", 0),
        "moe_layer_interval": keys.number("interleave_moe_layer_step", 1),
    }


def olmoe(keys: Keys) -> Json:
    """Files say the size of an expert as that of an MLP."""
    return {
        "num_experts": keys.number("expert_count"),
        "num_experts_per_tok": keys.number("expert_used_count"),
        "norm_topk_prob": False,  # llama.cpp does so
        "clip_qkv": keys.get("attention.clamp_kqv") or None,
    }


def minimax_m2(keys: Keys) -> Json:
    """All of its layers have experts, whose scores are sigmoids."""
    _check_sigmoid(keys)
    return {
        "intermediate_size": keys.number("expert_feed_forward_length"),
        "num_local_experts": keys.number("expert_count"),
        "num_experts_per_tok": keys.number("expert_used_count"),
    }


def dots1(keys: Keys) -> Json:
    """Its scores are sigmoids."""
    _check_sigmoid(keys)
    return routed(keys)


def afmoe(keys: Keys) -> Json:
    """Its embeddings are multiplied, which no key says."""
    return {
        "num_experts": keys.number("expert_count"),
        "num_experts_per_tok": keys.number("expert_used_count"),
        "moe_intermediate_size": keys.number("expert_feed_forward_length"),
        "num_shared_experts": keys.number("expert_shared_count", 0),
        "num_dense_layers": keys.number("leading_dense_block_count", 0),
        "route_scale": keys.number("expert_weights_scale", 1.0),
        "route_norm": keys.get("expert_weights_norm", False),
        "sliding_window": keys.size(WINDOW),
        "layer_types": pattern(keys, 4),
        "mup_enabled": True,
    }


def laguna(keys: Keys) -> Json:
    """Layers may differ in their heads; of those with a window other dimensions turn."""
    count, head_dim = max(1, min(keys.layers(), MOST_LAYERS)), keys.head_dim()
    heads = of_layers(keys, "attention.head_count", count)
    dense = min(keys.number("leading_dense_block_count", 0), count)
    gates, turning = keys.file.tensors.get("blk.0.attn_gate.weight"), rope.by_type(keys)
    for kind, behind in (("full_attention", ""), ("sliding_attention", "_swa")):
        share = keys.number(f"rope.dimension_count{behind}", head_dim) / head_dim
        turning["rope_parameters"][kind]["partial_rotary_factor"] = share
    return turning | {
        "num_attention_heads": heads[0],
        "num_attention_heads_per_layer": heads,
        "gating": "per-head" if gates is not None and gates.shape[0] == heads[0] else "per-element",
        "num_experts": keys.number("expert_count"),
        "num_experts_per_tok": keys.number("expert_used_count"),
        "moe_intermediate_size": keys.number("expert_feed_forward_length"),
        "shared_expert_intermediate_size": keys.size("expert_shared_feed_forward_length"),
        "mlp_layer_types": ["dense"] * dense + ["sparse"] * (count - dense),
        "moe_routed_scaling_factor": keys.number("expert_weights_scale"),
        "norm_topk_prob": keys.get("expert_weights_norm", False),
        "sliding_window": keys.get(WINDOW) or None,
        "layer_types": pattern(keys, 4, first=True),
    }


def cohere2_moe(keys: Keys) -> Json:
    """Layers before those with experts have positions, whatever they see."""
    count = max(1, min(keys.layers(), MOST_LAYERS))
    before = min(keys.number("leading_dense_block_count", 0), count)
    inner, shared = keys.size("expert_feed_forward_length"), keys.number("expert_shared_count", 0)
    if (value := keys.number("expert_shared_feed_forward_length", inner * shared)) != inner * shared:
        refuse(keys.path, f"expert_shared_feed_forward_length {value} is not supported: experts have {inner}")
    gating, normalised = keys.number("expert_gating_func", SIGMOID), keys.get("expert_weights_norm", False)
    if gating not in (SOFTMAX, SIGMOID) or (gating == SOFTMAX and not normalised):
        refuse(keys.path, f"expert_gating_func {gating}, expert_weights_norm {normalised} is not supported")
    return {
        "intermediate_size": inner,
        "prefix_dense_intermediate_size": keys.size("feed_forward_length", inner),
        "first_k_dense_replace": before,
        "num_experts": keys.number("expert_count"),
        "num_experts_per_tok": keys.number("expert_used_count"),
        "num_shared_experts": shared,
        "expert_selection_fn": "sigmoid" if gating == SIGMOID else "softmax",
        "norm_topk_prob": normalised,
        "logit_scale": keys.number("logit_scale"),
        "layer_norm_eps": keys.number("attention.layer_norm_epsilon", 1e-5),
        "rms_norm_eps": keys.get("attention.layer_norm_rms_epsilon"),
        "sliding_window": keys.size(WINDOW),
        "layer_types": pattern(keys, 4, first=True),
    }


def hunyuan_moe(keys: Keys) -> Json:
    """An expert is as large as the MLP beside them."""
    inner = keys.size("expert_feed_forward_length")
    for name in ("feed_forward_length", "expert_shared_feed_forward_length"):
        if (value := keys.number(name, inner)) != inner:
            refuse(keys.path, f"{name} {value} is not supported: experts have {inner}")
    return {
        "num_experts": keys.number("expert_count"),
        "moe_topk": keys.number("expert_used_count"),
        "num_shared_expert": keys.number("expert_shared_count", 1),
    }
