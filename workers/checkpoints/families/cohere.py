"""Cohere's Command R and Aya: the MLP stands beside attention, on one layer norm without a bias.

Neighbouring dimensions turn together. Of the second kind (Command R7B, Command A) three of four layers have
windows, and the fourth has no positions. One of that kind has experts, behind some layers with an MLP, whose
windows have a pattern of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from workers.checkpoints import config
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.experts import Experts
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import ModelConfig, Norms
from workers.checkpoints.rope import Size

DEFAULTS = {"tie_word_embeddings": True}
DEFAULTS_1 = DEFAULTS | {"rope_theta": 500_000.0}
DEFAULTS_2 = DEFAULTS | {"sliding_window": 4096}
NORMS = Norms("input_layernorm", None, None, None)
PATTERN_2 = 4
DEFAULTS_MOE = DEFAULTS_2 | {"head_dim": 128}


class CohereFile(ConfigFile, kw_only=True):
    """The keys of Cohere's `config.json`."""

    logit_scale: Annotated[float, Meta(gt=0)] = 0.0625
    layer_norm_eps: Annotated[float, Meta(ge=0)] = 1e-5
    use_qk_norm: Literal[False] | None = None
    # what all of them are
    use_gated_activation: Literal[True] = True
    use_parallel_block: Literal[True] = True
    use_embedding_sharing: Literal[True] = True
    use_parallel_embedding: Any = None
    position_embedding_type: Literal["rope_gptj"] = "rope_gptj"
    rotary_pct: Annotated[float, Meta(ge=1, le=1)] | None = None


class Cohere2File(CohereFile, kw_only=True):
    """The keys of the second kind's."""

    sliding_window_pattern: Size | None = None  # every so many'th layer sees all tokens
    written_pattern: Size | None = msgspec.field(default=None, name="_sliding_window_pattern")  # the same
    layer_switch: Any = None  # which is said by that as well, or by `layer_types`
    order_of_interleaved_layers: Literal["local_attn_first"] = "local_attn_first"


class Cohere2MoeFile(Cohere2File, kw_only=True):
    """The keys of one with experts."""

    rms_norm_eps: Annotated[float, Meta(ge=0)] | None = None  # of norms without a mean, where there are such
    num_experts: Size = 8
    num_experts_per_tok: Size = 2
    num_shared_experts: Annotated[int, Meta(ge=0)] = 0
    shared_expert_combination_strategy: Literal["average", "sum"] = "average"
    expert_selection_fn: Literal["softmax", "sigmoid"] = "softmax"
    norm_topk_prob: bool = True
    mlp_layer_types: list[str] | None = None
    first_k_dense_replace: Annotated[int, Meta(ge=0, le=10_000)] = 0
    prefix_dense_sliding_window_pattern: Size = 1
    prefix_dense_intermediate_size: Size | None = None
    num_nextn_predict_layers: Any = None  # of heads that predict several tokens
    router_aux_loss_coef: Any = None  # of training


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """No layer has a window."""
    file = config.read(path, DEFAULTS_1 | dict(given), CohereFile)
    return _model(path, file, [None] * file.num_hidden_layers)


def read_2(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """The layers that see all tokens have no positions."""
    file = config.read(path, DEFAULTS_2 | dict(given), Cohere2File)
    count, every = file.num_hidden_layers, file.sliding_window_pattern or file.written_pattern or PATTERN_2
    if file.layer_types is None:
        types = ["sliding_attention" if (n + 1) % every else "full_attention" for n in range(count)]
        file = msgspec.structs.replace(file, layer_types=types)
    windows = config.windows_of(path, file, first=0)
    unrotated = tuple(number for number in range(count) if windows[number] is None)
    return _model(path, file, windows, unrotated=unrotated)


def read_moe(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """The first layers, with an MLP, have positions where all of them see all tokens."""
    file = config.read(path, DEFAULTS_MOE | dict(given), Cohere2MoeFile)
    config.refuse_above(path, file, "num_experts_per_tok", "num_experts")
    count, first, before = (
        file.num_hidden_layers,
        file.first_k_dense_replace,
        file.prefix_dense_sliding_window_pattern,
    )
    kinds = file.mlp_layer_types or ["dense" if n < first else "sparse" for n in range(count)]
    if len(kinds) != count or not {*kinds} <= {"dense", "sparse"}:
        refuse(path, "mlp_layer_types is no list of dense and sparse, one for each layer")
    if file.layer_types is None:
        every = file.sliding_window_pattern or file.written_pattern or PATTERN_2
        places = [(n + 1) % before if n < first else (n - first + 1) % every for n in range(count)]
        types = ["sliding_attention" if place else "full_attention" for place in places]
        file = msgspec.structs.replace(file, layer_types=types)
    windows = config.windows_of(path, file, first=0)
    turned = [
        window is not None or (kind == "dense" and before == 1)
        for window, kind in zip(windows, kinds, strict=True)
    ]
    sigmoid = file.expert_selection_fn == "sigmoid"
    experts = Experts(
        count=file.num_experts,
        chosen=file.num_experts_per_tok,
        intermediate_size=file.intermediate_size,
        layers=tuple(number for number in range(count) if kinds[number] == "sparse"),
        scoring="sigmoid_of_chosen" if sigmoid else "softmax",
        normalised=file.norm_topk_prob or not sigmoid,
        shared_size=file.num_shared_experts * file.intermediate_size,
        averaged=file.num_shared_experts > 0 and file.shared_expert_combination_strategy == "average",
    )
    plain = file.rms_norm_eps is not None
    model = _model(
        path,
        msgspec.structs.replace(
            file, intermediate_size=file.prefix_dense_intermediate_size or file.intermediate_size
        ),
        windows,
        unrotated=tuple(number for number in range(count) if not turned[number]),
        experts=experts if experts.layers else None,
    )
    return msgspec.structs.replace(model, layer_norm=False, norm_eps=file.rms_norm_eps) if plain else model


def _model(path: Path, file: CohereFile, windows: list[int | None], **changes: Any) -> ModelConfig:
    return config.model_config(
        path,
        msgspec.structs.replace(file, rms_norm_eps=file.layer_norm_eps),
        windows,
        interleaved=True,
        layer_norm=True,
        norm_bias=False,
        norms=NORMS,
        parallel=True,
        logit_scale=file.logit_scale,
        **changes,
    )


COHERE = Family("cohere", ("CohereForCausalLM",), read, dense_tensors)
COHERE2 = Family("cohere2", ("Cohere2ForCausalLM",), read_2, dense_tensors)
COHERE2_MOE = Family("cohere2_moe", ("Cohere2MoeForCausalLM",), read_moe, dense_tensors)
