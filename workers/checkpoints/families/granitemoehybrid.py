"""Granite 4: most layers are Mamba-2, the others see all tokens; with experts or without.

Those whose layers all attend (Granite 4 Micro) are of this family, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from workers.checkpoints import config, mamba
from workers.checkpoints.convolutions import channels_as_rows
from workers.checkpoints.families import granitemoe
from workers.checkpoints.families.granitemoe import GraniteMoeFile
from workers.checkpoints.families.llama import attention_tensors, decoder_tensors
from workers.checkpoints.family import Family, TensorSpec, in_causal
from workers.checkpoints.files import refuse
from workers.checkpoints.mamba import Limit
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.rope import Size
from workers.checkpoints.safetensors import Tensor

KINDS = {
    "mamba": "state",
    "attention": "full",
    # as transformers writes them
    "linear_attention": "state",
    "full_attention": "full",
}


class GraniteHybridFile(GraniteMoeFile, kw_only=True):
    """The keys of Granite 4's `config.json`."""

    shared_intermediate_size: Annotated[int, Meta(ge=0)] = 1024
    position_embedding_type: Literal["rope", "nope"] | None = None
    normalization_function: Literal["rmsnorm"] | None = None
    layers_block_type: list[str] | None = None  # as `layer_types`
    mamba_n_heads: Size = 128
    mamba_n_groups: Size = 1
    mamba_d_state: Size = 256
    mamba_d_head: Size | Literal["auto"] | None = "auto"
    mamba_d_conv: Annotated[int, Meta(ge=1, le=64)] = 4
    mamba_expand: Annotated[float, Meta(gt=0, le=64)] = 2
    mamba_chunk_size: Any = None  # how it is computed, and not what
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False
    time_step_limit: list[Limit] | None = None


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Positions turn where the file asks for it."""
    file = config.read(path, given, GraniteHybridFile)
    count = file.num_hidden_layers
    key, kinds = mamba.said_of_kinds(path, given, KINDS, count)
    if not kinds:
        refuse(path, "layer_types is missing, and all layers would be mamba, which is not supported")
    if "full" not in kinds:
        refuse(path, f"{key}: no layer is attention, which is not supported")
    changes: dict[str, Any] = {}
    if file.position_embedding_type != "rope":
        changes["unrotated"] = tuple(range(count))
    if "state" not in kinds:
        return granitemoe.with_experts(path, file, [None] * count, **changes)
    state = mamba.of_heads(path, file, round(file.mamba_expand * file.hidden_size))
    model = granitemoe.with_experts(path, file, [None] * count, mamba=state, **changes)
    own = mamba.layer(state)
    layers = [own if kind == "state" else full for kind, full in zip(kinds, model.layers, strict=True)]
    return msgspec.structs.replace(model, layers=tuple(layers))


def tensors(model: ModelConfig) -> Iterator[TensorSpec]:
    """Those of a decoder, with Mamba-2 in place of attention where a layer keeps a state."""
    return decoder_tensors(model, attention_tensors, _mamba_tensors)


def _mamba_tensors(model: ModelConfig, layer: str) -> Iterator[TensorSpec]:
    return mamba.tensors(model, layer + "mamba.")


def rearranged(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Experts one by one, and each channel's weights in a convolution as a row."""
    return channels_as_rows(granitemoe.rearranged(stored))


GRANITE_HYBRID = Family(
    "granitemoehybrid",
    ("GraniteMoeHybridForCausalLM",),
    read,
    tensors,
    usual_name=in_causal,
    rearrange=rearranged,
)
