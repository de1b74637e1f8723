"""Random LoRA adapters as PEFT writes them, and the same merged into a model that then is the oracle."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from queue import Queue
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from ipc.worker_messages import AdapterReport, DropAdapter, LoadAdapter, Submit
from tests.workers.harness import PATIENCE
from workers.execution.model_runner import ModelRunner

SPLIT = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapter(
    folder: Path,
    base: PreTrainedModel,
    modules: tuple[str, ...] = SPLIT,
    rank: int = 4,
    alpha: float = 8.0,
    seed: int = 0,
    **config: Any,
) -> PreTrainedModel:
    """Write an adapter for those `modules` of `base` into `folder`; a copy of `base` with it comes back."""
    generator = torch.Generator().manual_seed(seed)
    merged, tensors = copy.deepcopy(base), {}
    for name, layer in merged.named_modules():
        if name.rpartition(".")[2] not in modules or not isinstance(layer, torch.nn.Linear):
            continue
        rows, columns = layer.weight.shape
        a = torch.randn(rank, columns, generator=generator) * 0.2
        b = torch.randn(rows, rank, generator=generator) * 0.2
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        layer.weight.data += scale * (b @ a)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    about = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(modules),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(about | config))
    return merged


def adapt(runner: ModelRunner, order: LoadAdapter | DropAdapter) -> AdapterReport:
    """Have `runner` follow an order, and wait for what it says then."""
    said: Queue[AdapterReport] = Queue()
    runner.adapt(order, said.put)
    return said.get(timeout=PATIENCE)


def read(runner: ModelRunner, *numbers: int) -> list[int]:
    """Have adapters read; their bytes."""
    reports = [adapt(runner, LoadAdapter(number)) for number in numbers]
    assert not any(report.message for report in reports), reports
    return [report.nbytes for report in reports]


def with_adapter(submit: Submit, adapter: int) -> Submit:
    return msgspec.structs.replace(submit, adapter=adapter)
