"""The metadata of llama.cpp as a `config.json`.

So the family's own reader says what is supported, and refuses the rest by its name.
"""

from __future__ import annotations

from typing import Any

from workers.checkpoints.files import refuse
from workers.checkpoints.gguf import rope, unread
from workers.checkpoints.gguf.architectures import Architecture
from workers.checkpoints.gguf.header import Gguf
from workers.checkpoints.gguf.keys import Json, Keys


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
    own, head_dim = architecture.config(keys), keys.head_dim()
    heads = own.get("num_attention_heads") or keys.size("attention.head_count")
    if not architecture.latent and (values := keys.number("attention.value_length", head_dim)) != head_dim:
        refuse(file.path, f"has keys of {head_dim} and values of {values}, which is not supported")
    turning = keys.number("rope.dimension_count", head_dim)
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
        "rope_scaling": rope.scaling(keys),
    }
    if not architecture.latent:  # said of all, as some families have another share where nothing is said
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
