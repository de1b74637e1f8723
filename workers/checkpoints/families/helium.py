"""Helium of Kyutai: a Llama whose neighbouring dimensions turn together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.checkpoints import config
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family
from workers.checkpoints.model_config import ModelConfig

DEFAULTS = {"num_key_value_heads": 20, "head_dim": 128, "rms_norm_eps": 1e-8, "rope_theta": 100_000.0}


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """No layer has a window; what attention gives is projected without a bias."""
    file = config.read(path, DEFAULTS | dict(given))
    windows: list[int | None] = [None] * file.num_hidden_layers
    return config.model_config(
        path, file, windows, interleaved=True, output_bias=False, mlp_bias=file.mlp_bias
    )


HELIUM = Family("helium", ("HeliumForCausalLM",), read, dense_tensors)
