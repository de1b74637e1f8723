"""Qwen3: a Llama whose queries and keys are normalised per head, and whose upper layers may have a window."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.checkpoints import config
from workers.checkpoints.config import ModelConfig
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family

DEFAULTS = {"num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096, "max_window_layers": 28}


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """`mlp_bias` means nothing here: a Qwen3 has none, whatever the file says."""
    file = config.read(path, DEFAULTS | dict(given))
    first = DEFAULTS["max_window_layers"] if file.max_window_layers is None else file.max_window_layers
    windows = config.windows_of(path, file, first=first)
    return config.model_config(path, file, windows, qk_norm=True)


QWEN3 = Family("qwen3", ("Qwen3ForCausalLM",), read, dense_tensors)
