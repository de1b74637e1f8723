"""EuroBERT (https://arxiv.org/abs/2503.05500): a Llama whose tokens see those behind them, too. It embeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from workers.checkpoints import config
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family
from workers.checkpoints.model_config import ModelConfig

DEFAULTS = {"rms_norm_eps": 1e-5}


class EuroBertFile(ConfigFile, kw_only=True):
    """The keys of EuroBERT's `config.json`."""

    is_causal: Literal[False] | None = None
    is_decoder: Literal[False] | None = None
    # read by whoever makes scores
    sentence_transformers: Any = None
    sbert_ce_default_activation_function: Any = None


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """No layer has a window."""
    file = config.read(path, DEFAULTS | dict(given), EuroBertFile)
    windows: list[int | None] = [None] * file.num_hidden_layers
    return config.model_config(path, file, windows, mlp_bias=file.mlp_bias, bidirectional=True)


EUROBERT = Family("eurobert", ("EuroBertModel", "EuroBertForMaskedLM"), read, dense_tensors)
