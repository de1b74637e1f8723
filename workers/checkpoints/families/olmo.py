"""OLMo 2 and 3: norms only behind attention and MLP; queries and keys are normalised over all heads together.

OLMo 2 is https://arxiv.org/abs/2501.00656. OLMo 3 has windows in three of four layers, whose positions are
not stretched where those of the fourth are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from workers.checkpoints import config, rope
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import ModelConfig, Norms

NORMS = Norms(None, "post_attention_layernorm", None, "post_feedforward_layernorm")
DEFAULTS = {"rms_norm_eps": 1e-5}
DEFAULTS_3 = DEFAULTS | {"sliding_window": 4096}
PATTERN_3 = 4  # every fourth layer sees all tokens
THETA_3 = 500_000.0


def read_2(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """No layer has a window."""
    file = config.read(path, DEFAULTS | dict(given))
    windows: list[int | None] = [None] * file.num_hidden_layers
    return config.model_config(path, file, windows, norms=NORMS, qk_norm="whole")


def read_3(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Of old files, `rope_scaling` is that of the layers that see all tokens."""
    given = DEFAULTS_3 | dict(given)
    whole, local = rope.by_type(path, given)
    file = config.read(path, given)
    if file.rope_theta not in (None, THETA_3):  # which transformers gives to some of the layers alone
        refuse(
            path, f"rope_theta {file.rope_theta} is not supported: say it in rope_parameters, for each type"
        )
    theta = {"rope_theta": THETA_3}
    beside = msgspec.structs.replace(file, rope_scaling=None, rope_parameters=theta | local)
    head_dim = file.head_dim or file.hidden_size // file.num_attention_heads
    window_rope, *_ = rope.read(path, beside, head_dim, partial=False)
    scaling = whole or file.rope_scaling or {}
    file = msgspec.structs.replace(file, rope_scaling=None, rope_parameters=theta | scaling)
    if file.layer_types is not None:
        windows = config.windows_of(path, file, first=0)
    else:
        windows = [
            None if (number + 1) % PATTERN_3 == 0 else file.sliding_window
            for number in range(file.num_hidden_layers)
        ]
    return config.model_config(path, file, windows, norms=NORMS, qk_norm="whole", window_rope=window_rope)


OLMO2 = Family("olmo2", ("Olmo2ForCausalLM",), read_2, dense_tensors)
OLMO3 = Family("olmo3", ("Olmo3ForCausalLM",), read_3, dense_tensors)
