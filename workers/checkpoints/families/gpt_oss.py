"""gpt-oss (https://arxiv.org/abs/2508.10925): each head has a sink beside the tokens that it sees, every
second layer a window, experts a clamped gate. What all experts have of a kind is one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from workers.checkpoints import config
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.experts import Clamp, Experts
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.rope import Size
from workers.checkpoints.stacked import unstacked

DEFAULTS = {
    "num_key_value_heads": 8,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "attention_bias": True,
    "sliding_window": 128,
    "rope_theta": 150_000.0,
}
ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


class GptOssFile(ConfigFile, kw_only=True):
    """The keys of gpt-oss's `config.json`."""

    num_local_experts: Size = 128
    num_experts_per_tok: Size = 4
    experts_per_token: Size | None = None  # the same
    swiglu_alpha: float = 1.702
    swiglu_limit: Annotated[float, Meta(gt=0)] = 7.0
    router_aux_loss_coef: float | None = None  # of training


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Windows come first, and by turns, unless `layer_types` has them elsewhere."""
    given = DEFAULTS | dict(given)
    if not given.get("rope_parameters") and not given.get("rope_scaling"):
        given["rope_scaling"] = ROPE
    file = config.read(path, given, GptOssFile)
    count, chosen, layers = file.num_local_experts, file.num_experts_per_tok, file.num_hidden_layers
    config.refuse_above(path, file, "num_experts_per_tok", "num_local_experts")
    if file.layer_types is not None:
        windows = config.windows_of(path, file, first=0)
    else:
        windows = [None if number % 2 else file.sliding_window for number in range(layers)]
    experts = Experts(
        count=count,
        chosen=chosen,
        intermediate_size=file.intermediate_size,
        layers=tuple(range(layers)),
        normalised=True,  # a softmax over those that are chosen
        router="router",
        biased=True,
        interleaved=True,
        clamp=Clamp(file.swiglu_alpha, file.swiglu_limit),
    )
    return config.model_config(path, file, windows, sinks=True, experts=experts)


GPT_OSS = Family("gpt_oss", ("GptOssForCausalLM",), read, dense_tensors, rearrange=unstacked)
