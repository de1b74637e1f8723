"""Qwen3 with experts (30B-A3B, 235B-A22B): a Qwen3 whose layers have many MLPs in place of one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.checkpoints import config
from workers.checkpoints.config import ConfigFile, ModelConfig
from workers.checkpoints.experts import Experts
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family
from workers.checkpoints.files import refuse
from workers.checkpoints.rope import Size

DEFAULTS = {"num_key_value_heads": 4, "sliding_window": 4096}


class Qwen3MoeFile(ConfigFile, kw_only=True):
    """The keys of such a `config.json`. Since transformers 5 the number of experts has another name."""

    num_experts: Size | None = None
    num_local_experts: Size | None = None
    num_experts_per_tok: Size = 8
    moe_intermediate_size: Size = 768
    norm_topk_prob: bool = False
    decoder_sparse_step: Size = 1
    mlp_only_layers: list[int] | None = None
    router_aux_loss_coef: float | None = None  # of training, as the next one
    router_jitter_noise: float | None = None


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Windows, where the file asks for some, are those of all layers."""
    file = config.read(path, DEFAULTS | dict(given), Qwen3MoeFile)
    windows = [file.sliding_window if file.use_sliding_window else None] * file.num_hidden_layers
    return config.model_config(path, file, windows, qk_norm="heads", experts=experts_of(path, file))


def experts_of(path: Path, file: Qwen3MoeFile) -> Experts | None:
    """The experts that a file asks for; None where no layer has any."""
    count, layers = file.num_experts or file.num_local_experts or 128, file.num_hidden_layers
    if file.num_experts_per_tok > count:
        refuse(path, f"num_experts_per_tok {file.num_experts_per_tok} is above num_experts, which is {count}")
    plain = set(file.mlp_only_layers or ())
    experts = Experts(
        count=count,
        chosen=file.num_experts_per_tok,
        intermediate_size=file.moe_intermediate_size,
        normalised=file.norm_topk_prob,
        layers=tuple(n for n in range(layers) if n not in plain and (n + 1) % file.decoder_sparse_step == 0),
    )
    return experts if experts.layers else None


QWEN3_MOE = Family("qwen3_moe", ("Qwen3MoeForCausalLM",), read, dense_tensors)
