"""Layers of Mamba-2 as llama.cpp has them, of Granite 4, Nemotron-H and Falcon-H1, which have others too.

Of what makes decay the file has minus the exponential, as of Gated DeltaNets. Vectors are stored as matrices:
a row for each head, or for each group of what is normalised.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from workers.checkpoints.files import refuse
from workers.checkpoints.gguf.families import dense
from workers.checkpoints.gguf.families.delta_net import RATES, Shape
from workers.checkpoints.gguf.keys import MOST_LAYERS, Json, Keys
from workers.checkpoints.safetensors import Tensor

LAYER = {
    "ssm_in": "mamba.in_proj",
    "ssm_conv1d": "mamba.conv1d",
    "ssm_norm": "mamba.norm",
    "ssm_out": "mamba.out_proj",
}
WHOLE = {"ssm_a": "mamba.A_log", "ssm_dt.bias": "mamba.dt_bias", "ssm_d": "mamba.D"}
VECTORS = (".mamba.A_log", ".mamba.D", ".mamba.norm.weight")


def granite(keys: Keys) -> Json:
    """A layer without heads of keys is Mamba-2. Positions turn where the file says so, or says nothing."""
    heads = _of_layers(keys, "attention.head_count_kv")
    states = [number for number, each in enumerate(heads) if not each]
    turns = keys.get("rope.scaling.finetuned", True)
    found = dense.granite_scales(keys) | {
        "num_key_value_heads": _the_one(keys, "attention.head_count_kv", heads),
        "layer_types": ["attention" if each else "mamba" for each in heads],
        "position_embedding_type": "rope" if turns else "nope",
        "num_local_experts": keys.number("expert_count", 0),
        "num_experts_per_tok": keys.number("expert_used_count", 0),
        "shared_intermediate_size": keys.number(
            "expert_shared_feed_forward_length", keys.number("feed_forward_length")
        ),
    }
    sizes = _sizes(keys)  # which a file may have though no layer keeps a state
    if not states:
        return found
    first = states[0]
    return found | {
        "mamba_n_heads": sizes["time_step_rank"],
        "mamba_n_groups": sizes["group_count"],
        "mamba_d_state": sizes["state_size"],
        "mamba_d_conv": sizes["conv_kernel"],
        "mamba_expand": sizes["inner_size"] / keys.size("embedding_length"),
        "mamba_conv_bias": keys.has(f"blk.{first}.ssm_conv1d.bias"),
        "mamba_proj_bias": keys.has(f"blk.{first}.ssm_in.bias"),
    }


def nemotron(keys: Keys) -> Json:
    """What a layer is its tensors say. Nothing turns, whatever the file says of positions."""
    kinds = [_kind(keys, number) for number in range(min(keys.layers(), MOST_LAYERS))]
    heads, inner = _of_layers(keys, "attention.head_count_kv"), _of_layers(keys, "feed_forward_length")
    sizes, first = _sizes(keys), kinds.index("mamba") if "mamba" in kinds else 0
    mlp = kinds.index("mlp") if "mlp" in kinds else None
    if sizes["inner_size"] % sizes["time_step_rank"]:
        refuse(keys.path, f"ssm.time_step_rank does not divide ssm.inner_size {sizes['inner_size']}")
    found = {
        "layers_block_type": kinds,
        "num_key_value_heads": _the_one(keys, "attention.head_count_kv", heads),
        "intermediate_size": max(inner) or 1,
        "mlp_bias": mlp is not None and keys.has(f"blk.{mlp}.ffn_up.bias"),
        "layer_norm_epsilon": keys.number("attention.layer_norm_rms_epsilon"),
        "mamba_num_heads": sizes["time_step_rank"],
        "mamba_head_dim": sizes["inner_size"] // sizes["time_step_rank"],
        "n_groups": sizes["group_count"],
        "ssm_state_size": sizes["state_size"],
        "conv_kernel": sizes["conv_kernel"],
        "use_conv_bias": keys.has(f"blk.{first}.ssm_conv1d.bias"),
        "use_bias": keys.has(f"blk.{first}.ssm_in.bias"),
    }
    if "moe" not in kinds:
        keys.asked.update(name for name in keys.names() if name.startswith("expert_"))  # of none
        return found
    keys.get("expert_shared_count")  # as one, whose size is the next
    return found | {
        "n_routed_experts": keys.number("expert_count"),
        "num_experts_per_tok": keys.number("expert_used_count"),
        "moe_intermediate_size": keys.number("expert_feed_forward_length"),
        "moe_shared_expert_intermediate_size": keys.number("expert_shared_feed_forward_length"),
        "routed_scaling_factor": keys.number("expert_weights_scale", 1.0),
        "norm_topk_prob": keys.get("expert_weights_norm", True),
        "n_group": keys.number("expert_group_count", 1),
        "topk_group": keys.number("expert_group_used_count", 1),
    }


def falcon(keys: Keys) -> Json:
    """All layers are alike. Whoever wrote the file has multiplied its weights with what the model multiplies
    with. What is normalised is so behind the gates, as llama.cpp does whatever the config said."""
    sizes = _sizes(keys)
    bias = keys.has("blk.0.ssm_in.bias")
    return {
        "mamba_d_ssm": sizes["inner_size"],
        "mamba_n_heads": sizes["time_step_rank"],
        "mamba_n_groups": sizes["group_count"],
        "mamba_d_state": sizes["state_size"],
        "mamba_d_conv": sizes["conv_kernel"],
        "mamba_conv_bias": keys.has("blk.0.ssm_conv1d.bias"),
        "mamba_proj_bias": bias,
        "projectors_bias": bias,
        "mamba_rms_norm": keys.has("blk.0.ssm_norm.weight"),
        "mamba_norm_before_gate": False,
    }


def _kind(keys: Keys, number: int) -> str:
    for part, kind in (("ssm_in", "mamba"), ("attn_q", "attention"), ("ffn_gate_inp", "moe")):
        if keys.has(f"blk.{number}.{part}.weight"):
            return kind
    return "mlp"


def _of_layers(keys: Keys, name: str) -> list[int]:
    """A number of each layer, which may be 0."""
    value, count = keys.of_layers(name), min(keys.layers(), MOST_LAYERS)
    listed = value if isinstance(value, list) else [value] * count
    if len(listed) != count or not all(type(each) is int and each >= 0 for each in listed):
        refuse(keys.path, f"{name} {value!r} is no number, nor a list of {count}, one for each layer")
    return listed


def _the_one(keys: Keys, name: str, listed: list[int]) -> int:
    """The one that is not 0."""
    found = {*listed} - {0}
    if len(found) != 1:
        refuse(keys.path, f"{name} {listed!r} is not supported: layers that have some are alike")
    return found.pop()


def _sizes(keys: Keys) -> dict[str, int]:
    """Those of a layer with a state."""
    names = ("inner_size", "time_step_rank", "group_count", "state_size", "conv_kernel")
    return {name: keys.size(f"ssm.{name}", 1) for name in names}


def flat(name: str, tensor: Tensor) -> Tensor:
    """What is a vector, as one."""
    return replace(tensor, shape=(prod(tensor.shape),)) if name.endswith(VECTORS) else tensor


def undone(name: str, shape: Shape) -> tuple[str, tuple[Shape, ...]]:
    """As of `GgufCheckpoint.undone`."""
    return (RATES, ((1, *shape, 1),)) if name.endswith("A_log") else ("", (shape,))
