"""HyperCLOVA X (https://arxiv.org/abs/2506.22403): a Granite with norms behind attention and MLP as well, and
whose logits are multiplied where those of a Granite are divided."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.checkpoints import config
from workers.checkpoints.families.granite import GraniteFile, Positive, scales_of
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family
from workers.checkpoints.model_config import ModelConfig, Norms

NORMS = Norms("input_layernorm", "post_norm1", "post_attention_layernorm", "post_norm2")


class HyperClovaXFile(GraniteFile, kw_only=True):
    """The keys of its `config.json`."""

    attention_multiplier: Positive | None = None  # None: as everywhere
    use_post_norm: bool = True


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """No layer has a window."""
    file = config.read(path, given, HyperClovaXFile)
    scales = scales_of(file) | {"logit_scale": file.logits_scaling}
    return config.model_config(
        path,
        file,
        [None] * file.num_hidden_layers,
        mlp_bias=file.mlp_bias,
        norms=NORMS if file.use_post_norm else Norms(),
        **scales,
    )


HYPERCLOVAX = Family("hyperclovax", ("HyperCLOVAXForCausalLM",), read, dense_tensors)
