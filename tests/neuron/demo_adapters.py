"""Random adapters of the demo model."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

from neuron.catalogue.catalogue import DEMO_FOLDER
from workers.checkpoints.reading import read_card


def write_adapter(adapter, seed):
    adapter.mkdir()
    rows, columns = read_card(DEMO_FOLDER).tensors["model.layers.0.mlp.down_proj.weight"].shape
    generator = torch.Generator().manual_seed(seed)
    name = "base_model.model.model.layers.0.mlp.down_proj"
    weights = {
        f"{name}.lora_A.weight": torch.randn(2, columns, generator=generator),
        f"{name}.lora_B.weight": torch.randn(rows, 2, generator=generator),
    }
    save_file(weights, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 2}))
