"""SmolLM3: a Llama of which every fourth layer has no positions (https://arxiv.org/abs/2501.18795)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from workers.checkpoints import config
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family
from workers.checkpoints.model_config import ModelConfig

DEFAULTS = {"num_key_value_heads": 4, "tie_word_embeddings": True, "rope_theta": 2_000_000.0}


class SmolLM3File(ConfigFile, kw_only=True):
    """The keys of SmolLM3's `config.json`."""

    no_rope_layers: list[int] | None = None  # of each layer: 1 where it has positions
    no_rope_layer_interval: Annotated[int, Meta(ge=1)] = 4


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Where there are windows and no list of them, the layers without positions have one."""
    file = config.read(path, DEFAULTS | dict(given), SmolLM3File)
    count = file.num_hidden_layers
    unrotated = config.unrotated_layers(path, file.no_rope_layers, file.no_rope_layer_interval, count)
    if file.layer_types is not None:
        windows = config.windows_of(path, file, first=0)
    elif file.use_sliding_window:
        windows = [file.sliding_window if number in unrotated else None for number in range(count)]
    else:
        windows = [None] * count
    return config.model_config(path, file, windows, mlp_bias=file.mlp_bias, unrotated=unrotated)


SMOLLM3 = Family("smollm3", ("SmolLM3ForCausalLM",), read, dense_tensors)
