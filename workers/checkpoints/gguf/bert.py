"""BERT as llama.cpp has it: the names of its tensors, its config, and how its vectors are made."""

from __future__ import annotations

from workers.checkpoints.families.bert import NORM, POSITIONS, TYPES, WORDS
from workers.checkpoints.files import refuse
from workers.checkpoints.gguf.header import Gguf
from workers.checkpoints.gguf.keys import Json, Keys
from workers.checkpoints.vectors.stages import Pooling

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
POOLINGS: dict[int, Pooling] = {1: "mean", 2: "cls", 3: "last"}


def config(keys: Keys) -> Json:
    """What XLM-R is, with positions that count from padding, has another tokenizer and is not read."""
    if (kind := keys.file.get("tokenizer.ggml.model")) != "bert":
        refuse(keys.path, f"is a BERT with a tokenizer of kind {kind!r}, which is not supported")
    if keys.has("cls.weight") or keys.has("cls.output.weight"):
        refuse(
            keys.path, "ends in a classifier, which is not supported in GGUF: rerankers are in safetensors"
        )
    tensors = keys.file.tensors
    if (positions := tensors.get("position_embd.weight")) is None:
        refuse(keys.path, "has no tensor 'position_embd.weight'")
    types = tensors.get("token_types.weight")
    return {
        "hidden_size": keys.size("embedding_length"),
        "intermediate_size": keys.size("feed_forward_length"),
        "num_hidden_layers": keys.size("block_count"),
        "num_attention_heads": keys.size("attention.head_count"),
        "max_position_embeddings": positions.shape[0],
        "layer_norm_eps": keys.number("attention.layer_norm_epsilon"),
        "type_vocab_size": 0 if types is None else types.shape[0],
        "rope_theta": None,
    }


def pooling(file: Gguf) -> Pooling:
    """How vectors are made of hidden states, as the file of an encoder says; else they are means."""
    kind = Keys(file).get("pooling_type", 1)
    if kind not in POOLINGS:
        refuse(file.path, f"pooling_type {kind!r} is not supported; there are 1 (mean), 2 (cls) and 3 (last)")
    return POOLINGS[kind]
