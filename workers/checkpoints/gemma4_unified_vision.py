"""The eyes of Gemma 4 12B, which are no tower: the pixels of each token go through one product, with norms
around it, and the projector. All else is as for the others (`gemma4_vision`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec

from workers.checkpoints import gemma4_vision
from workers.checkpoints.family import TensorSpec
from workers.checkpoints.files import read_json, refuse
from workers.checkpoints.gemma4_vision import AXES, NAME, Around, Patches
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.rope import Size
from workers.checkpoints.safetensors import Tensor
from workers.checkpoints.vision import PREFIX, Gemma4, Vision, renamed

# as published, and as transformers calls them
RENAMED = {
    "vision_embedder.": PREFIX,
    "embed_vision.multimodal_embedder.": f"{PREFIX}projector.",
    "embed_vision.embedding_projection.": f"{PREFIX}projector.embedding_projection.",
    "embed_vision.": PREFIX,
}
PATCHES, POSITIONS = f"{PREFIX}patch_dense.weight", f"{PREFIX}pos_embedding"
PROJECTOR = "projector.embedding_projection"
TYPE = "gemma4_unified_vision"


class _Eyes(Patches, kw_only=True):
    """The part `vision_config` of a `config.json`."""

    model_type: str = TYPE
    mm_embed_dim: Size = 3840
    mm_posemb_size: Size = 1120
    output_proj_dims: Size = 3840


class _Text(msgspec.Struct):
    use_bidirectional_attention: Literal["all", "vision"] | None = "vision"


class _Around(Around, kw_only=True):
    text_config: _Text


def missing(folder: Path, path: Path, stored: Collection[str], model: ModelConfig) -> str:
    """Why the language model alone can be served, as for files that others cut out; empty: it can see."""
    return gemma4_vision.blind(folder, path, any(renamed(name, RENAMED) == PATCHES for name in stored), model)


def read(folder: Path, path: Path, model: ModelConfig) -> Vision:
    """As of `gemma4_vision`."""
    around = read_json(path, _Around)
    eyes = gemma4_vision.tower_of(path, around.vision_config, _Eyes, TYPE)
    images = gemma4_vision.preprocessor(folder, path, eyes)
    most, side = images.max_soft_tokens, eyes.patch_size * eyes.pooling_kernel_size
    if most > eyes.mm_posemb_size:
        refuse(path, f"{NAME}.mm_posemb_size {eyes.mm_posemb_size} has no place for {most} tokens in a row")
    if eyes.output_proj_dims != eyes.mm_embed_dim:
        refuse(
            path, f"{NAME}.output_proj_dims {eyes.output_proj_dims} is not mm_embed_dim, {eyes.mm_embed_dim}"
        )
    mean, deviation = images.colours
    return Vision(
        depth=0,
        hidden_size=eyes.mm_embed_dim,
        intermediate_size=0,
        num_heads=1,
        patch_size=side,
        merge_size=1,
        frames=1,
        table_side=0,
        out_size=model.hidden_size,
        deepstack=(),
        activation="gelu_tanh",
        token=around.image_token_id,
        unshown=around.unshown,
        min_pixels=side**2,
        max_pixels=most * side**2,
        mean=mean,
        deviation=deviation,
        gemma4=Gemma4(
            image_start=around.boi_token_id,
            image_end=around.eoi_token_id,
            together=around.text_config.use_bidirectional_attention == "vision",
            eps=eyes.rms_norm_eps,
            positions=eyes.mm_posemb_size,
            unified=True,
        ),
    )


def specs(vision: Vision) -> Iterator[TensorSpec]:
    """All that is loaded of them."""
    hidden, values = vision.hidden_size, vision.patch_values
    for name, size in (
        ("patch_ln1", values),
        ("patch_dense", hidden),
        ("patch_ln2", hidden),
        ("pos_norm", hidden),
    ):
        shape = (hidden, values) if name == "patch_dense" else (size,)
        yield TensorSpec(f"{PREFIX}{name}.weight", shape, "first")
        yield TensorSpec(f"{PREFIX}{name}.bias", (size,), "first")
    yield TensorSpec(POSITIONS, (vision.gemma4.positions, AXES * hidden), "first")
    yield TensorSpec(f"{PREFIX}{PROJECTOR}.weight", (vision.out_size, hidden), "first")


def tensors(stored: Mapping[str, Tensor], vision: Vision) -> dict[str, Tensor]:
    """All tensors, those of the eyes under their names, and the two tables of positions side by side."""
    found = {renamed(name, RENAMED): tensor for name, tensor in stored.items()}
    positions, rows, hidden = found.get(POSITIONS), vision.gemma4.positions, vision.hidden_size
    if positions is not None and positions.shape == (rows, AXES, hidden):
        found[POSITIONS] = replace(positions, shape=(rows, AXES * hidden))
    return found
