"""MiniMax M2: experts that sigmoids choose, and queries and keys that are normalised over all heads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from workers.checkpoints import config
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.experts import Experts
from workers.checkpoints.families import mixtral
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.rope import Size

DEFAULTS = {"num_key_value_heads": 8, "head_dim": 128, "rope_theta": 5_000_000.0}
CORRECTION, USUAL_CORRECTION = (f".mlp.{name}" for name in ("e_score_corr", "gate.e_score_corr"))


class MiniMaxM2File(ConfigFile, kw_only=True):
    """The keys of such a `config.json`."""

    num_local_experts: Size = 256
    num_experts_per_tok: Size = 8
    rotary_dim: Size | None = None  # of a head, what turns
    scoring_func: Literal["sigmoid"] = "sigmoid"
    use_routing_bias: Literal[True] = True
    use_qk_norm: Literal[True] = True
    qk_norm_type: Literal["per_layer"] = "per_layer"
    attn_type_list: list[int] | None = None  # of each layer: 1 where it attends
    # of an expert beside the others, which is there where `shared_intermediate_size` is
    shared_intermediate_size: Literal[0] | None = None
    shared_moe_mode: Any = None


def usual_name(name: str) -> str:
    """As every other family calls it."""
    return mixtral.usual_name(name).replace(CORRECTION, USUAL_CORRECTION)


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Every layer has experts, and none a window; there are no biases, whatever the file says."""
    file = config.read(path, DEFAULTS | dict(given) | {"attention_bias": False}, MiniMaxM2File)
    count, chosen, layers = file.num_local_experts, file.num_experts_per_tok, file.num_hidden_layers
    config.refuse_above(path, file, "num_experts_per_tok", "num_local_experts")
    if set(file.attn_type_list or ()) - {1}:
        refuse(path, "attn_type_list has layers that do not attend, which is not supported")
    if file.rotary_dim is not None:
        head_dim = file.head_dim or file.hidden_size // file.num_attention_heads
        share = file.partial_rotary_factor or file.rotary_dim / head_dim
        file = msgspec.structs.replace(file, partial_rotary_factor=share)
    experts = Experts(
        count=count,
        chosen=chosen,
        intermediate_size=file.intermediate_size,
        layers=tuple(range(layers)),
        scoring="sigmoid",
        normalised=True,
        corrected=True,
    )
    return config.model_config(path, file, [None] * layers, partial=True, qk_norm="whole", experts=experts)


MINIMAX_M2 = Family("minimax_m2", ("MiniMaxM2ForCausalLM",), read, dense_tensors, usual_name=usual_name)
