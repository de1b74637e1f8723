"""Qwen3 with experts (30B-A3B, 235B-A22B): a Qwen3 whose layers have many MLPs in place of one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from workers.checkpoints import config, rope
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.experts import Experts
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.families.qwen3 import seeing
from workers.checkpoints.family import Family
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.rope import Size
from workers.checkpoints.safetensors import Tensor
from workers.checkpoints.stacked import unstacked, unstacked_rows

VL, VL_TEXT = "Qwen3VLMoeForConditionalGeneration", "qwen3_vl_moe_text"
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
    use_qk_norm: Literal[True] = True  # said of Qwen3-Coder; all have them
    router_aux_loss_coef: float | None = None  # of training, as the next one
    router_jitter_noise: float | None = None


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Windows, where the file asks for some, are those of all layers."""
    given = DEFAULTS | dict(given)
    if given.get("model_type") == VL_TEXT:
        given["norm_topk_prob"] = True  # whatever the file says
    sections = rope.sections(path, given)
    file = config.read(path, given, Qwen3MoeFile)
    windows = [file.sliding_window if file.use_sliding_window else None] * file.num_hidden_layers
    model = config.model_config(path, file, windows, qk_norm="heads", experts=experts_of(path, file))
    return seeing(path, model, sections)


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


def rearrange(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Experts of a layer that stand in one tensor, as Qwen3-VL has them: its rows are inputs in the published
    files, and outputs in those that transformers writes."""
    stacks = [tensor for name, tensor in tensors.items() if name.endswith(".experts.gate_up_proj")]
    routers = [tensor for name, tensor in tensors.items() if name.endswith(".mlp.gate.weight")]
    rows_are_inputs = stacks and routers and stacks[0].shape[1:2] == routers[0].shape[1:]
    return unstacked(tensors) if rows_are_inputs else unstacked_rows(tensors)


QWEN3_MOE = Family(
    "qwen3_moe",
    ("Qwen3MoeForCausalLM",),
    read,
    dense_tensors,
    within={VL: (VL_TEXT,)},
    sees={VL: "vision"},
    rearrange=rearrange,
)
