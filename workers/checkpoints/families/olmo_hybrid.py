"""OLMo Hybrid (7B): of four layers three are a Gated DeltaNet, and the fourth is one of OLMo 3.

That one has its norms behind attention and MLP, and the others have them before. Betas go up to 2. The files
that are published have no positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from workers.checkpoints import config
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.convolutions import channels_as_rows
from workers.checkpoints.families import olmo, qwen3_next
from workers.checkpoints.family import Family, renaming
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import ModelConfig, Norms
from workers.checkpoints.rope import Size

DEFAULTS = {
    "vocab_size": 100_352,
    "hidden_size": 3840,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 30,
    "max_position_embeddings": 65_536,
}
KEY_SHARE = 0.75  # of `hidden_size`, that all keys have together
NORM_EPS = 1e-5  # of what a head with a state gives, whatever `rms_norm_eps` is
usual_name = renaming(
    {
        ".attention_layer_norm.": ".input_layernorm.",
        ".feedforward_layer_norm.": ".post_attention_layernorm.",
        ".linear_attn.g_proj.": ".linear_attn.in_proj_z.",
        ".linear_attn.a_proj.": ".linear_attn.in_proj_a.",
        ".linear_attn.b_proj.": ".linear_attn.in_proj_b.",
        ".linear_attn.o_proj.": ".linear_attn.out_proj.",
        ".linear_attn.o_norm.": ".linear_attn.norm.",
    }
)


class OlmoHybridFile(ConfigFile, kw_only=True):
    """The keys of OLMo Hybrid's `config.json`."""

    linear_num_key_heads: Size | None = None
    linear_num_value_heads: Size | None = None
    linear_key_head_dim: Size | None = None
    linear_value_head_dim: Size | None = None
    linear_conv_kernel_dim: Size = 4
    linear_allow_neg_eigval: bool = True


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """There are positions only where the file says with which base they turn."""
    file, turns = _turning(path, config.read(path, DEFAULTS | dict(given), OlmoHybridFile))
    count, key_heads = file.num_hidden_layers, file.linear_num_key_heads or file.num_attention_heads
    key_dim = file.linear_key_head_dim or int(KEY_SHARE * file.hidden_size / key_heads)
    file = msgspec.structs.replace(
        file,
        linear_num_key_heads=key_heads,
        linear_num_value_heads=file.linear_num_value_heads or file.num_attention_heads,
        linear_key_head_dim=key_dim,
        linear_value_head_dim=file.linear_value_head_dim or 2 * key_dim,
    )
    kinds = qwen3_next.layer_kinds(path, file, None)
    delta = qwen3_next.delta_net(
        path,
        file,
        apart=True,
        beta_scale=2.0 if file.linear_allow_neg_eigval else 1.0,
        norm_eps=NORM_EPS,
    )
    model = config.model_config(
        path,
        file,
        [None] * count,
        norms=olmo.NORMS,
        state_norms=Norms(),
        qk_norm="whole",
        unrotated=() if turns else tuple(range(count)),
        delta=delta,
    )
    return qwen3_next.with_states(model, kinds)


def _turning(path: Path, file: OlmoHybridFile) -> tuple[OlmoHybridFile, bool]:
    """`file`, and whether it has positions: in published ones a rope is null, or its type, or its base, and
    none was trained. (transformers turns by 10,000 where the whole is null or missing.)"""
    said = file.rope_parameters or {}
    if file.rope_theta is not None or said.get("rope_theta") is not None:
        return file, True
    kind = said.get("rope_type") or said.get("type")
    if file.rope_scaling or (kind is not None and "rope_theta" not in said):
        refuse(path, "a rope without rope_theta is not understood: null says that there are no positions")
    return msgspec.structs.replace(file, rope_parameters=None), False


OLMO_HYBRID = Family(
    "olmo_hybrid",
    ("OlmoHybridForCausalLM",),
    read,
    qwen3_next.tensors,
    usual_name=usual_name,
    rearrange=channels_as_rows,
)
