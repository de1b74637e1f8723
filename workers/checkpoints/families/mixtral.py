"""Mixtral (https://arxiv.org/abs/2401.04088): a Mistral with experts, which have names of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.checkpoints import config
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.experts import Experts
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family, renaming
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.rope import Size

DEFAULTS = {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1_000_000.0}
usual_name = renaming(
    {
        ".block_sparse_moe.": ".mlp.",
        ".w1.": ".gate_proj.",
        ".w2.": ".down_proj.",
        ".w3.": ".up_proj.",
    }
)


class MixtralFile(ConfigFile, kw_only=True):
    """The keys of Mixtral's `config.json`."""

    num_local_experts: Size = 8
    num_experts_per_tok: Size = 2
    router_aux_loss_coef: float | None = None  # of training, as the next one
    router_jitter_noise: float | None = None


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """A window is that of all layers; there are no biases, whatever the file says."""
    file = config.read(path, DEFAULTS | dict(given) | {"attention_bias": False}, MixtralFile)
    count, chosen, layers = file.num_local_experts, file.num_experts_per_tok, file.num_hidden_layers
    config.refuse_above(path, file, "num_experts_per_tok", "num_local_experts")
    experts = Experts(
        count=count,
        chosen=chosen,
        intermediate_size=file.intermediate_size,
        layers=tuple(range(layers)),
        normalised=True,
    )
    return config.model_config(path, file, [file.sliding_window] * layers, experts=experts)


MIXTRAL = Family("mixtral", ("MixtralForCausalLM",), read, dense_tensors, usual_name=usual_name)
