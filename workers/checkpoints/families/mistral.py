"""Mistral and Ministral: a Llama whose every layer has the same window, or none, or as `layer_types` says.

In Ministral 3 queries grow with the context.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from workers.checkpoints import config, rope
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import ModelConfig, Temperature

TYPE_3 = "ministral3"
ROPE_3 = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16_384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}
DEFAULTS_3 = {"num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5}
DEFAULTS = {"num_key_value_heads": 8, "sliding_window": 4096}  # a window of null is none


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """A Mistral has no biases, whatever the file says."""
    file = config.read(path, DEFAULTS | dict(given) | {"attention_bias": False})
    if file.layer_types is not None:
        windows = config.windows_of(path, file, first=0)
    else:
        windows = [file.sliding_window] * file.num_hidden_layers
    return config.model_config(path, file, windows)


def read_3(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """How queries grow stands among the rotary settings."""
    given = {**DEFAULTS_3, "sliding_window": None} | dict(given)
    key = next((key for key in rope.KEYS if given.get(key)), rope.KEYS[0])
    turning = given.get(key) or ROPE_3
    if not isinstance(turning, dict):
        refuse(path, f"{key} is no object")
    turning = given[key] = dict(turning)
    turning.pop("max_position_embeddings", None)  # once more
    weight = turning.pop("llama_4_scaling_beta", None)
    model = read(path, given)
    if weight is None:
        return model
    every = turning.get("original_max_position_embeddings")
    if not isinstance(weight, int | float) or not isinstance(every, int) or every < 1:
        refuse(path, f"{key}: llama_4_scaling_beta {weight!r} is no number, or beside no context")
    return msgspec.structs.replace(model, temperature=Temperature(every, weight))


def read_within(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Of a Mistral that sees, or a Ministral."""
    return (read_3 if given.get("model_type") == TYPE_3 else read)(path, given)


SEEING = "Mistral3ForConditionalGeneration"

MISTRAL = Family(
    "mistral",
    ("MistralForCausalLM", "MinistralForCausalLM"),
    read_within,
    dense_tensors,
    within={SEEING: ("mistral", TYPE_3)},
    sees={SEEING: "pixtral"},
)
MINISTRAL3 = Family("ministral3", ("Ministral3ForCausalLM",), read_3, dense_tensors)
