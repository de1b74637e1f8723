"""Qwen3-Next (80B-A3B): of four layers three keep a state, and the fourth sees all tokens through a gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from workers.checkpoints import config, within
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.convolutions import channels_as_rows
from workers.checkpoints.experts import Experts
from workers.checkpoints.families import qwen3_moe
from workers.checkpoints.families.llama import attention_tensors, decoder_tensors
from workers.checkpoints.families.qwen3_moe import Qwen3MoeFile
from workers.checkpoints.family import MTP_HEAD, Family, TensorSpec
from workers.checkpoints.files import refuse
from workers.checkpoints.layers import Layer
from workers.checkpoints.model_config import DeltaNet, ModelConfig
from workers.checkpoints.rope import Size
from workers.checkpoints.safetensors import Tensor
from workers.checkpoints.stacked import unstacked_rows

# Files leave out what is as in the configuration class of transformers.
SHARED_DEFAULTS = {
    "max_position_embeddings": 32_768,
    "partial_rotary_factor": 0.25,
    "head_dim": 256,
    "num_attention_heads": 16,
}
DEFAULTS = SHARED_DEFAULTS | {
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "moe_intermediate_size": 512,
    "norm_topk_prob": True,
}
INTERVAL = 4  # every fourth layer sees all tokens, where the file says nothing
KINDS = ("linear_attention", "full_attention")
MTP = {"mtp.": MTP_HEAD}
DELTA_OUTPUT = "linear_attn.out_proj.weight"
# of rotary positions in three directions: for text all three are the same one
VISION_KEYS = ("mrope_section", "mrope_interleaved")

# How the tensors of that head begin, and what they usually begin with behind the name of their layer.
MTP_NAMES = {
    "mtp.layers.0.": "",
    "mtp.fc.": "eh_proj.",
    "mtp.pre_fc_norm_embedding.": "enorm.",
    "mtp.pre_fc_norm_hidden.": "hnorm.",
    "mtp.norm.": "shared_head.norm.",
}


class HybridFile(Qwen3MoeFile, kw_only=True):
    """The keys of a `config.json` with layers of both kinds, with experts or without."""

    full_attention_interval: Size | None = None
    linear_conv_kernel_dim: Size = 4
    linear_key_head_dim: Size = 128
    linear_value_head_dim: Size = 128
    linear_num_key_heads: Size = 16
    linear_num_value_heads: Size = 32
    attn_output_gate: bool = True
    output_gate_type: str = "silu"  # of the layers with a state
    mtp_num_hidden_layers: int = 0  # these are never read
    mtp_use_dedicated_embeddings: bool = False
    shared_expert_intermediate_size: Size = 512


def tensors(model: ModelConfig) -> Iterator[TensorSpec]:
    """Those of a decoder, with a Gated DeltaNet in place of attention where a layer keeps a state."""
    return decoder_tensors(model, attention_tensors, _delta_tensors)


def _delta_tensors(model: ModelConfig, layer: str) -> Iterator[TensorSpec]:
    """Ranks have equal numbers of key heads, and the value heads that belong to them.

    What makes decay and beta is never in blocks, nor is the convolution: they are a hundredth of the layer,
    and all that a state keeps is multiplied with them at every token. With random weights, logits were off by
    5 % for the former in 4 bits, and by 20 % for the latter, as they were for all other inputs.
    """
    prefix, hidden, delta = layer + "linear_attn.", model.hidden_size, model.delta
    heads, values = delta.value_heads, delta.value_heads * delta.value_dim
    keys = delta.key_heads * delta.key_dim
    parts = (("q", keys), ("k", keys), ("v", values)) if delta.apart else (("qkv", delta.channels),)
    if delta.grouped:
        yield TensorSpec(prefix + "in_proj_qkvz.weight", (delta.channels + values, hidden), "rows")
        yield TensorSpec(prefix + "in_proj_ba.weight", (2 * heads, hidden), "plain_rows")
    else:
        for name, channels in parts:
            projection = f"{name}_proj" if delta.apart else "in_proj_qkv"
            yield TensorSpec(f"{prefix}{projection}.weight", (channels, hidden), "rows")
        yield TensorSpec(prefix + "in_proj_z.weight", (values, hidden), "rows")
        yield TensorSpec(prefix + "in_proj_b.weight", (heads, hidden), "plain_rows")
        yield TensorSpec(prefix + "in_proj_a.weight", (heads, hidden), "plain_rows")
    for name, channels in parts:
        convolution = f"{name}_conv1d" if delta.apart else "conv1d"
        yield TensorSpec(f"{prefix}{convolution}.weight", (channels, delta.kernel), "plain_rows")
    yield TensorSpec(prefix + "dt_bias", (heads,), "wide_rows")
    yield TensorSpec(prefix + "A_log", (heads,), "wide_rows")
    yield TensorSpec(prefix + "norm.weight", (delta.value_dim,), "none")
    yield TensorSpec(layer + DELTA_OUTPUT, (hidden, values), "columns")


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """What a key head and its value heads are made of stands together in the files."""
    file = config.read(path, DEFAULTS | without_vision(given), HybridFile)
    return hybrid(path, file, experts=experts_of(path, file), grouped=True)


def without_vision(given: Mapping[str, Any]) -> dict[str, Any]:
    """The same, whose rotary positions are those of text."""
    ropes = {
        key: {name: value for name, value in given[key].items() if name not in VISION_KEYS}
        for key in ("rope_parameters", "rope_scaling")
        if isinstance(given.get(key), dict)
    }
    return dict(given) | ropes


def experts_of(path: Path, file: HybridFile) -> Experts | None:
    """Those of a Qwen3, beside an MLP for every token, which has a gate."""
    experts = qwen3_moe.experts_of(path, file)
    return experts and msgspec.structs.replace(
        experts,
        shared_size=file.shared_expert_intermediate_size,
        shared_name="shared_expert",
        shared_gate=True,
    )


def hybrid(path: Path, file: HybridFile, *, experts: Experts | None, grouped: bool) -> ModelConfig:
    """What a file says of a model with layers of both kinds.

    Raises:
        CortexError: it contradicts itself, or asks for something that is not done here.
    """
    if not file.attn_output_gate:
        refuse(path, "attn_output_gate false is not supported: attention has a gate")
    if file.output_gate_type not in ("silu", "swish"):
        refuse(path, f"output_gate_type {file.output_gate_type} is not supported; there is silu")
    kinds = layer_kinds(path, file, file.full_attention_interval)
    model = config.model_config(
        path,
        file,
        [None] * file.num_hidden_layers,
        partial=True,
        qk_norm="heads",
        norm_offset=1.0,
        attention_gate="within",
        delta=delta_net(path, file, grouped=grouped),
        experts=experts,
    )
    return with_states(model, kinds)


def delta_net(path: Path, file: ConfigFile, **more: Any) -> DeltaNet:
    """What the keys say that begin with `linear_`.

    Args:
        more: what else the family says of it.
    """
    if file.hidden_act not in ("silu", "swish"):
        refuse(path, f"hidden_act {file.hidden_act} is not supported; there is silu")
    if file.linear_num_value_heads % file.linear_num_key_heads:
        refuse(
            path,
            f"linear_num_key_heads {file.linear_num_key_heads} does not divide "
            f"linear_num_value_heads {file.linear_num_value_heads}",
        )
    if file.linear_conv_kernel_dim < 2:
        refuse(path, "linear_conv_kernel_dim 1 is not supported: the convolution sees the tokens before")
    return DeltaNet(
        key_heads=file.linear_num_key_heads,
        value_heads=file.linear_num_value_heads,
        key_dim=file.linear_key_head_dim,
        value_dim=file.linear_value_head_dim,
        kernel=file.linear_conv_kernel_dim,
        **more,
    )


def with_states(model: ModelConfig, kinds: list[str]) -> ModelConfig:
    """The same, with a state in the layers of that kind."""
    state = Layer("state", state_size=model.delta.state_size)
    layers = [state if kind == KINDS[0] else full for kind, full in zip(kinds, model.layers, strict=True)]
    return msgspec.structs.replace(model, layers=tuple(layers))


def layer_kinds(path: Path, file: ConfigFile, every: int | None) -> list[str]:
    """What each layer is, which a file may say in two ways that have to agree.

    Args:
        every: so many'th layer sees all tokens; None: the file does not say.
    """
    count = file.num_hidden_layers
    by_interval = [KINDS[(number + 1) % (every or INTERVAL) == 0] for number in range(count)]
    kinds = file.layer_types
    if kinds is None:
        kinds = by_interval
    elif len(kinds) != count:
        refuse(path, f"layer_types has {len(kinds)} entries, and there are {count} layers")
    for number, kind in enumerate(kinds):
        if kind not in KINDS:
            refuse(path, f"layer_types: layer {number} is {kind}, and there are {' and '.join(KINDS)}")
        if every is not None and kind != by_interval[number]:
            refuse(
                path,
                f"layer_types and full_attention_interval {every} disagree: layer {number} is {kind} by the "
                f"one and {by_interval[number]} by the other",
            )
    if KINDS[1] not in kinds:
        refuse(path, "layer_types: no layer is full_attention, which is not supported")
    return kinds


def rearrange(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Experts one by one, and each channel's weights in a convolution as a row; of the language model."""
    return channels_as_rows(unstacked_rows(within.tensors(stored)))


def mtp(stored: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """The tensors of `mtp.*` as those of layer `number`."""

    def usual(name: str) -> str:
        for begins, usually in MTP_NAMES.items():
            if name.startswith(begins):
                return f"model.layers.{number}.{usually}{name.removeprefix(begins)}"
        return name

    return {usual(name): tensor for name, tensor in stored.items()}


QWEN3_NEXT = Family(
    "qwen3_next", ("Qwen3NextForCausalLM",), read, tensors, rearrange=rearrange, beside=MTP, mtp=mtp
)
