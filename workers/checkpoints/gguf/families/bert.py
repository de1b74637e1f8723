"""BERT, Nomic's and ModernBERT as llama.cpp has them: names of tensors, and their config."""

from __future__ import annotations

from workers.checkpoints.families import modernbert, nomic_bert
from workers.checkpoints.families.bert import NORM, POSITIONS, TYPES, WORDS
from workers.checkpoints.files import refuse
from workers.checkpoints.gguf.keys import MOST_LAYERS, WINDOW, Json, Keys

LAYER = {
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}
WHOLE = {
    "token_embd.weight": f"{WORDS}.weight",
    "position_embd.weight": f"{POSITIONS}.weight",
    "token_types.weight": f"{TYPES}.weight",
    "token_embd_norm.weight": f"{NORM}.weight",
    "token_embd_norm.bias": f"{NORM}.bias",
}
NOMIC_LAYER = {
    "attn_qkv": "attn.Wqkv",
    "attn_output": "attn.out_proj",
    "attn_output_norm": "norm1",
    "ffn_up": "mlp.fc11",
    "ffn_gate": "mlp.fc12",
    "ffn_down": "mlp.fc2",
    "layer_output_norm": "norm2",
}
NOMIC_WHOLE = {
    "token_embd.weight": f"{nomic_bert.WORDS}.weight",
    "token_types.weight": f"{nomic_bert.TYPES}.weight",
    "token_embd_norm.weight": f"{nomic_bert.NORM}.weight",
    "token_embd_norm.bias": f"{nomic_bert.NORM}.bias",
}
NOMIC_MOE_LAYER = NOMIC_LAYER | {"ffn_up": "mlp.fc1", "ffn_gate_inp": f"mlp.{nomic_bert.ROUTER}"}
MODERN_LAYER = {
    "attn_norm": "attn_norm",
    "attn_qkv": "attn.Wqkv",
    "attn_output": "attn.Wo",
    "ffn_norm": "mlp_norm",
    "ffn_up": "mlp.Wi",
    "ffn_down": "mlp.Wo",
}
MODERN_WHOLE = {
    "token_embd.weight": f"{modernbert.WORDS}.weight",
    "token_embd_norm.weight": f"{modernbert.NORM}.weight",
    "output_norm.weight": f"{modernbert.LAST_NORM}.weight",
}
NEUTRAL = {"attention.causal": (False,)}


def config(keys: Keys) -> Json:
    """XLM-R and RoBERTa are such a one, too: rows for positions of padding are left out of their files."""
    if (positions := keys.file.tensors.get("position_embd.weight")) is None:
        refuse(keys.path, "has no tensor 'position_embd.weight'")
    return _shared(keys) | {"max_position_embeddings": positions.shape[0], "rope_theta": None}


def nomic_config(keys: Keys) -> Json:
    """The first one."""
    return _nomic(keys, "bert") | {"hidden_act": "silu"}


def nomic_moe_config(keys: Keys) -> Json:
    """The second one. What is added to the sum of experts is left out of files."""
    return _nomic(keys, "t5") | {
        "hidden_act": "gelu",
        "gates": False,
        "qkv_proj_bias": True,
        "mlp_fc1_bias": True,
        "mlp_fc2_bias": True,
        "num_experts": keys.size("expert_count"),
        "moe_top_k": keys.size("expert_used_count"),
        "moe_every_n_layers": keys.size("moe_every_n_layers"),
        "expert_bias": False,
    }


def _nomic(keys: Keys, tokenizer: str) -> Json:
    """Files of them say what turns, and until where."""
    if (kind := keys.file.get("tokenizer.ggml.model")) != tokenizer:
        name = keys.file.architecture
        refuse(keys.path, f"is a {name} with a tokenizer of kind {kind!r}, which is not supported")
    return _shared(keys) | {
        "max_position_embeddings": keys.size("context_length"),
        "rope_theta": keys.number("rope.freq_base"),
    }


def modern_config(keys: Keys) -> Json:
    """Of every so many layers the first one sees all of a text."""
    count, window = min(keys.size("block_count"), MOST_LAYERS), keys.number(WINDOW, 0)
    far = keys.get("attention.sliding_window_pattern", modernbert.EVERY)
    if not isinstance(far, list):
        every = keys.size("attention.sliding_window_pattern", modernbert.EVERY)
        far = [number % every > 0 for number in range(count)]
    if len(far) < count:
        refuse(keys.path, f"attention.sliding_window_pattern {far!r} is no list of {count} layers")
    keys.get("attention.layer_norm_rms_epsilon")  # a converter's second name of the other
    kinds = ["sliding_attention" if near and window else "full_attention" for near in far[:count]]
    return {
        "hidden_size": keys.size("embedding_length"),
        "intermediate_size": keys.size("feed_forward_length"),
        "num_hidden_layers": keys.size("block_count"),
        "num_attention_heads": keys.size("attention.head_count"),
        "max_position_embeddings": keys.size("context_length"),
        "norm_eps": keys.number("attention.layer_norm_epsilon"),
        "local_attention": window,
        "layer_types": kinds,
        "hidden_activation": keys.get("hidden_activation", "gelu"),
        "global_rope_theta": keys.number("rope.freq_base", modernbert.THETA),
        "local_rope_theta": keys.number("rope.freq_base_swa", modernbert.NEAR_THETA),
    }


def _shared(keys: Keys) -> Json:
    types = keys.file.tensors.get("token_types.weight")
    return {
        "hidden_size": keys.size("embedding_length"),
        "intermediate_size": keys.size("feed_forward_length"),
        "num_hidden_layers": keys.size("block_count"),
        "num_attention_heads": keys.size("attention.head_count"),
        "layer_norm_eps": keys.number("attention.layer_norm_epsilon"),
        "type_vocab_size": 0 if types is None else types.shape[0],
    }
