"""Jais 2: a Llama with layer norms and biases, whose MLP has no gates, and squares what is above 0."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from workers.checkpoints import config
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family
from workers.checkpoints.model_config import ModelConfig

DEFAULTS = {"hidden_act": "relu2", "attention_bias": True, "mlp_bias": True}


class Jais2File(ConfigFile, kw_only=True):
    """The keys of Jais' `config.json`."""

    layer_norm_eps: Annotated[float, Meta(ge=0)] = 1e-5


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """No layer has a window."""
    file = config.read(path, DEFAULTS | dict(given), Jais2File)
    file = msgspec.structs.replace(file, rms_norm_eps=file.layer_norm_eps)
    windows: list[int | None] = [None] * file.num_hidden_layers
    return config.model_config(path, file, windows, mlp_bias=file.mlp_bias, layer_norm=True, gates=False)


JAIS2 = Family("jais2", ("Jais2ForCausalLM",), read, dense_tensors)
