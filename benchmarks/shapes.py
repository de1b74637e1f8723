"""The shapes of models that `benchmarks.gpu` measures, and the tiny ones that it is rehearsed with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from transformers import (
    GraniteMoeHybridConfig,
    PretrainedConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from benchmarks.driver import write_hollow
from benchmarks.engine import SHAPE
from benchmarks.quantised_models import write_awq, write_fp8, write_gguf, write_nvfp4

TINY = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
TINY_EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}
TINY_BLOCKS = Qwen3Config(  # whose columns are blocks of 256
    **TINY | {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "tie_word_embeddings": False}
)
EIGHT_BILLION = Qwen3Config(
    vocab_size=151_936,
    hidden_size=4096,
    intermediate_size=12_288,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    tie_word_embeddings=False,
    dtype="bfloat16",
)
FOUR_BILLION = Qwen3Config(
    vocab_size=151_936,
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    tie_word_embeddings=True,
    dtype="bfloat16",
)
FOURTEEN_BILLION = Qwen3Config(
    vocab_size=151_936,
    hidden_size=5120,
    intermediate_size=17_408,
    num_hidden_layers=40,
    num_attention_heads=40,
    num_key_value_heads=8,
    head_dim=128,
    tie_word_embeddings=False,
    dtype="bfloat16",
)
GRANITE = {  # of three billion
    "vocab_size": 100_352,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "shared_intermediate_size": 8192,
    "num_hidden_layers": 40,
    "layer_types": (["linear_attention"] * 9 + ["full_attention"]) * 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "mamba_n_heads": 64,
    "mamba_d_head": 64,
    "mamba_d_state": 128,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "position_embedding_type": "nope",
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
TINY_MAMBA = GRANITE | {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 128,
    "shared_intermediate_size": 128,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
}
TINY_STATES = {
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
TWENTY_SEVEN_BILLION = {
    "vocab_size": 248_320,
    "hidden_size": 5120,
    "intermediate_size": 17_408,
    "num_hidden_layers": 64,
    "num_attention_heads": 24,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 48,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
HYBRID = Qwen3_5TextConfig(**TWENTY_SEVEN_BILLION | {"num_hidden_layers": 12})
MIXTURE = Qwen3MoeConfig(  # with a vocabulary that leaves most of a step to the layers
    vocab_size=32_768,
    hidden_size=2048,
    moe_intermediate_size=768,
    num_hidden_layers=6,
    num_attention_heads=32,
    num_key_value_heads=4,
    head_dim=128,
    num_experts=128,
    num_experts_per_tok=8,
    norm_topk_prob=True,
    tie_word_embeddings=True,
    dtype="bfloat16",
)


class Model(NamedTuple):
    """What a part measures."""

    shape: PretrainedConfig
    tiny: PretrainedConfig  # in its place on a CPU
    write: Callable[[Path, PretrainedConfig], Path] = write_hollow  # makes its files; returns what to read


MODELS = {
    "experts": Model(MIXTURE, Qwen3MoeConfig(**TINY | TINY_EXPERTS)),
    "gguf": Model(EIGHT_BILLION, TINY_BLOCKS, write_gguf),
    "fp8": Model(EIGHT_BILLION, TINY_BLOCKS, write_fp8),
    "mamba": Model(GraniteMoeHybridConfig(**GRANITE), GraniteMoeHybridConfig(**TINY_MAMBA)),
    "hybrid": Model(HYBRID, Qwen3_5TextConfig(**TINY | TINY_STATES)),
    "large": Model(EIGHT_BILLION, TINY_BLOCKS),
    "engine": Model(SHAPE, Qwen3Config(**TINY)),
    "4b": Model(FOUR_BILLION, TINY_BLOCKS),
    "14b": Model(FOURTEEN_BILLION, TINY_BLOCKS),
    "awq": Model(EIGHT_BILLION, TINY_BLOCKS, write_awq),
    "nvfp4": Model(EIGHT_BILLION, TINY_BLOCKS, write_nvfp4),
}
