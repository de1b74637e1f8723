"""Granite 3 and 4, dense: a Llama whose embeddings, scores, residuals and logits are multiplied."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from workers.checkpoints import config
from workers.checkpoints.config import ConfigFile, ModelConfig
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family

Positive = Annotated[float, Meta(gt=0)]


class GraniteFile(ConfigFile, kw_only=True):
    """The keys of Granite's `config.json`."""

    embedding_multiplier: Positive = 1.0
    attention_multiplier: Positive = 1.0  # of scores, in place of 1 / sqrt(head_dim)
    residual_multiplier: Positive = 1.0
    logits_scaling: Positive = 1.0  # that logits are divided by


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """No layer has a window."""
    file = config.read(path, given, GraniteFile)
    return config.model_config(
        path,
        file,
        [None] * file.num_hidden_layers,
        mlp_bias=file.mlp_bias,
        **scales_of(file),
    )


def scales_of(file: GraniteFile) -> dict[str, float]:
    """What is multiplied, as `ModelConfig` calls it."""
    return {
        "embedding_scale": file.embedding_multiplier,
        "attention_scale": file.attention_multiplier,
        "residual_scale": file.residual_multiplier,
        "logit_scale": 1 / file.logits_scaling,
    }


GRANITE = Family("granite", ("GraniteForCausalLM",), read, dense_tensors)
