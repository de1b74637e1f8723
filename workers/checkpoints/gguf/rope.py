"""How positions turn, as the metadata of llama.cpp has it, and as `rope_scaling` of a `config.json`."""

from __future__ import annotations

from workers.checkpoints.files import refuse
from workers.checkpoints.gguf.keys import Json, Keys, floats


def by_type(keys: Keys) -> Json:
    """`rope_parameters` where layers with a window do not stretch their positions, in place of other keys."""
    theta = keys.number("rope.freq_base", 10_000.0)
    return {
        "rope_theta": None,
        "rope_scaling": None,
        "rope_parameters": {
            "full_attention": {"rope_theta": theta} | (scaling(keys) or {}),
            "sliding_attention": {"rope_theta": keys.number("rope.freq_base_swa", theta)},
        },
    }


def scaling(keys: Keys) -> Json | None:
    """`rope_scaling` as `config.json` would have it; None: positions are not stretched.

    Where no type stands there, it is linear; one that is none has no factor, whatever stands there.

    Raises:
        CortexError: MODEL_LOAD_FAILED naming the key that is not supported.
    """
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
