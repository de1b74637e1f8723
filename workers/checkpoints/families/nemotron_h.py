"""Nemotron-H, Nemotron Nano 2 and Nemotron 3 Nano: each layer is Mamba-2, attention, an MLP or experts alone.

No layer has positions. MLPs and experts have no gates.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from workers.checkpoints import config, mamba
from workers.checkpoints.convolutions import channels_as_rows
from workers.checkpoints.experts import Experts
from workers.checkpoints.families import glm_moe
from workers.checkpoints.families.glm_moe import RoutedFile
from workers.checkpoints.families.llama import (
    EMBEDDING,
    HEAD,
    attention_tensors,
    expert_tensors,
    mlp_tensors,
)
from workers.checkpoints.family import MTP_HEAD, Family, TensorSpec, in_causal
from workers.checkpoints.files import refuse
from workers.checkpoints.layers import Layer
from workers.checkpoints.mamba import Limit
from workers.checkpoints.model_config import Mamba, ModelConfig
from workers.checkpoints.rope import Size

DEFAULTS = {
    "vocab_size": 131_072,
    "hidden_size": 4096,
    "intermediate_size": 21_504,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 7688,
}
HEAD_DIM = 128
PATTERN = {"M": "state", "*": "full", "-": "mlp", "E": "experts"}  # of `hybrid_override_pattern`
KINDS = {
    "mamba": "state",
    "attention": "full",
    "mlp": "mlp",
    "moe": "experts",
    # as transformers writes them
    "linear_attention": "state",
    "full_attention": "full",
}
# Where the parts of a layer, which files call its mixer, are called as in other families.
_MIXER = re.compile(
    r"\.mixer\.(?=(q_proj|k_proj|v_proj|o_proj)|(in_proj|conv1d|dt_bias|A_log|D|norm|out_proj)\b)?"
)


class NemotronHFile(RoutedFile, kw_only=True):
    """The keys of its `config.json`."""

    hybrid_override_pattern: str | None = None
    layers_block_type: list[str] | None = None
    layer_norm_epsilon: Annotated[float, Meta(ge=0)] = 1e-5
    rms_norm_eps: Annotated[float, Meta(ge=0)] | None = None  # the same, where it is there
    norm_eps: Annotated[float, Meta(ge=0)] | None = None
    attention_head_dim: Size | None = None  # `head_dim`, as older files call it
    mlp_hidden_act: str = "relu2"
    attention_bias: Literal[False] = False
    use_bias: bool = False
    residual_in_fp32: Literal[False] = False
    moe_latent_size: None = None
    moe_shared_expert_intermediate_size: Annotated[int, Meta(ge=0)] = 7688
    n_shared_experts: Literal[1] | None = 1
    mamba_num_heads: Size = 128
    mamba_head_dim: Size = 64
    mamba_hidden_act: Literal["silu", "swish"] = "silu"
    mamba_proj_bias: bool = False  # `use_bias` says what there is
    n_groups: Size = 8
    ssm_state_size: Size = 128
    conv_kernel: Annotated[int, Meta(ge=1, le=64)] = 4
    use_conv_bias: bool = True
    time_step_limit: list[Limit] | None = None
    # the same of old files; each holds where it stands
    mamba_n_groups: Size | None = None
    mamba_d_conv: Annotated[int, Meta(ge=1, le=64)] | None = None
    mamba_conv_bias: bool | None = None
    mamba_dt_limit: list[Limit] | None = None
    # what only says how weights began, or how it is computed, or nothing of the layers that are read
    rescale_prenorm_residual: Any = None
    moe_shared_expert_overlap: Any = None
    mtp_layers_block_type: Any = None
    mtp_hybrid_override_pattern: Any = None
    num_logits_to_keep: Any = None
    rope_theta: Any = None
    partial_rotary_factor: Any = None


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """What each layer is the file says in a list, or in a pattern.

    Steps keep to `time_step_limit`, as in the code that the models came with. `time_step_min` says how biases
    began: transformers has prompts keep to it, and no token behind them.
    """
    given = DEFAULTS | dict(given)
    kinds = _kinds(path, given)
    file = config.read(path, given | {"num_hidden_layers": len(kinds)}, NemotronHFile)
    for key in ("rms_norm_eps", "norm_eps"):
        if getattr(file, key) not in (None, file.layer_norm_epsilon):
            refuse(path, f"{key} is not layer_norm_epsilon, which is {file.layer_norm_epsilon}")
    config.refuse_other_activation(path, file, "mlp_hidden_act")
    if file.sliding_window is not None:
        refuse(path, f"sliding_window {file.sliding_window} is not supported: layers see all tokens")
    if file.attention_head_dim not in (None, file.head_dim or file.attention_head_dim):
        refuse(path, f"attention_head_dim is not head_dim, which is {file.head_dim}")
    limit = "time_step_limit" if file.mamba_dt_limit is None else "mamba_dt_limit"
    state = mamba.checked(
        path,
        Mamba(
            heads=file.mamba_num_heads,
            head_dim=file.mamba_head_dim,
            groups=file.mamba_n_groups or file.n_groups,
            state_dim=file.ssm_state_size,
            kernel=file.mamba_d_conv or file.conv_kernel,
            conv_bias=file.use_conv_bias if file.mamba_conv_bias is None else file.mamba_conv_bias,
            bias=file.use_bias,
            limits=mamba.limits(path, limit, getattr(file, limit)),
        ),
    )
    plain = msgspec.structs.replace(
        file,
        rms_norm_eps=file.layer_norm_epsilon,
        hidden_act=file.mlp_hidden_act,
        head_dim=file.head_dim or file.attention_head_dim or HEAD_DIM,
        rope_theta=None,
        partial_rotary_factor=None,
    )
    model = config.model_config(
        path,
        plain,
        [None] * len(kinds),
        single=True,
        gates=False,
        mlp_bias=file.mlp_bias,
        unrotated=tuple(range(len(kinds))),
        mamba=state if "state" in kinds else None,
        experts=_experts(path, file, kinds),
    )
    own, nothing = mamba.layer(state), Layer("nothing")
    layers = tuple({"full": model.layers[0], "state": own}.get(kind, nothing) for kind in kinds)
    return msgspec.structs.replace(model, layers=layers)


def _kinds(path: Path, given: Mapping[str, Any]) -> list[str]:
    """What each layer is: a state, attention (`full`), an MLP or experts."""
    key, kinds = mamba.said_of_kinds(path, given, KINDS, None)
    pattern = given.get("hybrid_override_pattern")
    if pattern is not None or not kinds:
        if not isinstance(pattern, str) or not {*pattern} <= {*PATTERN}:
            refuse(path, f"hybrid_override_pattern {pattern} is no row of {', '.join(PATTERN)}")
        in_pattern = [PATTERN[each] for each in pattern]
        if kinds not in ([], in_pattern):
            refuse(path, f"{key} and hybrid_override_pattern disagree on what layers are")
        kinds = in_pattern
    if "full" not in kinds:
        refuse(path, "no layer is attention, which is not supported")
    return kinds


def _experts(path: Path, file: NemotronHFile, kinds: list[str]) -> Experts | None:
    """Those of DeepSeek V3, without gates, and beside them one MLP for every token."""
    layers = tuple(number for number, kind in enumerate(kinds) if kind == "experts")
    if not layers:
        return None
    if file.mlp_bias:
        refuse(path, "mlp_bias is not supported where there are experts")
    plain = msgspec.structs.replace(file, mlp_layer_types=None, first_k_dense_replace=0)
    return msgspec.structs.replace(
        glm_moe.scored_by_sigmoid(path, plain),
        layers=layers,
        shared_size=file.moe_shared_expert_intermediate_size,
    )


def tensors(model: ModelConfig) -> Iterator[TensorSpec]:
    """Of each layer a norm, and the one part that it is."""
    hidden = model.hidden_size
    yield TensorSpec(EMBEDDING, (model.vocab_size, hidden), "vocabulary")
    for number, layer in enumerate(model.layers):
        prefix = f"model.layers.{number}."
        yield TensorSpec(prefix + "norm.weight", (hidden,), "none")
        if layer.kind == "full":
            yield from attention_tensors(model, prefix)
        elif layer.kind == "state":
            yield from mamba.tensors(model, prefix + "mamba.")
        elif model.experts is not None and number in model.experts.layers:
            yield from expert_tensors(prefix + "mlp.", hidden, model.experts, gates=False)
        else:
            yield from mlp_tensors(
                prefix + "mlp.", hidden, model.intermediate_size, model.mlp_bias, gates=False
            )
    yield TensorSpec("model.norm.weight", (hidden,), "none")
    if not model.tied_head:
        yield TensorSpec(HEAD, (model.vocab_size, hidden), "vocabulary")


def usual_name(name: str) -> str:
    """As other families call it."""
    name = in_causal(name.replace("backbone.", "model."))
    name = name.replace("model.embeddings.", "model.embed_tokens.").replace("model.norm_f.", "model.norm.")

    def part(found: re.Match[str]) -> str:
        return ".self_attn." if found[1] else ".mamba." if found[2] else ".mlp."

    return _MIXER.sub(part, name)


NEMOTRON_H = Family(
    "nemotron_h",
    ("NemotronHForCausalLM",),
    read,
    tensors,
    usual_name=usual_name,
    rearrange=channels_as_rows,
    beside={"mtp.": MTP_HEAD},
)
