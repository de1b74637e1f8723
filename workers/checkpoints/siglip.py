"""The tower of SigLIP (https://arxiv.org/abs/2303.15343) in Gemma 3, and its projector.

Every image becomes a square of one size, and squares of its patches are averaged to as many tokens. These see
each other in the language model. In the text of a prompt a mark stands for an image, which stays before its
tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from workers.checkpoints import vision
from workers.checkpoints.config import ACTIVATIONS
from workers.checkpoints.family import TensorSpec, linear, norm
from workers.checkpoints.files import read_json, refuse
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.rope import Size
from workers.checkpoints.safetensors import Tensor
from workers.checkpoints.vision import (
    CHANNELS,
    PREFIX,
    Colours,
    PanAndScan,
    Preprocessor,
    Siglip,
    Token,
    Vision,
    renamed,
    without_tokens,
)

RENAMED = {
    "vision_tower.vision_model.": PREFIX,
    "vision_tower.": PREFIX,
    "multi_modal_projector.": f"{PREFIX}projector.",
}
PATCHES = f"{PREFIX}embeddings.patch_embedding.weight"
TYPE = "siglip_vision_model"
BILINEAR = 2
CROPS = ("min_crop_size", "max_num_crops", "min_ratio_to_activate")


class _Tower(msgspec.Struct, kw_only=True):
    """The part `vision_config` of a `config.json`."""

    model_type: str = TYPE
    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 12
    num_channels: Size = CHANNELS
    image_size: Size = 224
    patch_size: Size = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6


class _Around(msgspec.Struct, kw_only=True):
    vision_config: _Tower
    mm_tokens_per_image: Size = 256
    boi_token_index: Token = 255_999
    eoi_token_index: Token = 256_000
    image_token_index: Token | None = None
    image_token_id: Token = 262_144


class _Sides(msgspec.Struct):
    height: Size
    width: Size


class _Preprocessor(Preprocessor, kw_only=True):
    size: _Sides | None = None
    image_mean: Colours = (0.5, 0.5, 0.5)
    image_std: Colours = (0.5, 0.5, 0.5)
    resample: int = BILINEAR
    do_pan_and_scan: bool | None = None
    pan_and_scan_min_crop_size: Size | None = None
    pan_and_scan_max_num_crops: Size | None = None
    pan_and_scan_min_ratio_to_activate: float | None = None


def missing(folder: Path, path: Path, stored: Collection[str], model: ModelConfig) -> str:
    """Why the language model alone can be served, as for files that others cut out; empty: it can see."""
    if not any(renamed(name, RENAMED) == PATCHES for name in stored):
        return "its files have no tower"
    return without_tokens(folder, read_json(path, _Around), ("boi_token_index", "eoi_token_index"), model)


def read(folder: Path, path: Path, model: ModelConfig) -> Vision:
    """What the `config.json` at `path` and the settings for images in its `folder` say.

    Args:
        model: the language model.

    Raises:
        CortexError: MODEL_LOAD_FAILED, naming the file and what is not done here.
    """
    around = read_json(path, _Around)
    tower = around.vision_config
    images = vision.preprocessor(folder, _Preprocessor, BILINEAR) or _Preprocessor()
    name = "vision_config"
    if tower.model_type != TYPE:
        refuse(path, f"{name}.model_type {tower.model_type} is not supported; {TYPE} is")
    if tower.num_channels != CHANNELS:
        refuse(path, f"{name}.num_channels {tower.num_channels} is not supported: images have {CHANNELS}")
    if tower.hidden_act not in ACTIVATIONS:
        refuse(path, f"{name}.hidden_act {tower.hidden_act} is not supported")
    if tower.hidden_size % tower.num_attention_heads:
        refuse(
            path,
            f"{name}.num_attention_heads {tower.num_attention_heads} does not divide {tower.hidden_size}",
        )
    patches, rest = divmod(tower.image_size, tower.patch_size)
    if rest:
        refuse(path, f"{name}.patch_size {tower.patch_size} does not divide image_size {tower.image_size}")
    tokens = round(around.mm_tokens_per_image**0.5)
    if tokens**2 != around.mm_tokens_per_image or patches % tokens:
        refuse(
            path,
            f"mm_tokens_per_image {around.mm_tokens_per_image} is no square that divides {patches} x "
            f"{patches} patches",
        )
    token = around.image_token_id if around.image_token_index is None else around.image_token_index
    if token >= model.vocab_size:
        refuse(path, f"image_token_index {token} is none of {model.vocab_size} tokens")
    size = images.size
    if size is not None and (size.height, size.width) != (tower.image_size, tower.image_size):
        refuse(folder, f"its images have {size.width} x {size.height} pixels, and not {tower.image_size}")
    return Vision(
        depth=tower.num_hidden_layers,
        hidden_size=tower.hidden_size,
        intermediate_size=tower.intermediate_size,
        num_heads=tower.num_attention_heads,
        patch_size=tower.patch_size,
        merge_size=patches // tokens,
        frames=1,
        table_side=patches,
        out_size=model.hidden_size,
        deepstack=(),
        activation=ACTIVATIONS[tower.hidden_act],
        token=token,
        min_pixels=tower.image_size**2,
        max_pixels=tower.image_size**2,
        mean=images.image_mean,
        deviation=images.image_std,
        siglip=Siglip(
            mark=around.boi_token_index,
            image_end=around.eoi_token_index,
            eps=tower.layer_norm_eps,
            crops=_crops(folder, images) if images.do_pan_and_scan else None,
        ),
    )


def _crops(folder: Path, images: _Preprocessor) -> PanAndScan:
    found = {key: getattr(images, f"pan_and_scan_{key}") for key in CROPS}
    for key, value in found.items():
        if value is None:
            refuse(folder, f"do_pan_and_scan is set, and pan_and_scan_{key} is missing")
    return PanAndScan(*found.values())


def specs(vision: Vision) -> Iterator[TensorSpec]:
    """All that the tower and its projector load."""
    hidden, inner = vision.hidden_size, vision.intermediate_size

    yield from linear(f"{PREFIX}embeddings.patch_embedding", hidden, vision.patch_values, "first")
    yield TensorSpec(f"{PREFIX}embeddings.position_embedding.weight", (vision.table_side**2, hidden), "first")
    for number in range(vision.depth):
        layer = f"encoder.layers.{number}"
        yield from norm(f"{PREFIX}{layer}.layer_norm1", hidden, sharing="first")
        yield from norm(f"{PREFIX}{layer}.layer_norm2", hidden, sharing="first")
        for part in ("q", "k", "v", "out"):
            yield from linear(f"{PREFIX}{layer}.self_attn.{part}_proj", hidden, hidden, "first")
        yield from linear(f"{PREFIX}{layer}.mlp.fc1", inner, hidden, "first")
        yield from linear(f"{PREFIX}{layer}.mlp.fc2", hidden, inner, "first")
    yield from norm(f"{PREFIX}post_layernorm", hidden, sharing="first")
    yield TensorSpec(f"{PREFIX}projector.mm_soft_emb_norm.weight", (hidden,), "first")
    yield TensorSpec(f"{PREFIX}projector.mm_input_projection_weight", (hidden, vision.out_size), "first")


def tensors(stored: Mapping[str, Tensor], vision: Vision) -> dict[str, Tensor]:
    """All tensors, those of the tower under its names, and the filter of its patches as a matrix."""
    found = {renamed(name, RENAMED): tensor for name, tensor in stored.items()}
    size = vision.patch_size
    if (patches := found[PATCHES]).shape == (vision.hidden_size, CHANNELS, size, size):
        found[PATCHES] = replace(patches, shape=(vision.hidden_size, vision.patch_values))
    return found
