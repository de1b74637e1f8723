"""Phi-3.5-MoE (https://arxiv.org/abs/2404.14219): layer norms with biases, two experts of a sparse mixer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from workers.checkpoints import config, rope
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.experts import Experts
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.families.mixtral import usual_name
from workers.checkpoints.family import Family
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.rope import Size

DEFAULTS = {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1_000_000.0}
SCALES = ("short_mscale", "long_mscale")  # of cosines and sines
CHOSEN = 2  # whatever the file says, it is this


class PhimoeFile(ConfigFile, kw_only=True):
    """The keys of such a `config.json`."""

    num_local_experts: Annotated[int, Meta(ge=2, le=1 << 31)] = 16
    num_experts_per_tok: Size = CHOSEN
    router_jitter_noise: Annotated[float, Meta(ge=0)] = 0.01  # which counts when it is served, too
    lm_head_bias: bool = False


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """A window is that of all layers. A longrope multiplies cosines and sines with numbers of its own."""
    given = DEFAULTS | dict(given)
    key = next((key for key in rope.KEYS if given.get(key)), rope.KEYS[0])
    turning = given.get(key) or {}
    if not isinstance(turning, dict):
        refuse(path, f"{key} is no object")
    turning = given[key] = dict(turning)
    scales = {name: turning.pop(name, None) for name in SCALES}
    file = config.read(path, given, PhimoeFile)
    if file.num_experts_per_tok != CHOSEN:
        refuse(
            path, f"num_experts_per_tok {file.num_experts_per_tok} is not supported: a mixer takes {CHOSEN}"
        )
    layers = file.num_hidden_layers
    experts = Experts(
        count=file.num_local_experts,
        chosen=CHOSEN,
        intermediate_size=file.intermediate_size,
        layers=tuple(range(layers)),
        scoring="sparse_mixer",
        jitter=file.router_jitter_noise,
    )
    model = config.model_config(
        path,
        file,
        [file.sliding_window] * layers,
        layer_norm=True,
        head_bias=file.lm_head_bias,
        experts=experts,
    )
    if model.rope.rope_type == "default":
        return model
    if model.rope.rope_type != "longrope":
        refuse(path, f"{key}.rope_type {model.rope.rope_type} is not supported; longrope is")
    for name, scale in scales.items():
        if not isinstance(scale, int | float) or not scale > 0:
            refuse(path, f"{key}.{name} {scale!r} is no number above 0")
    return msgspec.structs.replace(model, rope=msgspec.structs.replace(model.rope, **scales))


# As transformers has it, and as the files of Microsoft.
ARCHITECTURES = ("PhimoeForCausalLM", "PhiMoEForCausalLM")
PHIMOE = Family("phimoe", ARCHITECTURES, read, dense_tensors, usual_name=usual_name)
