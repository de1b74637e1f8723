"""LFM2 (https://arxiv.org/abs/2511.23404): most layers are a short convolution, the others see all tokens.

LFM2-8B-A1B has experts behind its first layers. LFM3 has windows as well, norms on both sides, and a gate for
each head of attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from workers.checkpoints import config, rope
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.convolutions import channels_as_rows
from workers.checkpoints.experts import Experts
from workers.checkpoints.families.llama import attention_tensors, decoder_tensors
from workers.checkpoints.family import Family, TensorSpec, renaming
from workers.checkpoints.files import refuse
from workers.checkpoints.layers import Layer
from workers.checkpoints.model_config import ModelConfig, Norms, ShortConvolution
from workers.checkpoints.rope import Size
from workers.checkpoints.safetensors import Tensor
from workers.checkpoints.stacked import unstacked_rows

DEFAULTS = {"num_key_value_heads": 8, "rope_theta": 1_000_000.0, "tie_word_embeddings": True}
DENSE = DEFAULTS | {"intermediate_size": 12_288}
NORMS = Norms("operator_norm", None, "ffn_norm", None)
NORMS_3 = Norms("operator_norm", "post_operator_norm", "ffn_norm", "post_ffn_norm")
DEFAULTS_3 = {"head_dim": 128, "num_key_value_heads": 4, "tie_word_embeddings": True, "sliding_window": 256}
THETA_3, WINDOW_THETA_3 = 1_000_000.0, 10_000.0
ROPE_3 = {"rope_type": "proportional", "rope_theta": THETA_3, "partial_rotary_factor": 0.5}
KINDS = ("conv", "full_attention")
WINDOWED = "sliding_attention"
LEAST = 1e-6  # is added to the sum of an expert's weights
usual_name = renaming(
    {
        "model.embedding_norm.": "model.norm.",
        ".self_attn.out_proj.": ".self_attn.o_proj.",
        ".self_attn.g_proj.": ".self_attn.gate_proj.",
        ".self_attn.q_layernorm.": ".self_attn.q_norm.",
        ".self_attn.k_layernorm.": ".self_attn.k_norm.",
        ".feed_forward.expert_bias": ".mlp.gate.e_score_correction_bias",
        ".feed_forward.": ".mlp.",
        ".w1.": ".gate_proj.",
        ".w2.": ".down_proj.",
        ".w3.": ".up_proj.",
    }
)


class Lfm2File(ConfigFile, kw_only=True):
    """The keys of LFM2's `config.json`."""

    hidden_act: Literal["silu", "swish"] = "silu"  # others are read by nobody
    norm_eps: Annotated[float, Meta(ge=0)] = 1e-5
    conv_L_cache: Annotated[int, Meta(ge=2, le=64)] = 3
    conv_bias: Literal[False] = False
    full_attn_idxs: list[int] | None = None
    tie_embedding: bool | None = None  # goes before `tie_word_embeddings`
    # what the MLP's size is, where that is not `intermediate_size` itself
    block_ff_dim: Size | None = None
    block_auto_adjust_ff_dim: bool = True
    block_ffn_dim_multiplier: Annotated[float, Meta(gt=0, le=1000)] | None = 1.0
    block_multiple_of: Size = 256
    block_use_swiglu: Literal[True] = True
    use_pos_enc: Literal[True] = True
    block_norm_eps: Any = None  # nobody's, as the next ones
    block_use_xavier_init: Any = None
    conv_use_xavier_init: Any = None


class Lfm2MoeFile(Lfm2File, kw_only=True):
    """The keys of one with experts."""

    num_experts: Size = 32
    num_experts_per_tok: Size = 4
    moe_intermediate_size: Size = 1792
    num_dense_layers: Annotated[int, Meta(ge=0)] = 2
    use_expert_bias: bool = True
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0


class Lfm3File(ConfigFile, kw_only=True):
    """The keys of LFM3's."""

    hidden_act: Literal["silu", "swish"] = "silu"
    norm_eps: Annotated[float, Meta(ge=0)] = 1e-5
    conv_L_cache: Annotated[int, Meta(ge=2, le=64)] = 7
    conv_bias: Literal[False] = False
    use_sandwich_norm: bool = True
    use_attention_gate: bool = True


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """An MLP is two thirds of what the file says, unless it says that it is not."""
    file = config.read(path, DENSE | dict(given), Lfm2File)
    inner = file.block_ff_dim or file.intermediate_size
    if file.block_auto_adjust_ff_dim:
        inner = int(2 * inner / 3)
        if file.block_ffn_dim_multiplier is not None:
            inner, unit = int(file.block_ffn_dim_multiplier * inner), file.block_multiple_of
            inner = -(-inner // unit) * unit
    return _model(path, msgspec.structs.replace(file, intermediate_size=inner))


def read_moe(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """The first layers have an MLP, of the size that the file says."""
    file = config.read(path, DEFAULTS | dict(given), Lfm2MoeFile)
    config.refuse_above(path, file, "num_experts_per_tok", "num_experts")
    experts = Experts(
        count=file.num_experts,
        chosen=file.num_experts_per_tok,
        intermediate_size=file.moe_intermediate_size,
        layers=tuple(range(file.num_dense_layers, file.num_hidden_layers)),
        scoring="sigmoid",
        normalised=file.norm_topk_prob,
        least=LEAST,
        corrected=file.use_expert_bias,
        scale=file.routed_scaling_factor,
    )
    return _model(path, file, experts=experts if experts.layers else None)


def _model(path: Path, file: Lfm2File, **changes: Any) -> ModelConfig:
    count, kinds = file.num_hidden_layers, file.layer_types
    if kinds is None:
        attending = range(count) if file.full_attn_idxs is None else file.full_attn_idxs
        kinds = [KINDS[number in attending] for number in range(count)]
    if len(kinds) != count or set(kinds) - {*KINDS}:
        refuse(path, f"layer_types is no list of {' and '.join(KINDS)} for {count} layers")
    if KINDS[1] not in kinds:
        refuse(path, "layer_types: no layer is full_attention, which is not supported")
    tied = file.tie_word_embeddings if file.tie_embedding is None else file.tie_embedding
    convolution = ShortConvolution(file.hidden_size, file.conv_L_cache)
    model = config.model_config(
        path,
        msgspec.structs.replace(
            file, rms_norm_eps=file.norm_eps, tie_word_embeddings=tied, attention_bias=False
        ),
        [None] * count,
        norms=NORMS,
        qk_norm="heads",
        convolution=convolution if KINDS[0] in kinds else None,
        **changes,
    )
    return _with_states(model, kinds)


def read_3(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Of every four layers one sees all tokens, and one has a window, unless the file says otherwise."""
    given = DEFAULTS_3 | dict(given)
    if "rms_norm_eps" in given:  # another name of it, which goes before
        given["norm_eps"] = given.pop("rms_norm_eps")
    whole, local = rope.by_type(path, given)
    file = config.read(path, given, Lfm3File)
    count, kinds = file.num_hidden_layers, file.layer_types
    if kinds is None:
        of_four = [KINDS[0], KINDS[0], KINDS[1], KINDS[0]]
        kinds = [WINDOWED if n and n % 4 == 0 else of_four[n % 4] for n in range(count)]
    if len(kinds) != count or set(kinds) - {*KINDS, WINDOWED}:
        refuse(path, f"layer_types is no list of {', '.join(KINDS)} and {WINDOWED} for {count} layers")
    if KINDS[1] not in kinds:
        refuse(path, "layer_types: no layer is full_attention, which is not supported")
    if WINDOWED in kinds and file.sliding_window is None:
        refuse(path, "sliding_window is missing, and some layers have one")
    beside = msgspec.structs.replace(file, rope_parameters={"rope_theta": WINDOW_THETA_3} | local)
    window_rope, *_ = rope.read(path, beside, file.head_dim, partial=False)
    whole = {"rope_theta": THETA_3} | whole if whole else ROPE_3
    file = msgspec.structs.replace(file, rms_norm_eps=file.norm_eps, rope_parameters=whole)
    convolution = ShortConvolution(file.hidden_size, file.conv_L_cache)
    model = config.model_config(
        path,
        file,
        [file.sliding_window if kind == WINDOWED else None for kind in kinds],
        norms=NORMS_3 if file.use_sandwich_norm else NORMS,
        qk_norm="heads",
        attention_gate="heads" if file.use_attention_gate else "none",
        window_rope=window_rope,
        convolution=convolution if KINDS[0] in kinds else None,
    )
    return _with_states(model, kinds)


def _with_states(model: ModelConfig, kinds: list[str]) -> ModelConfig:
    """The same with layers that are a convolution."""
    if model.convolution is None:
        return model
    state = Layer("state", state_size=model.convolution.state_size)
    layers = [state if kind == KINDS[0] else own for kind, own in zip(kinds, model.layers, strict=True)]
    return msgspec.structs.replace(model, layers=tuple(layers))


def tensors(model: ModelConfig) -> Iterator[TensorSpec]:
    """Those of a decoder, with a convolution in place of attention where a layer keeps a state."""
    return decoder_tensors(model, attention_tensors, _convolution_tensors)


def _convolution_tensors(model: ModelConfig, layer: str) -> Iterator[TensorSpec]:
    prefix, hidden, convolution = layer + "conv.", model.hidden_size, model.convolution
    yield TensorSpec(prefix + "in_proj.weight", (3 * convolution.channels, hidden), "rows")
    yield TensorSpec(prefix + "conv.weight", (convolution.channels, convolution.kernel), "plain_rows")
    yield TensorSpec(prefix + "out_proj.weight", (hidden, convolution.channels), "columns")


def rearranged(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Experts one by one, and each channel's weights in a convolution as a row."""
    return channels_as_rows(unstacked_rows(stored))


LFM2 = Family("lfm2", ("Lfm2ForCausalLM",), read, tensors, usual_name=usual_name, rearrange=rearranged)
LFM2_MOE = Family(
    "lfm2_moe", ("Lfm2MoeForCausalLM",), read_moe, tensors, usual_name=usual_name, rearrange=rearranged
)
LFM3 = Family("lfm3", ("Lfm3ForCausalLM",), read_3, tensors, usual_name=usual_name, rearrange=rearranged)
