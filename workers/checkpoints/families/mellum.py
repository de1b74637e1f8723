"""Mellum 2 of JetBrains: a Qwen3 with experts, of which most layers have a window and a rope of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from workers.checkpoints import config, rope
from workers.checkpoints.experts import Experts
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.families.qwen3_moe import Qwen3MoeFile, rearrange
from workers.checkpoints.family import Family
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import ModelConfig

DEFAULTS = {
    "num_local_experts": 64,
    "moe_intermediate_size": 896,
    "norm_topk_prob": True,
    "head_dim": 128,
    "sliding_window": 1024,
}
THETA, WINDOW_THETA = 500_000.0, 10_000.0
MTP = "a head that predicts several tokens at once"


class MellumFile(Qwen3MoeFile, kw_only=True):
    """The keys of Mellum's `config.json`."""

    mlp_layer_types: list[str] | None = None
    num_nextn_predict_layers: int | None = None  # of that head, as the others
    num_mtp_layers: int | None = None
    mtp_layer_types: list[str] | None = None
    mtp_mlp_layer_types: list[str] | None = None


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """All layers see all tokens, and all have experts, unless the file says otherwise."""
    given = DEFAULTS | dict(given)
    whole, local = rope.by_type(path, given)
    file = config.read(path, given, MellumFile)
    beside = msgspec.structs.replace(file, rope_parameters={"rope_theta": WINDOW_THETA} | local)
    window_rope, *_ = rope.read(path, beside, file.head_dim, partial=False)
    file = msgspec.structs.replace(file, rope_parameters={"rope_theta": THETA} | whole)
    windows = config.windows_of(path, file, first=file.num_hidden_layers)
    return config.model_config(
        path, file, windows, qk_norm="heads", window_rope=window_rope, experts=_experts(path, file)
    )


def _experts(path: Path, file: MellumFile) -> Experts | None:
    count = "num_experts" if file.num_experts else "num_local_experts"  # since transformers 5
    if getattr(file, count) is None:
        refuse(path, f"{count} is missing")
    config.refuse_above(path, file, "num_experts_per_tok", count)
    kinds = file.mlp_layer_types or ["sparse"] * file.num_hidden_layers
    if len(kinds) != file.num_hidden_layers or not {*kinds} <= {"dense", "sparse"}:
        refuse(path, "mlp_layer_types is no list of dense and sparse, one for each layer")
    experts = Experts(
        count=getattr(file, count),
        chosen=file.num_experts_per_tok,
        intermediate_size=file.moe_intermediate_size,
        normalised=file.norm_topk_prob,
        layers=tuple(number for number, kind in enumerate(kinds) if kind == "sparse"),
    )
    return experts if experts.layers else None


MELLUM = Family(
    "mellum",
    ("MellumForCausalLM",),
    read,
    dense_tensors,
    rearrange=rearrange,
    beside={"mtp.": MTP},
)
