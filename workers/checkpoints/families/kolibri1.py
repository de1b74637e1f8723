"""Kolibri 1 (78B-A3B): norms on both sides, experts in every layer, chosen by their logits with corrections.

Layers with a window have positions, and every fifth, which sees all tokens, has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from workers.checkpoints import config
from workers.checkpoints.families import qwen3_moe
from workers.checkpoints.families.glm import NORMS_4
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.families.qwen3_moe import Qwen3MoeFile
from workers.checkpoints.family import Family, renaming
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.rope import Size
from workers.checkpoints.stacked import unstacked_rows

DEFAULTS = {
    "vocab_size": 128_000,
    "hidden_size": 2560,
    "intermediate_size": 512,  # of no layer: all have experts
    "num_hidden_layers": 50,
    "num_attention_heads": 48,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 262_144,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 512,
}
COUNT = 384  # of experts, where the file says nothing
PATTERN = 5  # of so many layers the last sees all tokens
usual_name = renaming(
    {
        ".moe.router.expert_bias": ".mlp.gate.e_score_correction_bias",
        ".post_attn_norm.": ".post_self_attn_layernorm.",
        ".post_ffn_norm.": ".post_mlp_layernorm.",
    }
)


class Kolibri1File(Qwen3MoeFile, kw_only=True):
    """The keys of its `config.json`."""

    attention_bias: Literal[False] = False
    sliding_window: Size = 513
    shared_expert_intermediate_size: Size = 512
    decoder_sparse_step: Literal[1] = 1
    mlp_only_layers: Annotated[list[int], Meta(max_length=0)] | None = None


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """No layer has an MLP alone."""
    file = config.read(path, DEFAULTS | dict(given), Kolibri1File)
    count, types = file.num_hidden_layers, file.layer_types
    if types is None:
        kinds = ("sliding_attention", "full_attention")
        types = [kinds[(number + 1) % PATTERN == 0] for number in range(count)]
    if file.num_experts is None and file.num_local_experts is None:
        file = msgspec.structs.replace(file, num_experts=COUNT)
    file = msgspec.structs.replace(file, layer_types=types)
    windows = config.windows_of(path, file, first=0)
    experts = msgspec.structs.replace(
        qwen3_moe.experts_of(path, file),
        scoring="sigmoid_of_chosen",
        corrected=True,
        shared_size=file.shared_expert_intermediate_size,
    )
    return config.model_config(
        path,
        file,
        windows,
        norms=NORMS_4,
        qk_norm="heads",
        unrotated=tuple(number for number in range(count) if windows[number] is None),
        experts=experts,
    )


KOLIBRI1 = Family(
    "kolibri1",
    ("Kolibri1ForCausalLM",),
    read,
    dense_tensors,
    usual_name=usual_name,
    rearrange=unstacked_rows,
)
