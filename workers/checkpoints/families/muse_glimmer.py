"""Muse Glimmer (30B): norms on both sides, gates behind attention, heads normalised without weights.

Layers with a window have positions, and every fourth, which sees all tokens, has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from workers.checkpoints import config
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.families.gemma import NORMS, Positive
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import ModelConfig

DEFAULTS = {
    "vocab_size": 202_048,
    "hidden_size": 6656,
    "intermediate_size": 19_968,
    "num_hidden_layers": 52,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "sliding_window": 2048,
}
PATTERN = 4  # of so many layers, counted from the last, one sees all tokens, and has no positions


class MuseGlimmerFile(ConfigFile, kw_only=True):
    """The keys of such a `text_config`."""

    hidden_activation: str = "silu"
    qk_scale_factor: Positive = 3.87
    output_multiplier: float = 0.19611613513818404
    final_logit_softcapping: Positive = 20.0
    post_norm_eps: Annotated[float, Meta(ge=0)] = 1e-8
    layer_rope_theta: list[float | None] | None = None  # 0 or null: no positions


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Queries are multiplied before attention, as its scores might be."""
    file = config.read(path, DEFAULTS | dict(given), MuseGlimmerFile)
    config.refuse_other_activation(path, file, "hidden_activation")
    count, types = file.num_hidden_layers, file.layer_types
    see_all = [(count - 1 - number) % PATTERN == 0 for number in range(count)]
    if types is None:
        types = ["full_attention" if each else "sliding_attention" for each in see_all]
    file = msgspec.structs.replace(file, layer_types=types, hidden_act=file.hidden_activation)
    model = config.model_config(
        path,
        file,
        config.windows_of(path, file, first=0),
        norms=NORMS,
        norm_offset=1.0,
        after_norm_eps=file.post_norm_eps,
        qk_norm="bare_heads",
        attention_gate="apart",
        logit_scale=file.output_multiplier,
        logit_cap=file.final_logit_softcapping,
    )
    thetas = file.layer_rope_theta
    if thetas is None:
        thetas = [None if each else model.rope.rope_theta for each in see_all]
    if len(thetas) != count or not {each or None for each in thetas} <= {None, model.rope.rope_theta}:
        base = f"{model.rope.rope_theta:g}"
        refuse(path, f"layer_rope_theta is no list of 0 and {base}, the base, for {count} layers")
    return msgspec.structs.replace(
        model,
        unrotated=tuple(number for number in range(count) if not thetas[number]),
        attention_scale=file.qk_scale_factor * model.head_dim**-0.5,
    )


MUSE_GLIMMER = Family(
    "muse_glimmer",
    ("MuseGlimmerForCausalLM",),
    read,
    dense_tensors,
    within={"MuseGlimmerForConditionalGeneration": ("muse_glimmer_text",)},
)
