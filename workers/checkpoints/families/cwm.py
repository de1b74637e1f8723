"""Meta's Code World Model (https://arxiv.org/abs/2510.02387): a Llama of which three in four layers have a
window."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.checkpoints import config, rope
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import ModelConfig

DEFAULTS = {"head_dim": 128, "rms_norm_eps": 1e-5, "sliding_window": 8192}
PATTERN = 4  # of so many layers the first one sees all tokens
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Attention has no biases, whatever the file says."""
    given = DEFAULTS | dict(given) | {"attention_bias": False}
    theta = given.get("rope_theta")
    if all(given.get(key) is None for key in rope.KEYS):
        if theta not in (None, ROPE["rope_theta"]):  # transformers leaves it out
            refuse(path, f"rope_theta {theta} alone is not supported: say it in rope_parameters")
        given["rope_parameters"] = ROPE
    elif theta is None:
        given["rope_theta"] = ROPE["rope_theta"]
    file = config.read(path, given)
    if file.layer_types is None:
        windows = [file.sliding_window if n % PATTERN else None for n in range(file.num_hidden_layers)]
    else:
        windows = config.windows_of(path, file, first=0)
    return config.model_config(path, file, windows, mlp_bias=file.mlp_bias)


CWM = Family("cwm", ("CwmForCausalLM",), read, dense_tensors)
