"""The tower of Pixtral (https://arxiv.org/abs/2410.07073) in Mistral 3 and Ministral 3, and its projector.

An image keeps its shape, up to a longest side. Of a square of patches comes one token; behind each row of
these the prompt has a token of text that ends it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from workers.checkpoints import text, vision
from workers.checkpoints.config import ACTIVATIONS
from workers.checkpoints.family import TensorSpec
from workers.checkpoints.files import read_json, refuse
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.rope import Size
from workers.checkpoints.safetensors import Tensor
from workers.checkpoints.vision import (
    CHANNELS,
    PREFIX,
    Base,
    Pixtral,
    Preprocessor,
    Token,
    Turning,
    Vision,
    renamed,
)

RENAMED = {"vision_tower.": PREFIX, "multi_modal_projector.": f"{PREFIX}projector."}
PATCHES = f"{PREFIX}patch_conv.weight"
LINE_END, IMAGE_END = "[IMG_BREAK]", "[IMG_END]"
TYPE = "pixtral"


class _Tower(msgspec.Struct, kw_only=True):
    """The part `vision_config` of a `config.json`."""

    model_type: str = TYPE
    num_hidden_layers: Size = 24
    hidden_size: Size = 1024
    intermediate_size: Size = 4096
    num_attention_heads: Size = 16
    head_dim: Size | None = None
    num_channels: Size = CHANNELS
    patch_size: Size = 16
    image_size: Size = 1024
    hidden_act: str = "gelu"
    rope_theta: Base | None = None
    rope_parameters: Turning | None = None


class _Around(msgspec.Struct, kw_only=True):
    vision_config: _Tower
    image_token_id: Token | None = None
    image_token_index: Token = 10
    projector_hidden_act: str = "gelu"
    vision_feature_layer: Any = -1
    multimodal_projector_bias: bool = False
    spatial_merge_size: Size = 2


class _Longest(msgspec.Struct):
    longest_edge: Size


class _Preprocessor(Preprocessor, kw_only=True):
    size: _Longest | None = None


def missing(folder: Path, path: Path, stored: Collection[str], model: ModelConfig) -> str:
    """Why the language model alone can be served, as for files that others cut out; empty: it can see."""
    if not any(renamed(name, RENAMED) == PATCHES for name in stored):
        return "its files have no tower"
    known = text.added(folder)
    return next(
        (f"{text.TOKENIZER} has no {each}" for each in (LINE_END, IMAGE_END) if each not in known), ""
    )


def read(folder: Path, path: Path, model: ModelConfig) -> Vision:
    """What the `config.json` at `path` and the settings for images in its `folder` say.

    Args:
        model: the language model.

    Raises:
        CortexError: MODEL_LOAD_FAILED, naming the file and what is not done here.
    """
    around = read_json(path, _Around)
    tower, images = around.vision_config, vision.preprocessor(folder, _Preprocessor) or _Preprocessor()
    name = "vision_config"
    if tower.model_type != TYPE:
        refuse(path, f"{name}.model_type {tower.model_type} is not supported; {TYPE} is")
    if tower.num_channels != CHANNELS:
        refuse(path, f"{name}.num_channels {tower.num_channels} is not supported: images have {CHANNELS}")
    for key, said in (
        (f"{name}.hidden_act", tower.hidden_act),
        ("projector_hidden_act", around.projector_hidden_act),
    ):
        if said not in ACTIVATIONS:
            refuse(path, f"{key} {said} is not supported")
    if tower.hidden_size % (4 * tower.num_attention_heads):
        refuse(
            path,
            f"{name}.num_attention_heads {tower.num_attention_heads} does not divide "
            f"{tower.hidden_size} into fours",
        )
    if tower.head_dim not in (None, tower.hidden_size // tower.num_attention_heads):
        refuse(path, f"{name}.head_dim {tower.head_dim} is not hidden_size / num_attention_heads")
    if around.vision_feature_layer not in (-1, [-1]):
        refuse(path, f"vision_feature_layer {around.vision_feature_layer} is not supported; -1 is")
    token = around.image_token_index if around.image_token_id is None else around.image_token_id
    if token >= model.vocab_size:
        refuse(path, f"image_token_index {token} is none of {model.vocab_size} tokens")
    longest = images.size.longest_edge if images.size is not None else tower.image_size
    side = tower.patch_size * around.spatial_merge_size
    ends = text.added(folder)
    return Vision(
        depth=tower.num_hidden_layers,
        hidden_size=tower.hidden_size,
        intermediate_size=tower.intermediate_size,
        num_heads=tower.num_attention_heads,
        patch_size=tower.patch_size,
        merge_size=around.spatial_merge_size,
        frames=1,
        table_side=0,
        out_size=model.hidden_size,
        deepstack=(),
        activation=ACTIVATIONS[tower.hidden_act],
        token=token,
        min_pixels=1,
        max_pixels=(-(-longest // side) * side) ** 2,
        mean=images.image_mean,
        deviation=images.image_std,
        pixtral=Pixtral(
            longest=longest,
            line_end=ends[LINE_END],
            image_end=ends[IMAGE_END],
            theta=(tower.rope_parameters or Turning()).rope_theta or tower.rope_theta or 10_000.0,
            projector_eps=model.norm_eps,
            projector_activation=ACTIVATIONS[around.projector_hidden_act],
            projector_bias=around.multimodal_projector_bias,
        ),
    )


def specs(vision: Vision) -> Iterator[TensorSpec]:
    """All that the tower and its projector load."""
    hidden, inner, out = vision.hidden_size, vision.intermediate_size, vision.out_size

    def weight(name: str, *shape: int) -> TensorSpec:
        return TensorSpec(f"{PREFIX}{name}.weight", shape, "first")

    yield weight("patch_conv", hidden, vision.patch_values)
    yield weight("ln_pre", hidden)
    for number in range(vision.depth):
        layer = f"transformer.layers.{number}"
        yield weight(f"{layer}.attention_norm", hidden)
        yield weight(f"{layer}.ffn_norm", hidden)
        for part in "qkvo":
            yield weight(f"{layer}.attention.{part}_proj", hidden, hidden)
        yield weight(f"{layer}.feed_forward.gate_proj", inner, hidden)
        yield weight(f"{layer}.feed_forward.up_proj", inner, hidden)
        yield weight(f"{layer}.feed_forward.down_proj", hidden, inner)
    yield weight("projector.norm", hidden)
    yield weight("projector.patch_merger.merging_layer", hidden, hidden * vision.merge_size**2)
    for name, columns in (("linear_1", hidden), ("linear_2", out)):
        yield weight(f"projector.{name}", out, columns)
        if vision.pixtral.projector_bias:
            yield TensorSpec(f"{PREFIX}projector.{name}.bias", (out,), "first")


def tensors(stored: Mapping[str, Tensor], vision: Vision) -> dict[str, Tensor]:
    """All tensors, those of the tower under its names, and the filter of its patches as a matrix."""
    found = {renamed(name, RENAMED): tensor for name, tensor in stored.items()}
    patches = found.get(PATCHES)
    if patches is not None and patches.shape == (
        vision.hidden_size,
        CHANNELS,
        vision.patch_size,
        vision.patch_size,
    ):
        found[PATCHES] = replace(patches, shape=(vision.hidden_size, vision.patch_values))
    return found
