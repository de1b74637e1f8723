"""EXAONE 4 (https://arxiv.org/abs/2507.11407): norms only behind attention and MLP, and of every head.

Where some layers have windows, the others have no positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from workers.checkpoints import config
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.families.olmo import NORMS
from workers.checkpoints.family import Family
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import ModelConfig

DEFAULTS = {"rms_norm_eps": 1e-5, "sliding_window": 4096}
PATTERN = 4  # every fourth layer sees all tokens


class Exaone4File(ConfigFile, kw_only=True):
    """The keys of EXAONE's `config.json`; what `layer_types` says goes before the pattern."""

    sliding_window_pattern: Annotated[int, Meta(ge=0)] | str | None = PATTERN


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """There are no biases, whatever the file says."""
    file = config.read(path, DEFAULTS | dict(given) | {"attention_bias": False}, Exaone4File)
    count, every = file.num_hidden_layers, file.sliding_window_pattern
    if file.sliding_window is None:
        windows, unrotated = [None] * count, ()
        if set(file.layer_types or ()) - {"full_attention"}:
            refuse(path, "sliding_window is missing, and layer_types says that some layers have one")
    else:
        if file.layer_types is not None:
            windows = config.windows_of(path, file, first=0)
        elif isinstance(every, int) and every:
            windows = [file.sliding_window if (number + 1) % every else None for number in range(count)]
        else:
            refuse(path, f"sliding_window_pattern {every!r} is not supported without layer_types")
        unrotated = tuple(number for number in range(count) if windows[number] is None)
    return config.model_config(path, file, windows, norms=NORMS, qk_norm="heads", unrotated=unrotated)


EXAONE4 = Family("exaone4", ("Exaone4ForCausalLM",), read, dense_tensors)
