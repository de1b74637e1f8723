"""Qwen3: a Llama whose queries and keys are normalised per head, and whose upper layers may have a window;
and the same within Qwen3-VL, where positions have three parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from workers.checkpoints import config, rope
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import ModelConfig

DEFAULTS = {"num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096}
FULL_LAYERS = 28  # below those with a window


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """`mlp_bias` means nothing here: a Qwen3 has none, whatever the file says."""
    given = DEFAULTS | dict(given)
    sections = rope.sections(path, given)
    file = config.read(path, given)
    model = config.model_config(path, file, windows_of(path, file), qk_norm="heads")
    return seeing(path, model, sections)


def seeing(path: Path, model: ModelConfig, sections: tuple[int, int, int] | None) -> ModelConfig:
    """The same with positions that are dealt out so; None: of text alone.

    Raises:
        CortexError: these are not the pairs that turn.
    """
    if sections is not None and sum(sections) != model.rotary_dim // 2:
        refuse(path, f"mrope_section {[*sections]} are not the {model.rotary_dim // 2} pairs that turn")
    return msgspec.structs.replace(model, rope_sections=sections)


def windows_of(path: Path, file: ConfigFile) -> list[int | None]:
    """The window of each layer of a Qwen."""
    first = FULL_LAYERS if file.max_window_layers is None else file.max_window_layers
    return config.windows_of(path, file, first=first)


VL = "Qwen3VLForConditionalGeneration"

QWEN3 = Family(
    "qwen3",
    ("Qwen3ForCausalLM", "Qwen3Model"),
    read,
    dense_tensors,
    within={VL: ("qwen3_vl_text",)},
    sees={VL: "vision"},
)
