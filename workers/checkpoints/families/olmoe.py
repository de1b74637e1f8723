"""OLMoE (https://arxiv.org/abs/2409.02060): experts; queries and keys are normalised over all heads. FlexOlmo
(https://arxiv.org/abs/2507.07024) is one with the norms of OLMo 2."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from workers.checkpoints import config
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.experts import Experts
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.families.olmo import NORMS
from workers.checkpoints.family import Family
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.rope import Size

DEFAULTS = {"rms_norm_eps": 1e-5}
DEFAULTS_FLEX = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 500_000.0,
    "num_experts": 7,
    "num_experts_per_tok": 5,
}


class OlmoeFile(ConfigFile, kw_only=True):
    """The keys of OLMoE's `config.json`."""

    num_experts: Size = 64
    num_experts_per_tok: Size = 8
    norm_topk_prob: bool = False
    clip_qkv: None = None  # would hold queries, keys and values between two numbers


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Every layer has experts, and none a window."""
    file = config.read(path, DEFAULTS | dict(given), OlmoeFile)
    count, chosen, layers = file.num_experts, file.num_experts_per_tok, file.num_hidden_layers
    config.refuse_above(path, file, "num_experts_per_tok", "num_experts")
    experts = Experts(
        count=count,
        chosen=chosen,
        intermediate_size=file.intermediate_size,
        layers=tuple(range(layers)),
        normalised=file.norm_topk_prob,
    )
    return config.model_config(path, file, [None] * layers, qk_norm="whole", experts=experts)


def read_flex(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Norms stand behind attention and experts."""
    return msgspec.structs.replace(read(path, DEFAULTS_FLEX | dict(given)), norms=NORMS)


OLMOE = Family("olmoe", ("OlmoeForCausalLM",), read, dense_tensors)
FLEX_OLMO = Family("flex_olmo", ("FlexOlmoForCausalLM",), read_flex, dense_tensors)
