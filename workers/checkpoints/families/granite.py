"""Granite 3 and 4, dense: a Llama whose embeddings, scores, residuals and logits are multiplied.

GraniteSWA has windows in most layers, and heads that may attend to nothing; positions turn with another
base in some layers, and in some there are none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from workers.checkpoints import config, rope
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import ModelConfig

DEFAULTS_SWA = {
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "sliding_window": 128,
}
PATTERN_SWA = 4  # of so many layers the first one sees all tokens

Positive = Annotated[float, Meta(gt=0)]
Theta = Annotated[float, Meta(ge=0)]


class GraniteFile(ConfigFile, kw_only=True):
    """The keys of Granite's `config.json`."""

    embedding_multiplier: Positive = 1.0
    attention_multiplier: Positive = 1.0  # of scores, in place of 1 / sqrt(head_dim)
    residual_multiplier: Positive = 1.0
    logits_scaling: Positive = 1.0  # that logits are divided by


class GraniteSwaFile(GraniteFile, kw_only=True):
    """The keys of GraniteSWA's."""

    layer_rope_theta: list[Theta] | None = None  # of each layer; 0: it has no positions


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """No layer has a window."""
    file = config.read(path, given, GraniteFile)
    return config.model_config(
        path,
        file,
        [None] * file.num_hidden_layers,
        mlp_bias=file.mlp_bias,
        **scales_of(file),
    )


def scales_of(file: GraniteFile) -> dict[str, float]:
    """What is multiplied, as `ModelConfig` calls it."""
    return {
        "embedding_scale": file.embedding_multiplier,
        "attention_scale": file.attention_multiplier,
        "residual_scale": file.residual_multiplier,
        "logit_scale": 1 / file.logits_scaling,
    }


def read_swa(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Layers have a window or see all tokens, as the file says or by turns."""
    file = config.read(path, DEFAULTS_SWA | dict(given), GraniteSwaFile)
    file, windows, changes = windowed(path, file, file.layer_rope_theta)
    return config.model_config(path, file, windows, mlp_bias=file.mlp_bias, **changes, **scales_of(file))


File = TypeVar("File", bound=GraniteFile)


def windowed(
    path: Path, file: File, thetas: Sequence[float] | None
) -> tuple[File, list[int | None], dict[str, Any]]:
    """What layers with windows make of a Granite: what the file then says of positions, the window of each
    layer, and what else is another.

    Args:
        thetas: of each layer; 0: it has no positions.

    Raises:
        CortexError: of layers that see as much, some turn with another base than others.
    """
    count = file.num_hidden_layers
    if file.layer_types is None:
        types = ["sliding_attention" if n % PATTERN_SWA else "full_attention" for n in range(count)]
        file = msgspec.structs.replace(file, layer_types=types)
    windows = config.windows_of(path, file, first=0)
    if thetas is None:
        return file, windows, {"sinks": True}
    if len(thetas) != count:
        refuse(path, f"layer_rope_theta has {len(thetas)} entries, and there are {count} layers")
    whole, local = (
        {
            theta
            for theta, window in zip(thetas, windows, strict=True)
            if theta and (window is None) == sees_all
        }
        for sees_all in (True, False)
    )
    if max(len(whole), len(local)) > 1:
        refuse(path, f"layer_rope_theta {thetas} is not supported: layers that see as much have the same")
    turning = file.rope_parameters or file.rope_scaling or {}
    both = [
        msgspec.structs.replace(file, rope_scaling=None, rope_parameters=turning | {"rope_theta": theta})
        for theta in (*whole, *local)
    ]
    changes = {"sinks": True, "unrotated": tuple(n for n in range(count) if not thetas[n])}
    if len(both) == 2 and whole != local:
        head_dim = file.head_dim or file.hidden_size // file.num_attention_heads
        changes["window_rope"], *_ = rope.read(path, both[1], head_dim, partial=False)
    return both[0] if both else file, windows, changes


GRANITE = Family("granite", ("GraniteForCausalLM",), read, dense_tensors)
GRANITE_SWA = Family("granite_swa", ("GraniteSWAForCausalLM",), read_swa, dense_tensors)
