"""The tower of Gemma 4, and its projector.

An image keeps its shape, nearly, and is made as large as one may be. Squares of its patches are averaged to
one token each. In the large models these see each other in the layers that have a window; elsewhere they
see what is before them, as text does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from workers.checkpoints import config, vision
from workers.checkpoints.config import ACTIVATIONS
from workers.checkpoints.family import TensorSpec
from workers.checkpoints.files import read_json, refuse
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.rope import Size
from workers.checkpoints.safetensors import Tensor
from workers.checkpoints.vision import (
    PREFIX,
    Colours,
    Gemma4,
    Preprocessor,
    Token,
    Turning,
    Vision,
    renamed,
    without_tokens,
)

RENAMED = {"vision_tower.": PREFIX, "embed_vision.": f"{PREFIX}projector."}
PATCHES = f"{PREFIX}patch_embedder.input_proj.weight"
POSITIONS = f"{PREFIX}patch_embedder.position_embedding_table"
TYPE = "gemma4_vision"
BOUNDS = ("input_min", "input_max", "output_min", "output_max")  # of products
NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
AXES = 2  # that patches have places on
NAME = "vision_config"


class Patches(msgspec.Struct, kw_only=True):
    """What all such towers say of them in the part `vision_config` of a `config.json`."""

    model_type: str
    patch_size: Size = 16
    pooling_kernel_size: Size = 3
    rms_norm_eps: float = 1e-6


class _Turning(Turning, forbid_unknown_fields=True):
    """The part `rope_parameters` of that part."""


class _Tower(Patches, kw_only=True):
    """That part, of a tower that has blocks."""

    model_type: str = TYPE
    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_hidden_layers: Size = 16
    num_attention_heads: Size = 12
    num_key_value_heads: Size = 12
    head_dim: Size = 64
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: Any = None  # which nothing reads
    attention_bias: bool | None = False
    rope_parameters: _Turning | None = None
    position_embedding_size: Size = 10_240
    use_clipped_linears: bool = False
    standardize: bool = False


T = TypeVar("T", bound=Patches)


class _Text(msgspec.Struct):
    use_bidirectional_attention: Literal["all", "vision"] | None = None


class Around(msgspec.Struct, kw_only=True):
    """What stands around both parts."""

    vision_config: dict[str, Any] | None = None
    text_config: _Text
    boi_token_id: Token | None = 255_999
    eoi_token_id: Token | None = 258_882
    image_token_id: Token | None = 258_880
    video_token_id: Token | None = 258_884
    audio_token_id: Token | None = 258_881

    @property
    def unshown(self) -> tuple[int, ...]:
        """Tokens that stand for what is not shown."""
        return tuple(each for each in (self.video_token_id, self.audio_token_id) if each is not None)


class Images(Preprocessor, kw_only=True):
    """The settings for images."""

    image_mean: Colours = (0.0, 0.0, 0.0)
    image_std: Colours = (1.0, 1.0, 1.0)
    patch_size: Size = 16
    pooling_kernel_size: Size = 3
    max_soft_tokens: Size = 280

    @property
    def colours(self) -> tuple[Colours, Colours]:
        """What is subtracted from colours between 0 and 1, and what they are divided by then."""
        return (self.image_mean, self.image_std) if self.do_normalize else ((0.0,) * 3, (1.0,) * 3)


def missing(folder: Path, path: Path, stored: Collection[str], model: ModelConfig) -> str:
    """Why the language model alone can be served, as for files that others cut out; empty: it can see."""
    return blind(folder, path, any(renamed(name, RENAMED) == PATCHES for name in stored), model)


def blind(folder: Path, path: Path, there: bool, model: ModelConfig) -> str:
    """The same, where what sees is `there` in the files."""
    around = read_json(path, Around)
    if around.vision_config is None or not there:
        return "its files have no tower"
    keys = ("boi_token_id", "eoi_token_id", "image_token_id")
    return without_tokens(folder, around, keys, model)


def read(folder: Path, path: Path, model: ModelConfig) -> Vision:
    """What the `config.json` at `path` and the settings for images in its `folder` say.

    Args:
        model: the language model.

    Raises:
        CortexError: MODEL_LOAD_FAILED, naming the file and what is not done here.
    """
    around = read_json(path, Around)
    tower = _tower(path, around.vision_config)
    images = preprocessor(folder, path, tower)
    most, pool = images.max_soft_tokens, tower.pooling_kernel_size
    if most * pool > tower.position_embedding_size:
        refuse(
            path,
            f"{NAME}.position_embedding_size {tower.position_embedding_size} has no place for images of "
            f"{most} tokens in a row",
        )
    mean, deviation = images.colours
    return Vision(
        depth=tower.num_hidden_layers,
        hidden_size=tower.hidden_size,
        intermediate_size=tower.intermediate_size,
        num_heads=tower.num_attention_heads,
        patch_size=tower.patch_size,
        merge_size=pool,
        frames=1,
        table_side=0,
        out_size=model.hidden_size,
        deepstack=(),
        activation=ACTIVATIONS[tower.hidden_activation],
        token=around.image_token_id,
        unshown=around.unshown,
        min_pixels=(tower.patch_size * pool) ** 2,
        max_pixels=most * (tower.patch_size * pool) ** 2,
        # the tower makes of colours between 0 and 1 such between -1 and 1
        mean=tuple(m + d / 2 for m, d in zip(mean, deviation, strict=True)),
        deviation=tuple(d / 2 for d in deviation),
        gemma4=Gemma4(
            image_start=around.boi_token_id,
            image_end=around.eoi_token_id,
            together=around.text_config.use_bidirectional_attention == "vision",
            eps=tower.rms_norm_eps,
            theta=(tower.rope_parameters or _Turning()).rope_theta or 100.0,
            positions=tower.position_embedding_size,
            clipped=tower.use_clipped_linears,
            standardised=tower.standardize,
        ),
    )


def preprocessor(folder: Path, path: Path, tower: Patches) -> Images:
    """The settings for images, which must be those of the tower in the `config.json` at `path`."""
    images = vision.preprocessor(folder, Images, steps=("do_resize", "do_rescale")) or Images(
        patch_size=tower.patch_size, pooling_kernel_size=tower.pooling_kernel_size
    )
    for key in ("patch_size", "pooling_kernel_size"):
        if (told := getattr(images, key)) != getattr(tower, key):
            refuse(path, f"{NAME}.{key} is {getattr(tower, key)}, and for its images {told}")
    return images


def tower_of(path: Path, given: dict[str, Any], kind: type[T], model_type: str) -> T:
    """`vision_config`, in which nothing stands that is not understood and may change numbers."""
    try:
        tower = msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        refuse(path, f"{NAME}: {error}")
    config.refuse_unknown(path, given, kind, f"{NAME}.")
    if tower.model_type != model_type:
        refuse(path, f"{NAME}.model_type {tower.model_type} is not supported; {model_type} is")
    return tower


def _tower(path: Path, given: dict[str, Any]) -> _Tower:
    """`vision_config`, of which all is done here."""
    tower = tower_of(path, given, _Tower, TYPE)
    if tower.hidden_activation not in ACTIVATIONS:
        refuse(path, f"{NAME}.hidden_activation {tower.hidden_activation} is not supported")
    if tower.attention_bias:
        refuse(path, f"{NAME}.attention_bias is not supported: its projections have none")
    heads = tower.num_attention_heads
    if tower.num_key_value_heads != heads:
        refuse(
            path,
            f"{NAME}.num_key_value_heads {tower.num_key_value_heads} is not num_attention_heads, {heads}",
        )
    if heads * tower.head_dim != tower.hidden_size:
        refuse(path, f"{NAME}.head_dim {tower.head_dim} is not hidden_size / num_attention_heads")
    if tower.head_dim % 4:
        refuse(path, f"{NAME}.head_dim {tower.head_dim} does not divide into fours")
    return tower


def specs(vision: Vision) -> Iterator[TensorSpec]:
    """All that the tower and its projector load."""
    hidden, inner, about = vision.hidden_size, vision.intermediate_size, vision.gemma4

    def whole(name: str, *shape: int) -> TensorSpec:
        return TensorSpec(f"{PREFIX}{name}", shape, "first")

    def clipped(name: str, rows: int, columns: int) -> Iterator[TensorSpec]:
        yield whole(f"{name}.linear.weight", rows, columns)
        for bound in BOUNDS if about.clipped else ():
            yield whole(f"{name}.{bound}", 1)

    yield TensorSpec(PATCHES, (hidden, vision.patch_values), "first")
    yield TensorSpec(POSITIONS, (AXES * about.positions, hidden), "first")
    for number in range(vision.depth):
        layer = f"encoder.layers.{number}"
        for norm in NORMS:
            yield whole(f"{layer}.{norm}.weight", hidden)
        for part in "qkvo":
            yield from clipped(f"{layer}.self_attn.{part}_proj", hidden, hidden)
        for part in "qk":
            yield whole(f"{layer}.self_attn.{part}_norm.weight", hidden // vision.num_heads)
        yield from clipped(f"{layer}.mlp.gate_proj", inner, hidden)
        yield from clipped(f"{layer}.mlp.up_proj", inner, hidden)
        yield from clipped(f"{layer}.mlp.down_proj", hidden, inner)
    for name in ("std_bias", "std_scale") if about.standardised else ():
        yield whole(name, hidden)
    yield whole("projector.embedding_projection.weight", vision.out_size, hidden)


def tensors(stored: Mapping[str, Tensor], vision: Vision) -> dict[str, Tensor]:
    """All tensors, those of the tower under its names: the tables of positions as one, and each bound as a
    vector."""
    found = {renamed(name, RENAMED): tensor for name, tensor in stored.items()}
    positions, rows, hidden = found.get(POSITIONS), vision.gemma4.positions, vision.hidden_size
    if positions is not None and positions.shape == (AXES, rows, hidden):
        found[POSITIONS] = replace(positions, shape=(AXES * rows, hidden))
    for name, tensor in found.items():
        if tensor.shape == () and name.startswith(PREFIX):
            found[name] = replace(tensor, shape=(1,))
    return found
