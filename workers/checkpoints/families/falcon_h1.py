"""Falcon-H1 (https://arxiv.org/abs/2507.22448): in each layer Mamba-2 stands beside attention, and what both
give is added; with multipliers, which μP has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from workers.checkpoints import config, mamba
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.convolutions import channels_as_rows
from workers.checkpoints.families.llama import attention_tensors, decoder_tensors
from workers.checkpoints.family import Family, TensorSpec, renaming
from workers.checkpoints.files import refuse
from workers.checkpoints.mamba import Limit
from workers.checkpoints.model_config import ModelConfig, Multipliers, Norms
from workers.checkpoints.rope import Size

DEFAULTS = {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "max_position_embeddings": 8192}
NORMS = Norms(before_mlp="pre_ff_layernorm")
Positive = Annotated[float, Meta(gt=0)]


class FalconH1File(ConfigFile, kw_only=True):
    """The keys of its `config.json`."""

    mamba_d_ssm: Size | None = 1024  # elements of all heads
    mamba_expand: Annotated[float, Meta(gt=0, le=64)] = 2  # of `hidden_size`, where that is not there
    mamba_n_heads: Size = 128
    mamba_d_head: Size | Literal["auto"] | None = "auto"
    mamba_n_groups: Size = 1
    mamba_d_state: Size = 256
    mamba_d_conv: Annotated[int, Meta(ge=1, le=64)] = 4
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False
    projectors_bias: bool = False  # the same of what goes out
    mamba_rms_norm: bool = False
    mamba_norm_before_gate: bool = True
    mamba_use_mlp: Literal[True] = True
    attn_layer_indices: None = None
    attention_bias: Literal[False] = False
    time_step_limit: list[Limit] | None = None
    num_logits_to_keep: Any = None
    # what is multiplied
    embedding_multiplier: Positive = 1.0
    lm_head_multiplier: Positive = 1.0
    attention_in_multiplier: Positive = 1.0
    attention_out_multiplier: Positive = 1.0
    key_multiplier: Positive = 1.0
    ssm_in_multiplier: Positive = 1.0
    ssm_out_multiplier: Positive = 1.0
    ssm_multipliers: Annotated[list[Positive], Meta(min_length=5, max_length=5)] | None = None
    mlp_multipliers: Annotated[list[Positive], Meta(min_length=2, max_length=2)] | None = None


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """All layers are alike. What is multiplied before a product is so behind it, which is the same."""
    file = config.read(path, DEFAULTS | dict(given), FalconH1File)
    if file.mamba_proj_bias != file.projectors_bias:
        refuse(path, "mamba_proj_bias is not projectors_bias, which is not supported")
    if file.mamba_proj_bias and file.ssm_in_multiplier != 1:
        refuse(path, f"ssm_in_multiplier {file.ssm_in_multiplier} is not supported beside a bias")
    inner = file.mamba_d_ssm or int(file.mamba_expand * file.hidden_size)
    norm = "before_gates" if file.mamba_norm_before_gate else "behind_gates"
    state = mamba.of_heads(
        path,
        file,
        inner,
        norm=norm if file.mamba_rms_norm else "none",
        scales=tuple(each * file.ssm_in_multiplier for each in file.ssm_multipliers or [1.0] * 5),
    )
    gates, down = file.mlp_multipliers or (1.0, 1.0)
    before = file.attention_in_multiplier
    model = config.model_config(
        path,
        file,
        [None] * file.num_hidden_layers,
        norms=NORMS,
        mlp_bias=file.mlp_bias,
        mamba=state,
        embedding_scale=file.embedding_multiplier,
        logit_scale=file.lm_head_multiplier,
        multipliers=Multipliers(
            attention=before * file.attention_out_multiplier,
            state=file.ssm_out_multiplier,
            gates=gates,
            mlp=down,
        ),
    )
    scale = before * before * file.key_multiplier * model.head_dim**-0.5
    own = mamba.layer(state)
    beside = {key: getattr(own, key) for key in ("state_size", "state_groups", "group_size")}
    return msgspec.structs.replace(
        model,
        attention_scale=scale,
        layers=tuple(msgspec.structs.replace(layer, **beside) for layer in model.layers),
    )


def tensors(model: ModelConfig) -> Iterator[TensorSpec]:
    """Those of a decoder, with Mamba-2 beside attention in each layer."""
    return decoder_tensors(model, _both_tensors)


def _both_tensors(model: ModelConfig, layer: str) -> Iterator[TensorSpec]:
    yield from attention_tensors(model, layer)
    yield from mamba.tensors(model, layer + "mamba.")


FALCON_H1 = Family(
    "falcon_h1",
    ("FalconH1ForCausalLM",),
    read,
    tensors,
    usual_name=renaming({"model.final_layernorm.": "model.norm.", ".feed_forward.": ".mlp."}),
    rearrange=channels_as_rows,
)
