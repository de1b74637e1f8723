"""Hunyuan: a Llama whose heads of queries and keys are normalised when they have turned. A13B has experts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from workers.checkpoints import config, rope
from workers.checkpoints.config import ConfigFile, File
from workers.checkpoints.experts import Experts
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family, renaming
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.rope import Size

DEFAULTS = {"rms_norm_eps": 1e-5}
SHARED = "shared_mlp"
usual_name = renaming(
    {".query_layernorm.": ".q_norm.", ".key_layernorm.": ".k_norm.", ".mlp.gate.wg.": ".mlp.gate."}
)


class HunyuanFile(ConfigFile, kw_only=True):
    """The keys of such a `config.json`."""

    attention_head_dim: Size | None = None  # another name of `head_dim`
    use_qk_norm: Literal[True] = True
    use_rotary_pos_emb: Literal[True] = True
    use_cla: Literal[False] | None = None  # layers would read the keys of earlier ones
    norm_type: Literal["rms", "hf_rms"] | None = None
    mlp_bias: Literal[False] = False
    vit_norm_type: Any = None  # of eyes, which these have none of


class HunyuanMoeFile(HunyuanFile, kw_only=True):
    """The keys of one with experts. What may be another in each layer is the same in all."""

    num_experts: Size = 1
    moe_topk: Size | list[Size] = 1
    num_experts_per_tok: Size | None = None  # once more
    moe_intermediate_size: Size | list[Size] | None = None  # once more `intermediate_size`
    num_shared_expert: Size | list[Size] = 1
    moe_layer_num_skipped: Literal[0] | None = 0
    use_mixed_mlp_moe: Literal[True] = True
    norm_topk_prob: Literal[True] = True
    group_limited_greedy: Literal[False] | None = None
    routed_scaling_factor: Annotated[float, Meta(ge=1, le=1)] | None = None
    n_group: Any = None  # of those that are limited
    topk_group: Any = None
    moe_drop_tokens: Any = None  # of training, as the next one
    moe_random_routing_dropped_token: Any = None


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """No layer has a window."""
    file = _file(path, given, HunyuanFile)
    return config.model_config(path, file, [None] * file.num_hidden_layers, qk_norm="turned_heads")


def read_moe(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Every layer has experts, and an MLP as large as one of them beside them, or several."""
    file = _file(path, given, HunyuanMoeFile)
    layers, inner = file.num_hidden_layers, file.intermediate_size
    chosen, beside, own = (
        _of_all(path, file, key) for key in ("moe_topk", "num_shared_expert", "moe_intermediate_size")
    )
    if own not in (None, inner):
        refuse(
            path, f"moe_intermediate_size {own} is not supported: it is intermediate_size, which is {inner}"
        )
    if file.num_experts_per_tok not in (None, chosen):
        refuse(path, f"num_experts_per_tok {file.num_experts_per_tok} is not moe_topk, which is {chosen}")
    if chosen > file.num_experts:
        refuse(path, f"moe_topk {chosen} is above num_experts, which is {file.num_experts}")
    experts = Experts(
        count=file.num_experts,
        chosen=chosen,
        intermediate_size=inner,
        layers=tuple(range(layers)),
        normalised=True,
        shared_size=beside * inner,
        shared_name=SHARED,
    )
    return config.model_config(path, file, [None] * layers, qk_norm="turned_heads", experts=experts)


def _of_all(path: Path, file: HunyuanMoeFile, key: str) -> int | None:
    """What a key says that may list it for each layer."""
    value = getattr(file, key)
    if not isinstance(value, list):
        return value
    if len(value) != file.num_hidden_layers or len({*value}) != 1:
        refuse(path, f"{key} {value} is not supported: it is the same in every layer")
    return value[0]


def _file(path: Path, given: Mapping[str, Any], keys: type[File]) -> File:
    """A dynamic rope with an `alpha` is a plain one with a larger base."""
    given = DEFAULTS | dict(given)
    given["head_dim"] = given.get("head_dim") or given.get("attention_head_dim")
    file = config.read(path, given, keys)
    head_dim = file.head_dim or file.hidden_size // file.num_attention_heads
    key = next((key for key in rope.KEYS if given.get(key)), rope.KEYS[0])
    turning = getattr(file, key) or {}
    kind = turning.get("rope_type") or turning.get("type")
    if kind == rope.PLAIN_UP_TO_CONTEXT and (alpha := turning.get("alpha")):
        theta = turning.get("rope_theta") or file.rope_theta or 10_000.0
        if (
            not all(isinstance(each, int | float) and 0 < each < 1e12 for each in (alpha, theta))
            or head_dim < 4
        ):
            refuse(path, f"{key}.alpha {alpha!r} of heads of {head_dim} is not supported")
        grown = theta * alpha ** (head_dim / (head_dim - 2))
        given |= {"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": grown}}
        file = config.read(path, given, keys)
    return file


HUNYUAN = Family(
    "hunyuan_v1_dense", ("HunYuanDenseV1ForCausalLM",), read, dense_tensors, usual_name=usual_name
)
HUNYUAN_MOE = Family(
    "hunyuan_v1_moe", ("HunYuanMoEV1ForCausalLM",), read_moe, dense_tensors, usual_name=usual_name
)
