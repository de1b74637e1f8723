"""Hunyuan, dense: a Llama whose heads of queries and keys are normalised when they have turned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from workers.checkpoints import config, rope
from workers.checkpoints.config import ConfigFile, ModelConfig
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family, renaming
from workers.checkpoints.files import refuse
from workers.checkpoints.rope import Size

DEFAULTS = {"rms_norm_eps": 1e-5}
usual_name = renaming({".query_layernorm.": ".q_norm.", ".key_layernorm.": ".k_norm."})


class HunyuanFile(ConfigFile, kw_only=True):
    """The keys of such a `config.json`."""

    attention_head_dim: Size | None = None  # another name of `head_dim`
    use_qk_norm: Literal[True] = True
    use_rotary_pos_emb: Literal[True] = True
    use_cla: Literal[False] | None = None  # layers would read the keys of earlier ones
    norm_type: Literal["rms", "hf_rms"] | None = None
    mlp_bias: Literal[False] = False


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """No layer has a window. A dynamic rope with an `alpha` is a plain one with a larger base."""
    given = DEFAULTS | dict(given)
    given["head_dim"] = given.get("head_dim") or given.get("attention_head_dim")
    file = config.read(path, given, HunyuanFile)
    head_dim = file.head_dim or file.hidden_size // file.num_attention_heads
    key = next((key for key in rope.KEYS if given.get(key)), rope.KEYS[0])
    turning = getattr(file, key) or {}
    kind = turning.get("rope_type") or turning.get("type")
    if kind == rope.PLAIN_UP_TO_CONTEXT and (alpha := turning.get("alpha")):
        theta = turning.get("rope_theta") or file.rope_theta or 10_000.0
        if not all(isinstance(each, int | float) and each > 0 for each in (alpha, theta)) or head_dim < 4:
            refuse(path, f"{key}.alpha {alpha!r} of heads of {head_dim} is not supported")
        grown = theta * alpha ** (head_dim / (head_dim - 2))
        given |= {"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": grown}}
        file = config.read(path, given, HunyuanFile)
    return config.model_config(path, file, [None] * file.num_hidden_layers, qk_norm="turned_heads")


HUNYUAN = Family(
    "hunyuan_v1_dense", ("HunYuanDenseV1ForCausalLM",), read, dense_tensors, usual_name=usual_name
)
