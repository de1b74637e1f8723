"""Gemma 1 to 3, without eyes, and VaultGemma: norms whose weights are stored less one; from Gemma 2 on, on
both sides, and windows by turns.

Gemma 1 (https://arxiv.org/abs/2403.08295) is CodeGemma, too. Gemma 2 (https://arxiv.org/abs/2408.00118) bends
scores and logits; VaultGemma (https://arxiv.org/abs/2510.15001) is one without the norms behind attention and
MLP. Gemma 3 (https://arxiv.org/abs/2503.19786) normalises queries and keys instead, and turns them faster in
the layers that have a window.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from workers.checkpoints import config, rope
from workers.checkpoints.config import ConfigFile, File
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import ModelConfig, Norms
from workers.checkpoints.rope import Rope

Positive = Annotated[float, Meta(gt=0)]

GELU = "gelu_pytorch_tanh"
# Files leave out what is as in the smallest model, of Gemma 1 as in that of 7B.
DEFAULTS_1 = {"head_dim": 256, "hidden_act": GELU, "tie_word_embeddings": True}
DEFAULTS = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": GELU,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
DEFAULTS_2 = DEFAULTS | {
    "vocab_size": 256_000,
    "max_position_embeddings": 8192,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}
DEFAULTS_3 = DEFAULTS | {"vocab_size": 262_208, "max_position_embeddings": 131_072}
NORMS = Norms(
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
NORMS_BEFORE = Norms("input_layernorm", None, "pre_feedforward_layernorm", None)
PATTERN_2, PATTERN_3 = 2, 6  # every second or sixth layer sees all tokens
THETA_3, WINDOW_THETA_3 = 1_000_000.0, 10_000.0


class GemmaFile(ConfigFile, kw_only=True):
    """The keys of Gemma's `config.json`."""

    hidden_activation: str | None = None
    query_pre_attn_scalar: Positive
    final_logit_softcapping: Positive | None = None
    attn_logit_softcapping: Positive | None = None
    use_bidirectional_attention: bool | None = None
    sliding_window_size: Any = None  # once more what sliding_window is, which is what its code has read
    rope_local_base_freq: float | None = None
    sliding_window_pattern: Annotated[int, Meta(ge=1)] | None = None
    written_pattern: int | None = msgspec.field(default=None, name="_sliding_window_pattern")  # beside types


class Gemma1File(ConfigFile, kw_only=True):
    """The keys of Gemma 1's."""

    hidden_activation: str | None = None  # nobody's: what its code has read is the other one
    use_bidirectional_attention: bool | None = None


def read_1(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """The activation that old files call `gelu` is the one that has another name since."""
    file = config.read(path, DEFAULTS_1 | dict(given), Gemma1File)
    if file.use_bidirectional_attention:
        refuse(path, "use_bidirectional_attention is not supported: Gemma 1 has none")
    if file.hidden_act == "gelu":
        file = msgspec.structs.replace(file, hidden_act=GELU)
    windows: list[int | None] = [None] * file.num_hidden_layers
    return config.model_config(path, file, windows, norm_offset=1.0, embedding_scale=file.hidden_size**0.5)


def read_2(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """One rope for all layers."""
    file = _file(path, DEFAULTS_2 | dict(given))
    if file.use_bidirectional_attention:
        refuse(path, "use_bidirectional_attention is not supported: Gemma 2 has none")
    return _model_config(path, file, PATTERN_2, attention_cap=file.attn_logit_softcapping)


def read_vault(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """A Gemma 2 with norms before alone."""
    return msgspec.structs.replace(read_2(path, given), norms=NORMS_BEFORE)


def read_3(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Two ropes: of old files the keys of the whole model are those of the layers that see all tokens."""
    given = DEFAULTS_3 | dict(given)
    whole, local = rope.by_type(path, given)
    file = _file(path, given)
    if file.attn_logit_softcapping is not None:
        refuse(path, "attn_logit_softcapping is not supported: Gemma 3 has none")
    file, window_rope = two_ropes(path, file, whole, local)
    if file.use_bidirectional_attention and file.sliding_window is not None:  # half before, half behind
        file = msgspec.structs.replace(file, sliding_window=file.sliding_window // 2 + 1)
    return _model_config(path, file, PATTERN_3, qk_norm="heads", window_rope=window_rope)


def two_ropes(path: Path, file: File, whole: dict[str, Any], local: dict[str, Any]) -> tuple[File, Rope]:
    """`file` with the rope of the layers that see all tokens, and that of those with a window.

    Args:
        whole: what `rope_parameters` says of the first.
        local: and of the others.
    """
    if whole or local:
        file = msgspec.structs.replace(file, rope_scaling=None)
    theta = whole.get("rope_theta") or file.rope_theta or THETA_3
    file = msgspec.structs.replace(file, rope_parameters=(file.rope_scaling or whole) | {"rope_theta": theta})
    theta = local.get("rope_theta") or file.rope_local_base_freq or WINDOW_THETA_3
    beside = msgspec.structs.replace(file, rope_scaling=None, rope_parameters=local | {"rope_theta": theta})
    window_rope, *_ = rope.read(path, beside, beside.head_dim, partial=False)
    return file, window_rope


def _file(path: Path, given: Mapping[str, Any]) -> GemmaFile:
    file = config.read(path, given, GemmaFile)
    config.refuse_other_activation(path, file, "hidden_activation")
    return msgspec.structs.replace(file, hidden_act=file.hidden_activation or file.hidden_act)


def _model_config(path: Path, file: GemmaFile, pattern: int, **changes: Any) -> ModelConfig:
    if file.layer_types is not None:
        windows = config.windows_of(path, file, first=0)
    else:
        every = file.sliding_window_pattern or pattern
        windows = [
            None if (number + 1) % every == 0 else file.sliding_window
            for number in range(file.num_hidden_layers)
        ]
    return config.model_config(
        path,
        file,
        windows,
        norms=NORMS,
        norm_offset=1.0,
        embedding_scale=file.hidden_size**0.5,
        attention_scale=file.query_pre_attn_scalar**-0.5,
        logit_cap=file.final_logit_softcapping,
        bidirectional=bool(file.use_bidirectional_attention),
        **changes,
    )


SEEING = "Gemma3ForConditionalGeneration"

GEMMA = Family("gemma", ("GemmaForCausalLM",), read_1, dense_tensors)
GEMMA2 = Family("gemma2", ("Gemma2ForCausalLM",), read_2, dense_tensors)
VAULTGEMMA = Family("vaultgemma", ("VaultGemmaForCausalLM",), read_vault, dense_tensors)
GEMMA3 = Family(
    "gemma3",
    ("Gemma3ForCausalLM", "Gemma3TextModel"),
    read_3,
    dense_tensors,
    within={SEEING: ("gemma3_text",)},
    sees={SEEING: "siglip"},
)
