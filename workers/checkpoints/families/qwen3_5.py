"""Qwen3.5 and 3.6, dense and with experts: a Qwen3-Next whose projections are stored one by one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.checkpoints import config, rope
from workers.checkpoints.families.qwen3 import seeing
from workers.checkpoints.families.qwen3_next import (
    MTP,
    SHARED_DEFAULTS,
    HybridFile,
    experts_of,
    hybrid,
    mtp,
    rearrange,
    tensors,
)
from workers.checkpoints.family import Family
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import ModelConfig

DEFAULTS = SHARED_DEFAULTS | {
    "vocab_size": 248_320,
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_hidden_layers": 32,
    "num_key_value_heads": 4,
}
MOE_DEFAULTS = SHARED_DEFAULTS | {
    "vocab_size": 248_320,
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 512,
    "intermediate_size": 512,  # of no layer: all have experts
}
ALWAYS = {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": None}


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """One MLP a layer."""
    given = DEFAULTS | dict(given)
    sections = rope.sections(path, given)
    file = config.read(path, given, HybridFile)
    if file.num_experts or file.num_local_experts:
        refuse(path, "num_experts is not understood here: a Qwen3_5MoeForCausalLM has experts")
    return seeing(path, hybrid(path, file, experts=None, grouped=False), sections)


def read_moe(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Experts in every layer."""
    given = MOE_DEFAULTS | dict(given) | ALWAYS
    sections = rope.sections(path, given)
    file = config.read(path, given, HybridFile)
    return seeing(path, hybrid(path, file, experts=experts_of(path, file), grouped=False), sections)


SEEING = "Qwen3_5ForConditionalGeneration"
SEEING_MOE = "Qwen3_5MoeForConditionalGeneration"

QWEN3_5 = Family(
    "qwen3_5",
    ("Qwen3_5ForCausalLM",),
    read,
    tensors,
    within={SEEING: ("qwen3_5_text",)},
    sees={SEEING: "vision"},
    rearrange=rearrange,
    beside=MTP,
    mtp=mtp,
)
QWEN3_5_MOE = Family(
    "qwen3_5_moe",
    ("Qwen3_5MoeForCausalLM",),
    read_moe,
    tensors,
    within={SEEING_MOE: ("qwen3_5_moe_text",)},
    sees={SEEING_MOE: "vision"},
    rearrange=rearrange,
    beside=MTP,
    mtp=mtp,
)
