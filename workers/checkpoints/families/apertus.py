"""Apertus (https://arxiv.org/abs/2509.14233): norms of each head, and an MLP of xIELU without gates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from workers.checkpoints import config, rope
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family, TensorSpec
from workers.checkpoints.model_config import ModelConfig, Norms
from workers.checkpoints.safetensors import Tensor

THETA = 12_000_000.0
DEFAULTS = {"rms_norm_eps": 1e-5, "hidden_act": "xielu", "rope_theta": THETA}
ROPE = {  # where the file says nothing
    "rope_type": "llama3",
    "rope_theta": THETA,
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
NORMS = Norms("attention_layernorm", None, "feedforward_layernorm", None)
LEARNED = ("alpha_p", "alpha_n", "beta", "eps")  # of a layer's activation


class ApertusFile(ConfigFile, kw_only=True):
    """The keys of Apertus's `config.json`."""

    hidden_act: Literal["xielu"] = "xielu"
    mlp_bias: Literal[False] = False
    qk_norm: Literal[True] = True
    post_norm: Literal[False] = False


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """No layer has a window."""
    given = DEFAULTS | dict(given)
    if not any(given.get(key) for key in rope.KEYS):
        given["rope_parameters"] = ROPE
    file = config.read(path, given, ApertusFile)
    windows: list[int | None] = [None] * file.num_hidden_layers
    return config.model_config(
        path,
        msgspec.structs.replace(file, hidden_act="silu"),  # whose place the activation takes
        windows,
        norms=NORMS,
        qk_norm="heads",
        gates=False,
        activation="xielu",
    )


def tensors(model: ModelConfig) -> Iterator[TensorSpec]:
    """Those of every dense decoder, and what an activation learns."""
    yield from dense_tensors(model)
    for layer in range(model.num_layers):
        for name in LEARNED:
            yield TensorSpec(f"model.layers.{layer}.mlp.act_fn.{name}", (1,), "wide")


def rearranged(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With the numbers that have no dimension as vectors of one."""
    return {name: tensor if tensor.shape else replace(tensor, shape=(1,)) for name, tensor in stored.items()}


APERTUS = Family("apertus", ("ApertusForCausalLM",), read, tensors, rearrange=rearranged)
