"""EXAONE 4 (https://arxiv.org/abs/2507.11407): norms only behind attention and MLP, and of every head.

Where some layers have windows, the others have no positions. K-EXAONE has experts as DeepSeek V3 has, and its
norms before attention and MLP.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from workers.checkpoints import config
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.families.ernie4_5 import AHEAD
from workers.checkpoints.families.glm_moe import RoutedFile, scored_by_sigmoid
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.families.olmo import NORMS
from workers.checkpoints.family import Family, renaming
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import ModelConfig

DEFAULTS = {"rms_norm_eps": 1e-5, "sliding_window": 4096}
DEFAULTS_MOE = {
    "num_key_value_heads": 32,
    "num_experts": 64,
    "num_shared_experts": 1,
    "moe_intermediate_size": 1024,
    "routed_scaling_factor": 2.5,
}
CALLED = {"num_experts": "n_routed_experts", "num_shared_experts": "n_shared_experts"}
PATTERN = 4  # every fourth layer sees all tokens


class Exaone4File(ConfigFile, kw_only=True):
    """The keys of EXAONE's `config.json`; what `layer_types` says goes before the pattern."""

    sliding_window_pattern: Annotated[int, Meta(ge=0)] | str | None = PATTERN


class ExaoneMoeFile(RoutedFile, kw_only=True):
    """The keys of K-EXAONE's, of which the first files had `is_moe_layer` for `mlp_layer_types`."""

    is_moe_layer: list[bool] | None = None
    sliding_window_pattern: Annotated[int, Meta(ge=0)] | str | None = PATTERN


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """There are no biases, whatever the file says."""
    file = config.read(path, DEFAULTS | dict(given) | {"attention_bias": False}, Exaone4File)
    windows, unrotated = _windows(path, file)
    return config.model_config(path, file, windows, norms=NORMS, qk_norm="heads", unrotated=unrotated)


def read_moe(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """The same, but for its experts and norms."""
    given = DEFAULTS | DEFAULTS_MOE | dict(given) | {"attention_bias": False}
    given = {CALLED.get(key, key): value for key, value in given.items()}
    file = config.read(path, given, ExaoneMoeFile)
    if file.is_moe_layer is not None:
        kinds = ["sparse" if each else "dense" for each in file.is_moe_layer]
        if len(kinds) != file.num_hidden_layers or file.mlp_layer_types not in (None, kinds):
            refuse(path, "is_moe_layer is no list of one for each layer, or differs from mlp_layer_types")
        file = msgspec.structs.replace(file, mlp_layer_types=kinds)
    windows, unrotated = _windows(path, file)
    experts = scored_by_sigmoid(path, file)
    return config.model_config(path, file, windows, qk_norm="heads", unrotated=unrotated, experts=experts)


def _windows(path: Path, file: Exaone4File | ExaoneMoeFile) -> tuple[list[int | None], tuple[int, ...]]:
    """Those of the layers, and which of these have no positions."""
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
    return windows, unrotated


EXAONE4 = Family("exaone4", ("Exaone4ForCausalLM",), read, dense_tensors)
EXAONE_MOE = Family(
    "exaone_moe",
    ("ExaoneMoeForCausalLM", "ExaoneMoEForCausalLM"),
    read_moe,
    dense_tensors,
    usual_name=renaming({".mlp.e_score_correction_bias": ".mlp.gate.e_score_correction_bias"}),
    beside={"mtp.": AHEAD},
)
