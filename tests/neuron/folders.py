"""Tiny checkpoint folders and tokenizers, made here: nothing is downloaded, and no weight means anything."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": 5,
}
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
SPECIAL = ["<|end|>", "<|start|>"]
ITEM = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1}
TEXT = [
    "The quick brown fox jumps over the lazy dog, again and again, and the dog does not mind.",
    "Größe, naïve, Ελληνικά, русский язык, 你好世界, こんにちは, שלום, 👩‍👩‍👧 😀 🇩🇪",
    "def answer(x):\n    return x + 42\n",
]


def shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    """Names and shapes of all tensors of such a model, written out as transformers names them."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    tensors = {"model.embed_tokens.weight": [vocab, hidden], "model.norm.weight": [hidden]}
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = [vocab, hidden]
    for i in range(config["num_hidden_layers"]):
        layer = {
            "input_layernorm.weight": [hidden],
            "post_attention_layernorm.weight": [hidden],
            "self_attn.q_proj.weight": [queries, hidden],
            "self_attn.k_proj.weight": [keys, hidden],
            "self_attn.v_proj.weight": [keys, hidden],
            "self_attn.o_proj.weight": [hidden, queries],
            "mlp.gate_proj.weight": [inner, hidden],
            "mlp.up_proj.weight": [inner, hidden],
            "mlp.down_proj.weight": [hidden, inner],
        }
        if config["architectures"] == ["Qwen3ForCausalLM"]:
            layer["self_attn.q_norm.weight"] = layer["self_attn.k_norm.weight"] = [config["head_dim"]]
        if config.get("attention_bias"):
            layer["self_attn.q_proj.bias"] = [queries]
            layer["self_attn.k_proj.bias"] = layer["self_attn.v_proj.bias"] = [keys]
            layer["self_attn.o_proj.bias"] = [hidden]
        if config.get("mlp_bias"):
            layer["mlp.gate_proj.bias"] = layer["mlp.up_proj.bias"] = [inner]
            layer["mlp.down_proj.bias"] = [hidden]
        tensors |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return tensors


def header(tensors: dict[str, list[int]], dtype: str = "BF16") -> dict[str, Any]:
    """The JSON header of a safetensors file that holds `tensors`, one after the other."""
    entries, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors.items():
        start, end = end, end + math.prod(shape) * ITEM[dtype]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    return entries


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def write_safetensors(path: Path, entries: dict[str, Any], *, size: int | None = None) -> None:
    """A file with this header and zeros for data; `size` bytes of data, or what the header says."""
    text = json.dumps(entries).encode()
    if size is None:
        size = max(entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__")
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))


def write_checkpoint(folder: Path, *, shards: int = 1, weights: str = "BF16", **changes: Any) -> Path:
    """A whole checkpoint; `changes` are made to `CONFIG`, where None takes a key away."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, **changes}
    tensors = shapes(config)
    config = {key: value for key, value in config.items() if value is not None}
    write_json(folder / "config.json", config)
    byte_level().save(str(folder / "tokenizer.json"))
    pad = {"content": "<|start|>", "special": True}
    tokens = {"bos_token": None, "eos_token": "<|end|>", "pad_token": pad}
    write_json(folder / "tokenizer_config.json", {**tokens, "chat_template": TEMPLATE})
    if shards == 1:
        write_safetensors(folder / "model.safetensors", header(tensors, weights))
        return folder
    weight_map = {}
    for i in range(shards):
        name = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[i::shards])
        write_safetensors(folder / name, header(part, weights))
        weight_map |= dict.fromkeys(part, name)
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    return folder


def byte_level() -> Tokenizer:
    """BPE over bytes, as Llama 3 and Qwen have it: a token may be a part of a character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("<tool_call>", special=True)])
    return tokenizer


def metaspace() -> Tokenizer:
    """Pieces with their leading space written as a mark, as sentencepiece has it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", *SPECIAL], show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2 has it: characters that are in no piece are written as tokens of single bytes."""
    tokens = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"helowrd", "▁h", "el"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = [("▁", "h"), ("e", "l")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer
