"""Mistral and Ministral: a Llama whose every layer has the same window, or none, or as `layer_types` says.

In Ministral 3 and Mistral 4 queries grow with the context; Mistral 4 is made as DeepSeek is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from workers.checkpoints import config, rope
from workers.checkpoints.families import deepseek
from workers.checkpoints.families.deepseek import LatentFile
from workers.checkpoints.families.glm_moe import experts_of
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family, TensorSpec
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import ModelConfig, Temperature
from workers.checkpoints.stacked import unstacked_rows

TYPE_3, TYPE_4 = "ministral3", "mistral4"
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
ROPE_4 = ROPE_3 | {"rope_theta": 10_000.0, "factor": 128.0, "original_max_position_embeddings": 8192}
DEFAULTS_4 = {
    "kv_lora_rank": 256,
    "q_lora_rank": 1024,
    "qk_nope_head_dim": 64,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 0,
}
DEFAULTS_3 = {"num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5}
DEFAULTS = {"num_key_value_heads": 8, "sliding_window": 4096}  # a window of null is none


class Mistral4File(LatentFile, kw_only=True):
    """The keys of Mistral 4's `config.json`."""

    n_group: Literal[1] | None = 1
    topk_group: Literal[1] | None = 1
    scoring_func: Literal["softmax"] | None = None
    topk_method: None = None


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """A Mistral has no biases, whatever the file says."""
    file = config.read(path, DEFAULTS | dict(given) | {"attention_bias": False})
    if file.layer_types is not None:
        windows = config.windows_of(path, file, first=0)
    else:
        windows = [file.sliding_window] * file.num_hidden_layers
    return config.model_config(path, file, windows)


def read_3(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """No layer has a window, unless the file says so."""
    given, growth = _growing(path, {**DEFAULTS_3, "sliding_window": None} | dict(given), ROPE_3)
    return msgspec.structs.replace(read(path, given), temperature=growth)


def read_4(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Scores of experts are a softmax over all."""
    given, growth = _growing(path, DEFAULTS_4 | dict(given), ROPE_4)
    share = next(given[key].pop("partial_rotary_factor", None) for key in rope.KEYS if given.get(key))
    file = config.read(path, given, Mistral4File)
    turning, whole = file.qk_rope_head_dim, file.qk_rope_head_dim + file.qk_nope_head_dim
    if share is not None and share != turning / whole:
        refuse(path, f"partial_rotary_factor {share} is not supported: {turning} of {whole} dimensions turn")
    if (experts := experts_of(path, file)) is not None:
        experts = msgspec.structs.replace(experts, scoring="softmax", corrected=False)
    return msgspec.structs.replace(deepseek.latent_config(path, file, experts), temperature=growth)


def _growing(
    path: Path, given: dict[str, Any], usual: dict[str, Any]
) -> tuple[dict[str, Any], Temperature | None]:
    """How queries grow, which stands among the rotary settings; and all else."""
    key = next((key for key in rope.KEYS if given.get(key)), rope.KEYS[0])
    turning = given.get(key) or usual
    if not isinstance(turning, dict):
        refuse(path, f"{key} is no object")
    turning = given[key] = dict(turning)
    turning.pop("max_position_embeddings", None)  # once more
    weight = turning.pop("llama_4_scaling_beta", None)
    if weight is None:
        return given, None
    every = turning.get("original_max_position_embeddings")
    if not isinstance(weight, int | float) or not isinstance(every, int) or every < 1:
        refuse(path, f"{key}: llama_4_scaling_beta {weight!r} is no number, or beside no context")
    return given, Temperature(every, weight)


def tensors(model: ModelConfig) -> Iterator[TensorSpec]:
    """Those of Mistral 4 are DeepSeek's."""
    return (dense_tensors if model.latent is None else deepseek.tensors)(model)


def read_within(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Of a Mistral that sees, or a Ministral."""
    kind = given.get("model_type")
    return (read_3 if kind == TYPE_3 else read_4 if kind == TYPE_4 else read)(path, given)


SEEING = "Mistral3ForConditionalGeneration"

MISTRAL = Family(
    "mistral",
    ("MistralForCausalLM", "MinistralForCausalLM"),
    read_within,
    tensors,
    within={SEEING: ("mistral", TYPE_3, TYPE_4)},
    rearrange=unstacked_rows,
    sees={SEEING: "pixtral"},
)
MINISTRAL3 = Family("ministral3", ("Ministral3ForCausalLM",), read_3, dense_tensors)
MISTRAL4 = Family("mistral4", ("Mistral4ForCausalLM",), read_4, tensors, rearrange=unstacked_rows)
