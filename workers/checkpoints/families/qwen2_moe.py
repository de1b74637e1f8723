"""Qwen1.5 and Qwen2 with experts (57B-A14B): beside these an MLP for every token, which has a gate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from workers.checkpoints import config
from workers.checkpoints.families import qwen3_moe
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.families.qwen3_moe import Qwen3MoeFile
from workers.checkpoints.family import Family
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.rope import Size

DEFAULTS = {
    "num_key_value_heads": 16,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1408,
}


class Qwen2MoeFile(Qwen3MoeFile, kw_only=True):
    """The keys of such a `config.json`."""

    shared_expert_intermediate_size: Size = 5632
    qkv_bias: bool = True


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Where the file asks for windows, every second of the lower layers has one."""
    given = DEFAULTS | dict(given)
    if not given.get("use_sliding_window"):
        given["sliding_window"] = None  # where transformers writes 0
    if "num_local_experts" in given:
        given["num_experts"] = given["num_local_experts"]
    file = config.read(path, given, Qwen2MoeFile)
    if file.layer_types is not None:
        windows = config.windows_of(path, file, first=0)
    else:
        lower = file.max_window_layers if file.use_sliding_window else 0
        windows = [
            file.sliding_window if number < lower and number % 2 == 0 else None
            for number in range(file.num_hidden_layers)
        ]
    experts = qwen3_moe.experts_of(path, file)
    if experts is not None:
        experts = msgspec.structs.replace(
            experts,
            shared_size=file.shared_expert_intermediate_size,
            shared_name="shared_expert",
            shared_gate=True,
        )
    model = config.model_config(path, file, windows, qkv_bias=file.qkv_bias, output_bias=False)
    return msgspec.structs.replace(model, experts=experts)


QWEN2_MOE = Family("qwen2_moe", ("Qwen2MoeForCausalLM",), read, dense_tensors)
