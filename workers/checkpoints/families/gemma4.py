"""Gemma 4, the text models: layers with a window have heads of another size than those that see all tokens.

The small ones (E2B, E4B) have an input of each token into every layer, from a table of its own, and upper
layers that read the keys and values of lower ones. The large ones make values of the same projection as keys
where a layer sees all tokens; 26B-A4B has experts beside the MLP of every layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from workers.checkpoints import config, rope
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.experts import Experts
from workers.checkpoints.families.gemma import NORMS, Positive
from workers.checkpoints.families.llama import EMBEDDING, HEAD, expert_tensors, mlp_tensors
from workers.checkpoints.family import Family, TensorSpec
from workers.checkpoints.files import refuse
from workers.checkpoints.layers import Layer
from workers.checkpoints.model_config import ModelConfig, PerLayer
from workers.checkpoints.rope import Size
from workers.checkpoints.stacked import unstacked_rows

# Files leave out what is as in the configuration class of transformers.
DEFAULTS = {
    "vocab_size": 262_144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": True,
    "sliding_window": 512,
}
UNIFIED = {
    "max_position_embeddings": 262_144,
    "sliding_window": 1024,
    "hidden_size_per_layer_input": 0,
}
PATTERN = 6  # every sixth layer sees all tokens
ROPE = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0}
WINDOW_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
# of an input of each layer
TABLE, PROJECTION = "model.embed_tokens_per_layer", "model.per_layer_model_projection"
PROJECTION_NORM = "model.per_layer_projection_norm"
# of a layer
GATE, INTO, NORM_OF_INPUT = "per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm"
SCALE = "layer_scalar"
# of a layer with experts: norms behind its MLP, before its experts, and behind these
EXPERT_NORMS = (
    "post_feedforward_layernorm_1",
    "pre_feedforward_layernorm_2",
    "post_feedforward_layernorm_2",
)
ROUTER = "router.proj"
ROUTER_SCALE, EXPERT_SCALES = "router.scale", "router.per_expert_scale"


# Of its ears, which nothing here reads
DEAF = "of what hears, which is not served: it takes text, and images where its files have eyes"
EARS = dict.fromkeys(("model.audio_tower.", "model.embed_audio.", "audio_tower.", "embed_audio."), DEAF)
SEEING, SEEING_UNIFIED = "Gemma4ForConditionalGeneration", "Gemma4UnifiedForConditionalGeneration"


class Heads(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one layer has otherwise than the model."""

    head_dim: Size | None = None
    num_key_value_heads: Size | None = None


class Gemma4File(ConfigFile, kw_only=True):
    """The keys of such a `config.json`."""

    hidden_activation: str | None = None
    final_logit_softcapping: Positive | None = None
    use_bidirectional_attention: Literal["all", "vision"] | None = None
    vocab_size_per_layer_input: Size = 262_144
    hidden_size_per_layer_input: Annotated[int, Meta(ge=0, le=1 << 31)] | None = 256
    attention_k_eq_v: bool = False
    num_kv_shared_layers: Annotated[int, Meta(ge=0)] = 0
    enable_moe_block: bool = False
    use_double_wide_mlp: bool = False
    num_experts: Size | None = None
    top_k_experts: Size | None = None
    moe_intermediate_size: Size | None = None
    # heads of the layers that see all tokens; since transformers 5.20 by the number of a layer
    global_head_dim: Size = 512
    num_global_key_value_heads: Size | None = None
    per_layer_config: dict[str, Heads] | None = None
    pad_token_id: Annotated[int, Meta(ge=0)] | None = 0


def tensors(model: ModelConfig) -> Iterator[TensorSpec]:
    """Those that others with inputs of layers have, experts, and a scale of each layer."""
    yield from common_tensors(model)
    hidden = model.hidden_size
    for number in range(model.num_layers):
        prefix = f"model.layers.{number}."
        if model.experts is not None:
            for norm in EXPERT_NORMS:
                yield TensorSpec(f"{prefix}{norm}.weight", (hidden,), "none")
            yield from expert_tensors(prefix, hidden, model.experts)
            yield TensorSpec(prefix + ROUTER_SCALE, (hidden,), "wide")
            yield TensorSpec(prefix + EXPERT_SCALES, (model.experts.count,), "wide")
        yield TensorSpec(prefix + SCALE, (1,), "none")


def common_tensors(model: ModelConfig) -> Iterator[TensorSpec]:
    """Those of Gemma 3n, too. Layers that read the keys of others have no projections for any."""
    hidden = model.hidden_size
    yield TensorSpec(EMBEDDING, (model.vocab_size, hidden), "vocabulary")
    if (inputs := model.per_layer) is not None:
        columns = model.num_layers * inputs.size
        yield TensorSpec(f"{TABLE}.weight", (inputs.vocab_size, columns), "vocabulary")
        yield TensorSpec(f"{PROJECTION}.weight", (columns, hidden), "none")
        yield TensorSpec(f"{PROJECTION_NORM}.weight", (inputs.size,), "none")
    for number, layer in enumerate(model.layers):
        prefix = f"model.layers.{number}."
        for norm in msgspec.structs.astuple(model.norms):
            yield TensorSpec(f"{prefix}{norm}.weight", (hidden,), "none")
        yield from _attention(model, number, layer, prefix + "self_attn.")
        yield from mlp_tensors(prefix + "mlp.", hidden, model.inner(number))
        if inputs is not None:
            yield TensorSpec(f"{prefix}{GATE}.weight", (inputs.size, hidden), "none")
            yield TensorSpec(f"{prefix}{INTO}.weight", (hidden, inputs.size), "none")
            yield TensorSpec(f"{prefix}{NORM_OF_INPUT}.weight", (hidden,), "none")
    yield TensorSpec("model.norm.weight", (hidden,), "none")
    if not model.tied_head:
        yield TensorSpec(HEAD, (model.vocab_size, hidden), "vocabulary")


def _attention(model: ModelConfig, number: int, layer: Layer, prefix: str) -> Iterator[TensorSpec]:
    hidden, head = model.hidden_size, layer.head_dim
    queries, keys = model.num_heads * head, layer.kv_heads * head
    projections = {"q_proj": (queries, "rows")}
    norms = ["q_norm"]
    if layer.keys_of is None:
        sharing = "kv_rows" if layer.kind == "window" else "full_kv_rows"
        projections["k_proj"] = keys, sharing
        if number not in model.values_of_keys:
            projections["v_proj"] = keys, sharing
        norms.append("k_norm")
    for name, (rows, sharing) in projections.items():
        yield TensorSpec(f"{prefix}{name}.weight", (rows, hidden), sharing)
        if model.qkv_bias:
            yield TensorSpec(f"{prefix}{name}.bias", (rows,), sharing)
    for name in norms:
        yield TensorSpec(f"{prefix}{name}.weight", (head,), "none")
    yield TensorSpec(prefix + "o_proj.weight", (hidden, queries), "columns")
    if model.output_bias:
        yield TensorSpec(prefix + "o_proj.bias", (hidden,), "none")


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Two ropes, of which that of the layers that see all tokens turns a quarter of their heads."""
    return _read(path, DEFAULTS | dict(given))


def read_unified(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """12B, which has neither inputs of layers nor experts."""
    return _read(path, DEFAULTS | UNIFIED | dict(given))


def _read(path: Path, given: dict[str, Any]) -> ModelConfig:
    whole, local = rope.by_type(path, given)
    file = config.read(path, given, Gemma4File)
    if file.use_bidirectional_attention == "all":
        refuse(path, "use_bidirectional_attention all is not supported: tokens see those before them")
    if file.rope_scaling:
        refuse(path, "rope_scaling is not supported: rope_parameters has what is of each type of layer")
    config.refuse_other_activation(path, file, "hidden_activation")
    types = _types(path, file)
    file = msgspec.structs.replace(
        file,
        num_key_value_heads=file.num_key_value_heads or file.num_attention_heads,
        head_dim=file.head_dim or file.hidden_size // file.num_attention_heads,
        layer_types=types,
        hidden_act=file.hidden_activation or file.hidden_act,
        rope_scaling=None,
        rope_parameters=whole or ROPE,
    )
    beside = msgspec.structs.replace(file, rope_parameters=local or WINDOW_ROPE)
    window_rope, *_ = rope.read(path, beside, file.head_dim, partial=False)
    layers = _layers(path, file, types)
    [dim] = {layer.head_dim for layer in layers if layer.kind == "full"}
    wide = tuple(file.intermediate_size * (1 if layer.keys_of is None else 2) for layer in layers)
    model = config.model_config(
        path,
        file,
        config.windows_of(path, file, first=0),
        norms=NORMS,
        qk_norm="with_values",
        window_rope=window_rope,
        window_rotary_dim=file.head_dim,
        embedding_scale=file.hidden_size**0.5,
        attention_scale=1.0,
        logit_cap=file.final_logit_softcapping,
        values_of_keys=_full(types) if file.attention_k_eq_v else (),
        inner_of=wide if file.use_double_wide_mlp else (),
        per_layer=_per_layer(path, file),
        experts=_experts(path, file),
    )
    return msgspec.structs.replace(model, layers=layers, rotary_dim=dim)


def _per_layer(path: Path, file: Gemma4File) -> PerLayer | None:
    if not (size := file.hidden_size_per_layer_input):
        return None
    rows, unread = file.vocab_size_per_layer_input, file.pad_token_id or 0
    if unread >= min(rows, file.vocab_size):
        refuse(path, f"pad_token_id {unread} is none of {min(rows, file.vocab_size)} tokens")
    return PerLayer(rows, size, unread)


def _types(path: Path, file: Gemma4File) -> list[str]:
    """What each layer sees; the last one sees all tokens, whatever the file says."""
    types = file.layer_types
    if types is None:
        types = [
            "full_attention" if (number + 1) % PATTERN == 0 else "sliding_attention"
            for number in range(file.num_hidden_layers)
        ]
    config.windows_of(path, msgspec.structs.replace(file, layer_types=types), first=0)  # checks it
    return [*types[:-1], "full_attention"]


def _full(types: list[str]) -> tuple[int, ...]:
    return tuple(number for number, kind in enumerate(types) if kind == "full_attention")


def _layers(path: Path, file: Gemma4File, types: list[str]) -> tuple[Layer, ...]:
    """What each layer keeps, or whose keys and values it reads: of the last own ones of its kind."""
    fewer = file.num_global_key_value_heads if file.attention_k_eq_v else None
    others = Heads(head_dim=file.global_head_dim, num_key_value_heads=fewer)
    own = dict.fromkeys(_full(types), others)
    if file.per_layer_config is not None:
        numbers = {name: int(name) for name in file.per_layer_config if name.isdecimal() and len(name) < 6}
        own = {number: file.per_layer_config[name] for name, number in numbers.items()}
        if len(own) < len(file.per_layer_config) or not own.keys() <= set(range(len(types))):
            refuse(path, f"per_layer_config has other keys than numbers of {len(types)} layers")
    first_reading = len(types) - file.num_kv_shared_layers
    layers: list[Layer] = []
    for number, kind in enumerate(types):
        heads = own.get(number, Heads())
        layer = Layer(
            "full" if kind == "full_attention" else "window",
            heads.num_key_value_heads or file.num_key_value_heads,
            heads.head_dim or file.head_dim,
            None if kind == "full_attention" else file.sliding_window,
            in_order=kind == "full_attention",
        )
        alike = [n for n, other in enumerate(types[:number]) if other == kind]
        if alike and msgspec.structs.replace(layers[alike[0]], keys_of=None) != layer:
            refuse(path, f"per_layer_config: layers {alike[0]} and {number} are both {kind}, and not alike")
        if file.num_attention_heads % layer.kv_heads or layer.head_dim % 2:
            refuse(
                path,
                f"layer {number} has {layer.kv_heads} heads of keys, of {layer.head_dim}: they are even, and "
                f"their number divides {file.num_attention_heads}",
            )
        if number >= first_reading:
            kept = [n for n in alike if n < first_reading]
            if not kept:
                refuse(path, f"num_kv_shared_layers {file.num_kv_shared_layers} leaves no {kind} with keys")
            layer = msgspec.structs.replace(layer, keys_of=kept[-1])
        layers.append(layer)
    if any(layer.kind == "window" and layer.head_dim != file.head_dim for layer in layers):
        refuse(path, f"per_layer_config: layers with a window have heads of {file.head_dim}")
    if any(layer.kind == "window" and layer.kv_heads != file.num_key_value_heads for layer in layers):
        refuse(path, f"per_layer_config: layers with a window have {file.num_key_value_heads} heads of keys")
    return tuple(layers)


def _experts(path: Path, file: Gemma4File) -> Experts | None:
    if not file.enable_moe_block:
        return None
    for name in ("num_experts", "top_k_experts", "moe_intermediate_size"):
        if getattr(file, name) is None:
            refuse(path, f"{name} is missing, and enable_moe_block is set")
    config.refuse_above(path, file, "top_k_experts", "num_experts")
    return Experts(
        count=file.num_experts,
        chosen=file.top_k_experts,
        intermediate_size=file.moe_intermediate_size,
        layers=tuple(range(file.num_hidden_layers)),
        beside_mlp=True,
        normalised=True,
        router=ROUTER,
    )


GEMMA4 = Family(
    "gemma4",
    ("Gemma4ForCausalLM",),
    read,
    tensors,
    within={SEEING: ("gemma4_text",)},
    rearrange=unstacked_rows,
    beside=EARS,
    sees={SEEING: "gemma4_vision"},
)
GEMMA4_UNIFIED = Family(
    "gemma4_unified",
    ("Gemma4UnifiedForCausalLM",),
    read_unified,
    tensors,
    within={SEEING_UNIFIED: ("gemma4_unified_text",)},
    beside=EARS,
    sees={SEEING_UNIFIED: "gemma4_unified_vision"},
)
