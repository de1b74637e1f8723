"""Llama 4, the text models: most layers see the tokens of one chunk, others all of them, without positions.

Each expert is given its tokens multiplied with their weights; beside them every token goes through one MLP.
Queries without positions grow with the context (https://arxiv.org/abs/2501.19399).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ipc.worker_messages import PAGE_SIZE
from workers.checkpoints import config
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.experts import Experts
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family, in_causal
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import ModelConfig, Temperature
from workers.checkpoints.rope import Size
from workers.checkpoints.stacked import unstacked

DEFAULTS = {
    "vocab_size": 202_048,
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131_072,
    "rope_theta": 500_000.0,
}


class Llama4File(ConfigFile, kw_only=True):
    """The keys of such a `config.json`."""

    intermediate_size_mlp: Size = 16_384  # of layers without experts
    num_local_experts: Size = 16
    num_experts_per_tok: Size = 1
    moe_layers: list[int] | None = None
    interleave_moe_layer_step: Size = 1
    use_qk_norm: bool = True
    no_rope_layers: list[int] | None = None  # of each layer: 1 where it has positions
    no_rope_layer_interval: Size = 4
    attention_chunk_size: Size | None = 8192
    attn_temperature_tuning: bool | int = True  # old files say 4
    floor_scale: Size = 8192
    attn_scale: float = 0.1


def usual_name(name: str) -> str:
    """As every other family calls it."""
    return in_causal(name).replace(".feed_forward.", ".mlp.")


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Layers with positions see a chunk, unless `layer_types` says otherwise."""
    file = config.read(path, DEFAULTS | dict(given), Llama4File)
    unrotated = config.unrotated_layers(
        path,
        file.no_rope_layers or None,  # an empty list says nothing
        file.no_rope_layer_interval,
        file.num_hidden_layers,
    )
    temperature = None
    if file.attn_temperature_tuning:
        temperature = Temperature(file.floor_scale, file.attn_scale, first=1, unrotated=True)
    experts = _experts(path, file)
    model = config.model_config(
        path,
        msgspec.structs.replace(file, intermediate_size=file.intermediate_size_mlp),
        _chunks(path, file, unrotated),
        interleaved=True,
        unrotated=unrotated,
        qk_norm="turned" if file.use_qk_norm else "none",
        temperature=temperature,
        experts=experts,
    )
    layers = [
        msgspec.structs.replace(layer, kind="chunk") if layer.kind == "window" else layer
        for layer in model.layers
    ]
    return msgspec.structs.replace(model, layers=tuple(layers))


def _chunks(path: Path, file: Llama4File, unrotated: tuple[int, ...]) -> list[int | None]:
    """The chunk of each layer; None: it sees all tokens."""
    count = file.num_hidden_layers
    types = file.layer_types
    if types is None:
        types = ["full_attention" if n in unrotated else "chunked_attention" for n in range(count)]
    if len(types) != count or not {*types} <= {"full_attention", "chunked_attention"}:
        refuse(path, f"layer_types is no list of full_attention and chunked_attention for {count} layers")
    size = file.attention_chunk_size
    if "chunked_attention" in types and (size is None or size % PAGE_SIZE):
        refuse(path, f"attention_chunk_size {size} is not supported: it is a multiple of {PAGE_SIZE}")
    return [size if kind == "chunked_attention" else None for kind in types]


def _experts(path: Path, file: Llama4File) -> Experts | None:
    count, chosen, layers = file.num_local_experts, file.num_experts_per_tok, file.num_hidden_layers
    config.refuse_above(path, file, "num_experts_per_tok", "num_local_experts")
    every = file.interleave_moe_layer_step
    listed = range(every - 1, layers, every) if file.moe_layers is None else file.moe_layers
    own = tuple(sorted(number for number in set(listed) if 0 <= number < layers))
    if not own:
        return None
    return Experts(
        count=count,
        chosen=chosen,
        intermediate_size=file.intermediate_size,
        layers=own,
        scoring="sigmoid_of_chosen",
        weighs_inputs=True,
        router="router",
        shared_size=file.intermediate_size,
        shared_name="shared_expert",
    )


LLAMA4 = Family(
    "llama4",
    ("Llama4ForCausalLM",),
    read,
    dense_tensors,
    within={"Llama4ForConditionalGeneration": ("llama4_text",)},
    usual_name=usual_name,
    rearrange=unstacked,
)
