"""Tensors as published checkpoints have them, where transformers writes others.

Experts of gpt-oss are in MXFP4, two tensors a projection for all of them. Each of OLMo Hybrid's convolutions
is its own, of as many channels as it has: transformers writes all three as three equal parts.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
BIAS, SMALLEST = 127, 124  # of an exponent, and the smallest of four that are drawn from


@torch.no_grad()
def mxfp4_experts(model: PreTrainedModel) -> dict[str, Tensor]:
    """Give a model's experts random weights that MXFP4 can hold; returns what would be stored of them."""
    stored = {}
    for name, parameter in model.named_parameters():
        if not name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            continue
        experts, columns, rows = parameter.shape  # as transformers has it; stored the other way round
        numbers = torch.randint(16, (experts, rows, columns // 32, 32))
        scales = torch.randint(SMALLEST, SMALLEST + 4, (experts, rows, columns // 32))
        values = E2M1[numbers] * torch.exp2(scales - BIAS).unsqueeze(-1)
        parameter.copy_(values.flatten(2).transpose(1, 2))
        stored[f"{name}_blocks"] = (numbers[..., 0::2] | numbers[..., 1::2] << 4).to(torch.uint8)
        stored[f"{name}_scales"] = scales.to(torch.uint8)
    return stored


def store(folder: Path, experts: dict[str, Tensor]) -> None:
    """Put them in the place of those that a checkpoint has."""
    file, path = folder / "model.safetensors", folder / "config.json"
    replaced = {name.removesuffix("_blocks").removesuffix("_scales") for name in experts}
    plain = {name: tensor for name, tensor in load_file(file).items() if name not in replaced}
    save_file(plain | experts, file)
    skipped = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    method = {"quant_method": "mxfp4", "modules_to_not_convert": skipped}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": method}))


def store_convolutions_apart(folder: Path, config: PreTrainedConfig) -> None:
    """Put those of queries, keys and values in the place of equal parts of all three."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    keys = config.linear_num_key_heads * config.linear_key_head_dim
    values = config.linear_num_value_heads * config.linear_value_head_dim
    for name in [name for name in tensors if name.endswith(".q_conv1d.weight")]:
        names = [name.replace(".q_conv1d", f".{letter}_conv1d") for letter in "qkv"]
        together = torch.cat([tensors[each] for each in names])
        tensors |= zip(names, map(Tensor.contiguous, together.split([keys, keys, values])), strict=True)
    save_file(tensors, file)
