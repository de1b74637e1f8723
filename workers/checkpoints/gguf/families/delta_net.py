"""Qwen3-Next, Qwen3.5 and 3.6 as llama.cpp has them: layers that keep a state, beside such that attend.

Of what makes decay the file has minus the exponential. Files of Qwen3.5 have value heads in tiles: the first
one of each key head, then the second of each, and so on, where a checkpoint has those of a key head together.
Rows are put back when they are read. Columns of what goes out are not, as blocks may be longer than a head:
`DeltaNet.tiled` says it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from workers.checkpoints.files import refuse
from workers.checkpoints.gguf.header import Gguf
from workers.checkpoints.gguf.keys import MOST_LAYERS, Json, Keys
from workers.checkpoints.model_config import DeltaNet

Shape = tuple[int, ...]
LAYER = {
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_in": "linear_attn.in_proj_qkvz",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_ba": "linear_attn.in_proj_ba",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
    "post_attention_norm": "post_attention_layernorm",
}
WHOLE = {"ssm_a": "linear_attn.A_log", "ssm_dt.bias": "linear_attn.dt_bias"}
NORM = "linear_attn.norm.weight"  # to which nothing is added, as to no other one here
INTERVAL = 4  # every fourth layer attends, where the file does not say

# Conversions of `workers.weights.llama_cpp`.
TILED, RATES, OPENING, DECAYING = "tiled_heads", "tiled_rates", "opening_gates", "decaying_gates"


def config(keys: Keys) -> Json:
    """What all of them say of a layer with a state, and which layers have one."""
    keys.get("rope.dimension_sections")  # of one that sees; of text all of them have one position
    count = min(keys.layers(), MOST_LAYERS)
    every = keys.size("full_attention_interval", INTERVAL)
    keeps = keys.get("attention.recurrent_layers")
    if keeps is None:
        keeps = [bool((number + 1) % every) for number in range(count)]
    if not isinstance(keeps, list) or len(keeps) < count:
        refuse(keys.path, f"attention.recurrent_layers {keeps!r} is no list of {count}, one for each layer")
    kinds = ["linear_attention" if each else "full_attention" for each in keeps[:count]]
    heads, size = keys.size("ssm.time_step_rank"), keys.size("ssm.inner_size")
    if size % heads:
        refuse(keys.path, f"ssm.time_step_rank {heads} does not divide ssm.inner_size {size}")
    attends = kinds.index("full_attention") if "full_attention" in kinds else 0
    head_dim = keys.head_dim()
    return {
        "layer_types": kinds,
        "linear_num_value_heads": heads,
        "linear_value_head_dim": size // heads,
        "linear_num_key_heads": keys.size("ssm.group_count"),
        "linear_key_head_dim": keys.size("ssm.state_size"),
        "linear_conv_kernel_dim": keys.size("ssm.conv_kernel"),
        "partial_rotary_factor": keys.number("rope.dimension_count", head_dim) / head_dim,
        "attention_bias": keys.has(f"blk.{attends}.attn_q.bias"),
    }


def with_experts(keys: Keys) -> Json:
    """The same, with experts in each layer."""
    own = config(keys)
    return own | {
        "num_experts": keys.number("expert_count"),
        "num_experts_per_tok": keys.number("expert_used_count"),
        "moe_intermediate_size": keys.number("expert_feed_forward_length"),
        "shared_expert_intermediate_size": keys.number(
            "expert_shared_feed_forward_length", keys.get("feed_forward_length")
        ),
        "norm_topk_prob": True,
    }


def as_stored(file: Gguf, delta: DeltaNet) -> DeltaNet:
    """`delta` with the orders that `file` has. The first files of Qwen3-Next had those of a checkpoint."""
    return msgspec.structs.replace(
        delta,
        grouped=any(name.endswith(".ssm_in.weight") for name in file.tensors),
        tiled=file.architecture != "qwen3next" and delta.value_heads > delta.key_heads,
    )


def undone(file: Gguf, config: Json, name: str, shape: Shape) -> tuple[str, tuple[Shape, ...]]:
    """As of `GgufCheckpoint.undone`, of the tensors of a layer with a state.

    Those of value heads are read as `[tile, key head, row of a head, ...]`, what opens and decays as
    `[key head, 2, value head of it, columns]`.
    """
    part = name.rpartition("linear_attn.")[2]
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    tiles = values // keys if file.architecture != "qwen3next" else 1
    heads: tuple[int, int] = (tiles, values // tiles)
    rest: Any = shape[1:]
    if part == "A_log":
        return RATES, ((*heads, 1),)
    if part in ("in_proj_b.weight", "in_proj_a.weight") and file.architecture == "qwen3next":
        return OPENING if part.startswith("in_proj_b") else DECAYING, ((keys, 2, values // keys, *rest),)
    if tiles == 1:
        return "", (shape,)
    if part in ("dt_bias", "in_proj_b.weight", "in_proj_a.weight"):
        return TILED, ((*heads, 1, *rest),)
    if part == "in_proj_z.weight":
        return TILED, ((*heads, config["linear_value_head_dim"], *rest),)
    if part in ("in_proj_qkv.weight", "conv1d.weight"):
        before = 2 * keys * config["linear_key_head_dim"]
        return TILED, ((before, *rest), (*heads, config["linear_value_head_dim"], *rest))
    return "", (shape,)
