"""Phi-3, Phi-3.5 and Phi-4, dense: a Llama whose projections of the same input are stored as one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.checkpoints import config
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family
from workers.checkpoints.model_config import ModelConfig

DEFAULTS = {"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096}


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Every layer has the same window, or none; there are no biases, whatever the file says."""
    file = config.read(path, DEFAULTS | dict(given) | {"attention_bias": False})
    windows = [file.sliding_window] * file.num_hidden_layers
    return config.model_config(path, file, windows, partial=True, fused_qkv=True, fused_gate_up=True)


PHI3 = Family("phi3", ("Phi3ForCausalLM",), read, dense_tensors)
