"""Qwen2 and Qwen2.5: a Llama with biases on queries, keys and values, and perhaps windows further up; and
the same within Qwen2-VL and Qwen2.5-VL, whose files say in one what is its own and what sees."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from workers.checkpoints import config, rope
from workers.checkpoints.config import DUAL_CHUNKS, ConfigFile
from workers.checkpoints.families import qwen3
from workers.checkpoints.families.ernie4_5 import AHEAD
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.rope import Size

DEFAULTS = {"num_key_value_heads": 32, "sliding_window": 4096}
VL, VL_2_5 = "Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"


class DualChunks(msgspec.Struct, frozen=True):
    """Attention by two kinds of chunks (https://arxiv.org/abs/2402.17463), of Qwen2.5-1M: within the first
    chunk it is the plain one."""

    chunk_size: Size
    local_size: Size  # of a chunk, which is seen from the next one as well
    original_max_position_embeddings: Size | None = None  # above which scores grow
    sparse_attention_enabled: Literal[False] = False


class Qwen2File(ConfigFile, kw_only=True):
    """The keys of Qwen2's `config.json`."""

    chunks: DualChunks | None = msgspec.field(default=None, name=DUAL_CHUNKS)


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """The biases are there, whatever the file says. Of text, all parts of a position are the same."""
    given = rope.of_text(path, dict(given))
    file = config.read(path, DEFAULTS | dict(given), Qwen2File)
    if (chunks := file.chunks) is not None:
        config.refuse_unknown(path, given[DUAL_CHUNKS], DualChunks, f"{DUAL_CHUNKS}.")
        plain = chunks.chunk_size - chunks.local_size
        if plain < 1:
            refuse(path, f"{DUAL_CHUNKS}.local_size {chunks.local_size} leaves nothing of a chunk")
        most = (file.max_position_embeddings, plain, chunks.original_max_position_embeddings or plain)
        file = msgspec.structs.replace(file, max_position_embeddings=min(most))
    windows = qwen3.windows_of(path, file)
    return config.model_config(path, file, windows, qkv_bias=True, output_bias=False)


# MiMo 7B of Xiaomi is one, but for layers that guess further ahead.
QWEN2 = Family(
    "qwen2",
    ("Qwen2ForCausalLM", "MiMoForCausalLM"),
    read,
    dense_tensors,
    within={VL: ("qwen2_vl_text", "qwen2_vl"), VL_2_5: ("qwen2_5_vl_text", "qwen2_5_vl")},
    beside={"model.mtp_layers.": AHEAD},
)
