"""Cohere's Command R and Aya: the MLP stands beside attention, on one layer norm without a bias.

Neighbouring dimensions turn together. Of the second kind (Command R7B, Command A) three of four layers have
windows, and the fourth has no positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from workers.checkpoints import config
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family
from workers.checkpoints.model_config import ModelConfig, Norms
from workers.checkpoints.rope import Size

DEFAULTS = {"tie_word_embeddings": True}
DEFAULTS_1 = DEFAULTS | {"rope_theta": 500_000.0}
DEFAULTS_2 = DEFAULTS | {"sliding_window": 4096}
NORMS = Norms("input_layernorm", None, None, None)
PATTERN_2 = 4


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
