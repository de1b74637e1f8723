"""Decoders without experts as llama.cpp has them: what of `config.json` is each one's own."""

from __future__ import annotations

from workers.checkpoints.files import refuse
from workers.checkpoints.gguf import rope
from workers.checkpoints.gguf.keys import WINDOW, Json, Keys, pattern


def mistral3(keys: Keys) -> Json:
    """Queries of Ministral 3 grow with the context, by as much as the file says."""
    if not (weight := keys.get("attention.temperature_scale")):
        return {}
    if (scaling := rope.scaling(keys)) is None or scaling["rope_type"] != "yarn":
        refuse(keys.path, "attention.temperature_scale beside a rope that is no yarn is not supported")
    return {
        "architectures": ["Ministral3ForCausalLM"],
        "rope_scaling": scaling | {"llama_4_scaling_beta": weight},
    }


def phi3(keys: Keys) -> Json:
    """The window, and up to where its positions were trained."""
    given = {"sliding_window": keys.get(WINDOW) or None}
    if (original := keys.get("rope.scaling.original_context_length")) is not None:
        given["original_max_position_embeddings"] = original
    return given


def seeing(keys: Keys) -> Json:
    """A Qwen that sees: text has the same in all parts of a position, and nothing that layers are shown."""
    keys.asked |= {"rope.dimension_sections", "n_deepstack_layers"}
    return {}


def granite(keys: Keys) -> Json:
    """Its positions turn, unless the file says otherwise."""
    if not keys.get("rope.scaling.finetuned", True):
        refuse(keys.path, f"{keys.file.architecture}.rope.scaling.finetuned False is not supported")
    return granite_scales(keys)


def granite_scales(keys: Keys) -> Json:
    """What Granites multiply by."""
    return {
        "attention_multiplier": keys.number("attention.scale", keys.head_dim() ** -0.5),
        "embedding_multiplier": keys.number("embedding_scale", 1.0),
        "residual_multiplier": keys.number("residual_scale", 1.0),
        "logits_scaling": keys.number("logit_scale"),
    }


def olmo2(keys: Keys) -> Json:
    """One with a window is an OLMo 3, whose layers with one do not stretch their positions."""
    window = keys.get(WINDOW)
    if not window:
        return {}
    windows = {"sliding_window": window, "layer_types": pattern(keys, 4)}
    return {"architectures": ["Olmo3ForCausalLM"]} | windows | rope.by_type(keys)


def cohere(keys: Keys) -> Json:
    """Command R+ has norms of queries and keys, others have none."""
    return {
        "logit_scale": keys.number("logit_scale"),
        "layer_norm_eps": keys.number("attention.layer_norm_epsilon"),
        "use_qk_norm": keys.has("blk.0.attn_q_norm.weight"),
    }


def cohere2(keys: Keys) -> Json:
    """Every fourth layer sees all tokens."""
    window = keys.get(WINDOW) or None
    return cohere(keys) | {"sliding_window": window, "layer_types": pattern(keys, 4)}


def seed_oss(keys: Keys) -> Json:
    """Whether attention's last projection has a bias."""
    return {"attention_out_bias": keys.has("blk.0.attn_output.bias")}


def exaone4(keys: Keys) -> Json:
    """Every fourth layer sees all tokens, where some do not."""
    return {
        "sliding_window": keys.get(WINDOW) or None,
        "layer_types": pattern(keys, 4),
    }


def ernie4_5(keys: Keys) -> Json:
    """Whether it has biases."""
    return {"use_bias": keys.has("blk.0.attn_q.bias")}


def arcee(keys: Keys) -> Json:
    """Whether its MLPs have biases."""
    return {"mlp_bias": keys.has("blk.0.ffn_up.bias")}


def jais2(keys: Keys) -> Json:
    """Its norms, and whether its MLPs have biases."""
    return arcee(keys) | {"layer_norm_eps": keys.number("attention.layer_norm_epsilon")}


def starcoder2(keys: Keys) -> Json:
    """Windows are in no file, and llama.cpp has none."""
    return {
        "norm_epsilon": keys.number("attention.layer_norm_epsilon"),
        "use_bias": keys.has("blk.0.attn_q.bias"),
    }
