"""Poolside's Laguna: gates of every head, which grow without end, and sigmoids that choose experts.

Layers with a window have a rope of their own, and may have more heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from workers.checkpoints import config, rope
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.experts import Experts
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family, renaming
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.rope import Size

DEFAULTS = {"num_key_value_heads": 8, "head_dim": 128, "sliding_window": 512}
ROPE = {"rope_theta": 500_000.0, "partial_rotary_factor": 0.5}
WINDOW_ROPE = {"rope_theta": 10_000.0, "partial_rotary_factor": 1.0}
GATES = {True: "heads", "per-head": "heads", "per_head": "heads"}
GATES |= {"per-element": "apart", "per_element": "apart"}
usual_name = renaming(
    {
        ".self_attn.g_proj.": ".self_attn.gate_proj.",
        ".mlp.experts.e_score_correction_bias": ".mlp.gate.e_score_correction_bias",
        ".mlp.shared_expert.": ".mlp.shared_experts.",
    }
)


class LagunaFile(ConfigFile, kw_only=True):
    """The keys of such a `config.json`."""

    gating: bool | str = True
    gating_types: list[str] | None = None  # of each layer
    num_attention_heads_per_layer: list[Size] | None = None
    num_experts: Size = 256
    num_experts_per_tok: Size = 8
    moe_intermediate_size: Size = 512
    shared_expert_intermediate_size: Size = 512
    mlp_layer_types: list[str] | None = None
    mlp_only_layers: list[int] | None = None  # the same
    decoder_sparse_step: Literal[1] = 1
    moe_routed_scaling_factor: float = 1.0
    moe_router_logit_softcapping: Annotated[float, Meta(ge=0, le=0)] = 0.0
    moe_router_score_func: Literal["sigmoid"] | None = None
    moe_router_use_sigmoid: Literal[True] | None = None
    moe_apply_router_weight_on_input: Literal[False] = False
    norm_topk_prob: Literal[True] = True
    router_aux_loss_coef: Any = None  # of training


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """All layers see all tokens, and all but the first have experts, unless the file says otherwise."""
    given = DEFAULTS | dict(given)
    says_ropes = bool(given.get("rope_parameters"))
    whole, local = rope.by_type(path, given)
    file = config.read(path, given, LagunaFile)
    for key in ("rope_scaling", *ROPE):
        value = getattr(file, key)
        if not says_ropes and value not in (None, {}, ROPE.get(key)):  # transformers leaves it out
            refuse(path, f"{key} {value} alone is not supported: say it in rope_parameters, for each type")
    count = file.num_hidden_layers
    if file.layer_types is None:
        file = msgspec.structs.replace(file, layer_types=["full_attention"] * count)
    windows = config.windows_of(path, file, first=0)
    beside = msgspec.structs.replace(file, rope_parameters=local if says_ropes else WINDOW_ROPE)
    head_dim = file.head_dim or file.hidden_size // file.num_attention_heads
    for kind, said in (("full_attention", whole), ("sliding_attention", local)):
        if says_ropes and not said and kind in file.layer_types:
            refuse(path, f"rope_parameters.{kind} is missing, and some layers are of that type")
    window_rope = window_turning = None
    if any(windows):
        window_turning = config.rotary_dim_of(path, beside, head_dim)
        window_rope, *_ = rope.read(path, beside, window_turning, partial=True)
    file = msgspec.structs.replace(file, rope_parameters=whole if says_ropes else ROPE)
    heads = tuple(file.num_attention_heads_per_layer or ())
    kv_heads = file.num_key_value_heads or file.num_attention_heads
    if heads and (len(heads) != count or any(each % kv_heads for each in heads)):
        refuse(path, f"num_attention_heads_per_layer is no list of {count} multiples of num_key_value_heads")
    return config.model_config(
        path,
        file,
        windows,
        partial=True,
        qk_norm="heads",
        attention_gate=_gate(path, file),
        gate_activation="softplus",
        heads_of=heads,
        window_rope=window_rope,
        window_rotary_dim=window_turning,
        experts=_experts(path, file),
    )


def _gate(path: Path, file: LagunaFile) -> str:
    kinds = {GATES.get(each) for each in (file.gating, *(file.gating_types or ()))}
    if None in kinds or len(kinds) > 1:
        refuse(path, f"gating {file.gating}, gating_types {file.gating_types} are not supported")
    return kinds.pop()


def _experts(path: Path, file: LagunaFile) -> Experts | None:
    config.refuse_above(path, file, "num_experts_per_tok", "num_experts")
    count = file.num_hidden_layers
    kinds = file.mlp_layer_types or ["dense", *["sparse"] * (count - 1)]
    if len(kinds) != count or not {*kinds} <= {"dense", "sparse"}:
        refuse(path, "mlp_layer_types is no list of dense and sparse, one for each layer")
    dense = [number for number, kind in enumerate(kinds) if kind == "dense"]
    if file.mlp_only_layers not in (None, [], dense):
        refuse(path, f"mlp_only_layers {file.mlp_only_layers} are not those that are dense, {dense}")
    experts = Experts(
        count=file.num_experts,
        chosen=file.num_experts_per_tok,
        intermediate_size=file.moe_intermediate_size,
        layers=tuple(number for number in range(count) if number not in dense),
        scoring="sigmoid",
        normalised=True,
        corrected=True,
        scale=file.moe_routed_scaling_factor,
        shared_size=file.shared_expert_intermediate_size,
    )
    return experts if experts.layers else None


LAGUNA = Family("laguna", ("LagunaForCausalLM",), read, dense_tensors, usual_name=usual_name)
