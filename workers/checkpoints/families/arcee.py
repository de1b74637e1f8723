"""Arcee's AFM: a Llama whose MLP has no gates, and squares what is above 0."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.checkpoints import config
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family
from workers.checkpoints.model_config import ModelConfig

DEFAULTS = {"rms_norm_eps": 1e-5, "hidden_act": "relu2"}


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """No layer has a window."""
    file = config.read(path, DEFAULTS | dict(given))
    windows: list[int | None] = [None] * file.num_hidden_layers
    return config.model_config(path, file, windows, mlp_bias=file.mlp_bias, gates=False)


ARCEE = Family("arcee", ("ArceeForCausalLM",), read, dense_tensors)
