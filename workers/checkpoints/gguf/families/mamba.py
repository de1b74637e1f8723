"""Layers of Mamba-2 as llama.cpp has them, and Granite 4, which has them beside such that attend.

Of what makes decay the file has minus the exponential, as of Gated DeltaNets. Vectors are stored as matrices:
a row for each head, or for each group of what is normalised.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from workers.checkpoints.files import refuse
from workers.checkpoints.gguf.families import dense
from workers.checkpoints.gguf.families.delta_net import RATES, Shape
from workers.checkpoints.gguf.keys import Json, Keys
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
    heads = keys.get("attention.head_count_kv")
    if not isinstance(heads, list):
        heads = [heads] * keys.layers()
    if not all(type(each) is int and each >= 0 for each in heads):
        refuse(keys.path, f"attention.head_count_kv {heads!r} is no list of numbers, one for each layer")
    attending, states = {*heads} - {0}, [number for number, each in enumerate(heads) if not each]
    if len(attending) != 1:
        refuse(keys.path, f"attention.head_count_kv {heads!r} is not supported: layers that attend are alike")
    turns = keys.get("rope.scaling.finetuned", True)
    found = dense.granite(keys) | {
        "num_key_value_heads": attending.pop(),
        "layer_types": ["attention" if each else "mamba" for each in heads],
        "position_embedding_type": "rope" if turns else "nope",
        "num_local_experts": keys.number("expert_count", 0),
        "num_experts_per_tok": keys.number("expert_used_count", 0),
        "shared_intermediate_size": keys.number(
            "expert_shared_feed_forward_length", keys.number("feed_forward_length")
        ),
    }
    own = _states(keys, states[0] if states else 0)  # which a file may have though no layer does
    return found | own if states else found


def _states(keys: Keys, first: int) -> Json:
    """What the file says of its layers with a state, of which `first` is one."""
    sizes = {
        name: keys.size(f"ssm.{name}", 1)
        for name in ("inner_size", "time_step_rank", "group_count", "state_size", "conv_kernel")
    }
    return {
        "mamba_n_heads": sizes["time_step_rank"],
        "mamba_n_groups": sizes["group_count"],
        "mamba_d_state": sizes["state_size"],
        "mamba_d_conv": sizes["conv_kernel"],
        "mamba_expand": sizes["inner_size"] / keys.size("embedding_length"),
        "mamba_conv_bias": keys.has(f"blk.{first}.ssm_conv1d.bias"),
        "mamba_proj_bias": keys.has(f"blk.{first}.ssm_in.bias"),
    }


def flat(name: str, tensor: Tensor) -> Tensor:
    """What is a vector, as one."""
    return replace(tensor, shape=(prod(tensor.shape),)) if name.endswith(VECTORS) else tensor


def undone(name: str, shape: Shape) -> tuple[str, tuple[Shape, ...]]:
    """As of `GgufCheckpoint.undone`."""
    return (RATES, ((1, *shape, 1),)) if name.endswith("A_log") else ("", (shape,))
