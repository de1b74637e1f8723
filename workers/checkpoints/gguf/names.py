"""What ggml calls the tensors of a model, and what Hugging Face does."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from dataclasses import replace

from workers.checkpoints.families.llama import EMBEDDING, HEAD, HEAD_BIAS
from workers.checkpoints.files import refuse
from workers.checkpoints.gguf.architectures import Architecture
from workers.checkpoints.safetensors import Tensor
from workers.checkpoints.stacked import MOST_EXPERTS

MODEL = {
    "token_embd.weight": EMBEDDING,
    "output.weight": HEAD,
    "output.bias": HEAD_BIAS,
    "output_norm.weight": "model.norm.weight",
    "output_norm.bias": "model.norm.bias",
}
LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
    "nextn.eh_proj": "eh_proj",
    "nextn.enorm": "enorm",
    "nextn.hnorm": "hnorm",
    "nextn.shared_head_norm": "shared_head.norm",
    "nextn.embed_tokens": "embed_tokens",
    "nextn.shared_head_head": "shared_head.head",
}
EXPERTS = {  # of each, one after the other
    "ffn_gate_exps": ("gate_proj",),
    "ffn_up_exps": ("up_proj",),
    "ffn_down_exps": ("down_proj",),
    "ffn_gate_up_exps": ("gate_proj", "up_proj"),
}
GATE_OF_SHARED = "ffn_gate_inp_shexp"
CORRECTION = "exp_probs_b.bias"
BARE = {"attn_sinks.weight": "self_attn.sinks", CORRECTION: "mlp.gate.e_score_correction_bias"}
READ_WITH_CONFIG = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
GATES_OF_HEADS = "ssm_ba"  # of each key head what opens and what decays
_LAYER = re.compile(r"blk\.(\d+)\.([\w.]+?)(?:\.(weight|bias|scale))?")


def usual(
    name: str, tensor: Tensor, architecture: Architecture, beside: Container[str]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors that `name`, which has all those `beside` it, is in a checkpoint of Hugging Face; itself
    where nobody knows it."""
    if name in READ_WITH_CONFIG:
        return
    if name in architecture.whole:
        yield architecture.whole[name], tensor
        return
    if name in MODEL:
        yield MODEL[name], tensor
        return
    if name in architecture.stacked and len(tensor.shape) == 3:
        count, *shape = tensor.shape
        _refuse_too_many(name, tensor, count, "matrices")
        size = tensor.size // count
        for number in range(count):
            each = replace(tensor, shape=tuple(shape), offset=tensor.offset + number * size, size=size)
            yield architecture.stacked[name].format(number), each
        return
    match = _LAYER.fullmatch(name)
    known = LAYER | dict(architecture.tensors)
    if match is None:
        yield name, tensor
    elif match[2] in architecture.read_with_config:
        return
    elif (own := f"{match[2]}.{match[3]}" if match[3] else match[2]) in (
        bare := BARE | dict(architecture.whole)
    ):
        if own == CORRECTION:
            tensor = replace(tensor, shape=tensor.shape[-1:])  # ERNIE's has one row
        yield f"{architecture.layers}.{match[1]}.{bare[own]}", tensor
    elif match[2] == GATE_OF_SHARED:
        gate = replace(tensor, shape=(1, *tensor.shape[-1:]))  # which is written without its one row
        yield f"{architecture.layers}.{match[1]}.mlp.shared_expert_gate.{match[3]}", gate
    elif match[2] == GATES_OF_HEADS and f"blk.{match[1]}.ssm_in.weight" not in beside:
        half = replace(tensor, shape=(tensor.shape[0] // 2, *tensor.shape[1:]), size=tensor.size // 2)
        for each in "ba":  # both are read from all of it
            yield f"{architecture.layers}.{match[1]}.linear_attn.in_proj_{each}.weight", half
    elif match[2] in known and match[3]:
        yield f"{architecture.layers}.{match[1]}.{known[match[2]]}.{match[3]}", tensor
    elif match[2] in EXPERTS and len(tensor.shape) == (3 if match[3] == "weight" else 2):
        count, *shape = tensor.shape  # experts one after the other
        _refuse_too_many(name, tensor, count, "experts")
        parts = EXPERTS[match[2]]
        if len(parts) > 1 and shape[0] % len(parts):
            refuse(tensor.file, f"has {name!r} of {shape[0]} rows, which are no gates and as many others")
        shape[0] //= len(parts)
        size, start = tensor.size // count // len(parts), tensor.offset
        for number in range(count):
            for part in parts:
                whole = f"{architecture.layers}.{match[1]}.{architecture.experts}.{number}.{part}.{match[3]}"
                yield whole, replace(tensor, shape=tuple(shape), offset=start, size=size)
                start += size
    else:
        yield name, tensor


def _refuse_too_many(name: str, tensor: Tensor, count: int, what: str) -> None:
    if count > MOST_EXPERTS:
        refuse(tensor.file, f"has {name!r} of {count:,} {what}, and {MOST_EXPERTS:,} is the limit")
