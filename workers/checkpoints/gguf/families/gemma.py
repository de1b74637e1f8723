"""Gemma 2 and 3 as llama.cpp has them, the Gemma 3 that embeds, and Muse Glimmer, which has their norms."""

from __future__ import annotations

from workers.checkpoints.files import refuse
from workers.checkpoints.gguf.keys import WINDOW, Json, Keys, floats, pattern

NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def _shared(keys: Keys, every: int, large: int) -> Json:
    """What Gemma 2 and 3 share; `large`: layers of the one whose heads are scaled otherwise."""
    heads, width = keys.size("attention.head_count"), keys.size("embedding_length")
    return {
        "query_pre_attn_scalar": width // heads if keys.layers() == large else keys.head_dim(),
        "sliding_window": keys.get(WINDOW) or None,
        "layer_types": pattern(keys, every),
        "final_logit_softcapping": keys.get("final_logit_softcapping") or None,
        "hidden_activation": "gelu_pytorch_tanh",
    }


def gemma2(keys: Keys) -> Json:
    """Scores of its attention are bent to stay below a number."""
    caps = {"attn_logit_softcapping": keys.get("attn_logit_softcapping", 50.0) or None}
    return _shared(keys, every=2, large=46) | caps


def gemma3(keys: Keys) -> Json:
    """Layers with a window have positions of their own."""
    return _shared(keys, every=6, large=62) | {
        "rope_local_base_freq": keys.get("rope.freq_base_swa", 10_000.0)
    }


def embedding(keys: Keys) -> Json:
    """A Gemma 3 whose tokens see those behind them, too."""
    for part in ("dense_2", "dense_3"):  # whose matrices say it
        for side in ("in", "out"):
            keys.get(f"{part}_feat_{side}")
    return gemma3(keys) | {"use_bidirectional_attention": True}


def muse_glimmer(keys: Keys) -> Json:
    """Layers without a window have no positions. What queries are multiplied with is written as the weights
    of norms that have none."""
    window, types, base = keys.size(WINDOW), pattern(keys, 4), keys.number("rope.freq_base")
    scales = {*floats(keys.file, "blk.0.attn_q_norm.weight")}
    for number in range(len(types)):
        for name, weights in (("attn_q_norm", scales), ("attn_k_norm", {1.0})):
            if len(weights) != 1 or {*floats(keys.file, f"blk.{number}.{name}.weight")} != weights:
                refuse(keys.path, f"has other numbers in 'blk.{number}.{name}.weight' than one for all heads")
    return {
        "sliding_window": window,
        "layer_types": types,
        "layer_rope_theta": [base if each == "sliding_attention" else 0 for each in types],
        "qk_scale_factor": scales.pop(),
        "output_multiplier": keys.number("logit_scale"),
        "final_logit_softcapping": keys.number("final_logit_softcapping"),
    }
