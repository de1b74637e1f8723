"""Phi-3, Phi-3.5 and Phi-4, dense: a Llama whose projections of the same input are stored as one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workers.checkpoints import config
from workers.checkpoints.config import ModelConfig
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family, TensorSpec

DEFAULTS = {"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096}
PARTS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")  # of the fused tensors


def tensors(model: ModelConfig) -> Iterator[TensorSpec]:
    """As of a Llama, but for the fused ones."""
    for spec in dense_tensors(model):
        if not any(part in spec.name for part in PARTS):
            yield spec
    hidden, rows = model.hidden_size, (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    for layer in range(model.num_layers):
        prefix = f"model.layers.{layer}."
        yield TensorSpec(f"{prefix}self_attn.qkv_proj.weight", (rows, hidden), "qkv_rows")
        yield TensorSpec(f"{prefix}mlp.gate_up_proj.weight", (2 * model.intermediate_size, hidden), "rows")


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Every layer has the same window, or none; there are no biases, whatever the file says."""
    file = config.read(path, DEFAULTS | dict(given) | {"attention_bias": False})
    windows = [file.sliding_window] * file.num_hidden_layers
    return config.model_config(path, file, windows, partial=True, fused=True)


PHI3 = Family("phi3", ("Phi3ForCausalLM",), read, tensors)
