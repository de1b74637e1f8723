"""GLM-4.5 to 4.7 with experts, and dots.llm1 and Solar Open, which are of their shape.

With it what DeepSeek V3 and its kin say of their experts: sigmoid scores, in groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from workers.checkpoints import config
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.experts import Experts
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.rope import Size
from workers.checkpoints.safetensors import Tensor

DEFAULTS = {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5}
DEFAULTS_DOTS = {
    "sliding_window": 4096,
    "max_window_layers": 62,
    "n_shared_experts": None,
    "first_k_dense_replace": 0,
    "norm_topk_prob": False,
}
DEFAULTS_SOLAR = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "moe_intermediate_size": 1280,
    "rope_theta": 1_000_000.0,
}


class RoutedFile(ConfigFile, kw_only=True):
    """The keys of a `config.json` whose experts are routed as those of DeepSeek V3 are."""

    n_routed_experts: Size = 128
    num_local_experts: Size | None = None  # is the same
    num_experts_per_tok: Size = 8
    moe_intermediate_size: Size = 1408
    n_shared_experts: Annotated[int, Meta(ge=0)] | None = 1
    routed_scaling_factor: float = 1.0
    n_group: Size | None = 1
    topk_group: Size | None = 1
    first_k_dense_replace: Annotated[int, Meta(ge=0)] = 1
    mlp_layer_types: list[str] | None = None
    norm_topk_prob: bool = True
    scoring_func: Literal["sigmoid", "softmax"] | None = None
    topk_method: Literal["noaux_tc", "greedy", "group_limited_greedy"] | None = None
    moe_layer_freq: Literal[1] = 1
    # of training, and of heads that predict several tokens, of which the files say whether they are there
    num_nextn_predict_layers: int | None = None
    num_mtp_layers: int | None = None
    moe_router_dtype: Any = None


class GlmMoeFile(RoutedFile, kw_only=True):
    """The keys of GLM's `config.json`."""

    use_qk_norm: bool = False


def experts_of(path: Path, file: RoutedFile) -> Experts | None:
    """The experts that a file asks for, scored by sigmoid and with corrections."""
    count, groups = file.num_local_experts or file.n_routed_experts, file.n_group or 1
    chosen_groups = file.topk_group or 1
    if count % groups or (groups > 1 and count // groups < 2):
        refuse(path, f"n_group {groups} does not divide {count} experts into groups of two or more")
    if chosen_groups > groups:
        refuse(path, f"topk_group {chosen_groups} is above n_group, which is {groups}")
    if file.num_experts_per_tok > count // groups * chosen_groups:
        refuse(path, f"num_experts_per_tok {file.num_experts_per_tok} is above the experts to choose from")
    kinds = file.mlp_layer_types
    if kinds is None:
        layers = tuple(range(file.first_k_dense_replace, file.num_hidden_layers))
    elif len(kinds) != file.num_hidden_layers or not {*kinds} <= {"dense", "sparse"}:
        refuse(path, "mlp_layer_types is no list of dense and sparse, one for each layer")
    else:
        layers = tuple(number for number, kind in enumerate(kinds) if kind == "sparse")
    experts = Experts(
        count=count,
        chosen=file.num_experts_per_tok,
        intermediate_size=file.moe_intermediate_size,
        layers=layers,
        scoring="sigmoid",
        normalised=file.norm_topk_prob,
        corrected=True,
        groups=groups,
        groups_chosen=chosen_groups,
        scale=file.routed_scaling_factor,
        shared_size=(file.n_shared_experts or 0) * file.moe_intermediate_size,
    )
    return experts if layers else None


def scored_by_sigmoid(path: Path, file: RoutedFile) -> Experts | None:
    """The same, of a file that says nothing else of how they are scored and chosen."""
    if file.scoring_func == "softmax" or file.topk_method in ("greedy", "group_limited_greedy"):
        said = f"scoring_func {file.scoring_func}, topk_method {file.topk_method}"
        refuse(path, f"{said} is not supported; these experts have sigmoid and noaux_tc")
    return experts_of(path, file)


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Half of a head turns, unless the file says otherwise; no layer has a window."""
    file = config.read(path, DEFAULTS | dict(given), GlmMoeFile)
    return config.model_config(
        path,
        file,
        [None] * file.num_hidden_layers,
        partial=True,
        output_bias=False,
        qk_norm="heads" if file.use_qk_norm else "none",
        experts=scored_by_sigmoid(path, file),
    )


def read_dots(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Queries and keys are normalised per head; from some layer on there may be windows."""
    file = config.read(path, DEFAULTS_DOTS | dict(given), RoutedFile)
    by_number = msgspec.structs.replace(file, use_sliding_window=file.sliding_window is not None)
    windows = config.windows_of(path, by_number, first=file.max_window_layers or 0)
    return config.model_config(path, file, windows, qk_norm="heads", experts=scored_by_sigmoid(path, file))


def read_solar(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Every layer has experts, and none a window: the size of an MLP is nobody's."""
    given = DEFAULTS_SOLAR | dict(given) | {"first_k_dense_replace": 0}
    file = config.read(path, {"intermediate_size": given["moe_intermediate_size"]} | given, RoutedFile)
    windows: list[int | None] = [None] * file.num_hidden_layers
    return config.model_config(path, file, windows, output_bias=False, experts=scored_by_sigmoid(path, file))


def mtp(stored: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """The head is layer `number` in files as well. The embedding and the output that stand there once more
    are the model's."""
    return dict(stored)


GLM4_MOE = Family("glm4_moe", ("Glm4MoeForCausalLM",), read, dense_tensors, mtp=mtp)
DOTS1 = Family("dots1", ("Dots1ForCausalLM",), read_dots, dense_tensors)
SOLAR_OPEN = Family("solar_open", ("SolarOpenForCausalLM",), read_solar, dense_tensors)
