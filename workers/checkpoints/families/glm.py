"""GLM-4, dense: half of a head turns, in neighbouring pairs; of 2025, with norms on both sides.

`GlmForCausalLM` is GLM-4-9B in the format of Hugging Face, `Glm4ForCausalLM` are GLM-4-0414 and GLM-Z1.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from workers.checkpoints import config
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family
from workers.checkpoints.model_config import ModelConfig, Norms

DEFAULTS = {
    "num_key_value_heads": 2,
    "head_dim": 128,
    "rms_norm_eps": 1.5625e-07,
    "attention_bias": True,
    "partial_rotary_factor": 0.5,
}
NORMS_4 = Norms(
    "input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"
)


def read(path: Path, given: Mapping[str, Any], *, norms: Norms) -> ModelConfig:
    """Biases are those of queries, keys and values; no layer has a window."""
    file = config.read(path, DEFAULTS | dict(given))
    return config.model_config(
        path,
        file,
        [None] * file.num_hidden_layers,
        partial=True,
        interleaved=True,
        fused_gate_up=True,
        output_bias=False,
        norms=norms,
    )


GLM = Family("glm", ("GlmForCausalLM",), partial(read, norms=Norms()), dense_tensors)
GLM4 = Family("glm4", ("Glm4ForCausalLM",), partial(read, norms=NORMS_4), dense_tensors)
