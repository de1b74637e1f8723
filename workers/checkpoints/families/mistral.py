"""Mistral and Ministral: a Llama whose every layer has the same window, or none, or as `layer_types` says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.checkpoints import config
from workers.checkpoints.config import ModelConfig
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family

DEFAULTS = {"num_key_value_heads": 8, "sliding_window": 4096}  # a window of null is none


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """A Mistral has no biases, whatever the file says."""
    file = config.read(path, DEFAULTS | dict(given) | {"attention_bias": False})
    if file.layer_types is not None:
        windows = config.windows_of(path, file, first=0)
    else:
        windows = [file.sliding_window] * file.num_hidden_layers
    return config.model_config(path, file, windows)


MISTRAL = Family(
    "mistral",
    ("MistralForCausalLM", "MinistralForCausalLM"),
    read,
    dense_tensors,
    within={"Mistral3ForConditionalGeneration": "mistral"},
)
