"""Seed-OSS: a Llama with biases of queries, keys and values, where attention may have another behind it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.checkpoints import config
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family
from workers.checkpoints.model_config import ModelConfig

DEFAULTS = {"num_key_value_heads": 8, "head_dim": 128, "attention_bias": True}


class SeedOssFile(ConfigFile, kw_only=True):
    """The keys of Seed-OSS's `config.json`."""

    attention_out_bias: bool = False
    residual_dropout: float | None = None  # of training


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """No layer has a window."""
    file = config.read(path, DEFAULTS | dict(given), SeedOssFile)
    windows: list[int | None] = [None] * file.num_hidden_layers
    return config.model_config(
        path, file, windows, output_bias=file.attention_out_bias, mlp_bias=file.mlp_bias
    )


SEED_OSS = Family("seed_oss", ("SeedOssForCausalLM",), read, dense_tensors)
