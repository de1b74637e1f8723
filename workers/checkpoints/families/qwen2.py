"""Qwen2 and Qwen2.5: a Llama with biases on queries, keys and values, and perhaps windows further up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.checkpoints import config
from workers.checkpoints.families import qwen3
from workers.checkpoints.families.ernie4_5 import AHEAD
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family
from workers.checkpoints.model_config import ModelConfig

DEFAULTS = {"num_key_value_heads": 32, "sliding_window": 4096}


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """The biases are there, whatever the file says."""
    file = config.read(path, DEFAULTS | dict(given))
    windows = qwen3.windows_of(path, file)
    return config.model_config(path, file, windows, qkv_bias=True, output_bias=False)


# MiMo 7B of Xiaomi is one, but for layers that guess further ahead.
QWEN2 = Family(
    "qwen2",
    ("Qwen2ForCausalLM", "MiMoForCausalLM"),
    read,
    dense_tensors,
    beside={"model.mtp_layers.": AHEAD},
)
