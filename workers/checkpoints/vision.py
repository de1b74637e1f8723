"""What of a checkpoint sees: the tower of Qwen3-VL and Qwen3.5, or another that `pixtral`, `siglip` or
`gemma4_vision` reads.

Its tensors are all on rank 0, which looks for all ranks; what it saw is sent to the others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec

from workers.checkpoints import text
from workers.checkpoints.config import ACTIVATIONS
from workers.checkpoints.family import TensorSpec, linear, norm
from workers.checkpoints.files import read_json, refuse
from workers.checkpoints.model_config import Activation, ModelConfig
from workers.checkpoints.rope import Size
from workers.checkpoints.safetensors import Tensor

PREFIX = "visual."
RENAMED = {"visual.": PREFIX}
PATCHES = "visual.patch_embed.proj.weight"
# the first that has the settings, as in transformers
PREPROCESSORS = {"processor_config.json": "image_processor", "preprocessor_config.json": None}
CHANNELS = 3
SEGMENT_BYTES = {"cpu": 0, "cuda": 20 << 20}  # by which torch's allocator takes more than is used
FLOAT = 4  # bytes of a float32
BICUBIC = 3
PIECE_PATCHES = {"cpu": 256, "cuda": 2048}  # that a tower takes at once, by kind of device
REMEMBERED_BYTES = 64 << 20  # of what was seen in images, on the CPU


class LookBytes(NamedTuple):
    """Of memory, while a tower looks at an image."""

    kept: int  # from one piece of its work to the next, at most
    piece: int  # besides, while one is computed


class Pixtral(msgspec.Struct, frozen=True, kw_only=True):
    """What else there is to know of a tower of Pixtral's, and of its projector; see `pixtral`."""

    longest: int  # pixels of a side, at most
    line_end: int  # token behind each row of an image's tokens,
    image_end: int  # and behind the last one
    theta: float  # of the angles by which rows and columns turn
    projector_eps: float
    projector_activation: Activation
    projector_bias: bool


class PanAndScan(msgspec.Struct, frozen=True):
    """When crops of an image are shown beside it, cut from one end of its longer side to the other."""

    least: int  # pixels of a crop's side
    most: int  # crops
    ratio: float  # of the sides, at least


class Siglip(msgspec.Struct, frozen=True, kw_only=True):
    """The same of a tower of SigLIP's, and of Gemma 3's projector; see `siglip`."""

    mark: int  # token that stands for an image in a text, and before its tokens,
    image_end: int  # and the one behind them
    eps: float  # of the norms
    crops: PanAndScan | None = None


class Gemma4(msgspec.Struct, frozen=True, kw_only=True):
    """The same of a tower of Gemma 4 (see `gemma4_vision`), or of what 12B has in its place
    (`gemma4_unified_vision`)."""

    image_start: int  # token before those of an image,
    image_end: int  # and the one behind them
    together: bool  # they see each other
    eps: float  # of the norms
    positions: int  # columns, and rows, that have an embedding
    unified: bool = False  # a token is one patch, and there are no blocks: nor is there what follows
    theta: float = 0.0  # of the angles by which rows and columns turn
    clipped: bool = False  # what goes into a product and comes of it stays within bounds
    standardised: bool = False  # what patches come to is moved and scaled, number by number


class Vision(msgspec.Struct, frozen=True, kw_only=True):
    """The dimensions of the tower, and which images it takes.

    An image becomes patches of `patch_size` pixels a side, in a grid whose sides are multiples of
    `merge_size`; of each `merge_size` x `merge_size` patches comes one token.
    """

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    patch_size: int  # pixels
    merge_size: int  # patches
    frames: int  # of a film in a patch: an image is so many of the same
    table_side: int  # of the square table of positions, which is stretched over the grid; 0: there is none
    out_size: int  # hidden size of the language model
    deepstack: tuple[int, ...]  # layers whose output is shown to the first layers of the language model
    activation: Activation
    token: int  # stands in a prompt for each token of an image
    unshown: tuple[int, ...] = ()  # tokens that stand for media which it is not shown, as films
    min_pixels: int  # an image is made larger or smaller to have so many, its sides near their ratio
    max_pixels: int
    mean: tuple[float, float, float]  # of colours between 0 and 1, that become 0
    deviation: tuple[float, float, float]  # and what is 1 away from there then
    pixtral: Pixtral | None = None  # of such a tower, which has no deepstack
    siglip: Siglip | None = None  # the same
    gemma4: Gemma4 | None = None  # the same
    token_work: int = 0  # multiplications of the language model for a token, nearly; 0: nobody knows

    @property
    def side(self) -> int:
        """Pixels of a token's side; those of an image are multiples of it."""
        return self.patch_size * self.merge_size

    @property
    def gap(self) -> int:
        """Tokens of text behind each row of an image's."""
        return int(self.pixtral is not None)

    @property
    def together(self) -> int:
        """Tokens of an image at most, where they see each other; 0: they see what is before them, as text
        does."""
        sees = self.siglip is not None or (self.gemma4 is not None and self.gemma4.together)
        return self.max_pixels // self.side**2 if sees else 0

    @property
    def in_line(self) -> bool:
        """Whether tokens of an image stand where text would, and have no positions of rows and columns."""
        return self.pixtral is not None or self.siglip is not None or self.gemma4 is not None

    @property
    def colours_last(self) -> bool:
        """Whether a patch has its colours pixel by pixel, and not its pixels colour by colour."""
        return self.gemma4 is not None

    @property
    def mark(self) -> int:
        """Token that chat templates leave for an image."""
        return self.token if self.siglip is None else self.siglip.mark

    @property
    def patch_values(self) -> int:
        """Numbers in a patch."""
        return CHANNELS * self.frames * self.patch_size**2

    def look_work(self, tokens: int) -> int:
        """Multiplications of the tower for an image of so many tokens."""
        hidden, out = self.hidden_size, self.out_size
        patches, merged = tokens * self.merge_size**2, hidden * self.merge_size**2
        gated = self.pixtral is not None or self.gemma4 is not None
        block = 4 * hidden + 2 * patches + (2 + gated) * self.intermediate_size
        if self.pixtral is not None:
            last = merged * hidden + out * (hidden + out)
        elif self.siglip is not None or self.gemma4 is not None:
            last = hidden * out
        else:
            last = (1 + len(self.deepstack)) * merged * (merged + out)
        return patches * hidden * (self.patch_values + self.depth * block) + tokens * last

    def look_cost(self, tokens: int) -> int:
        """How many tokens of text the language model computes with as much work, nearly."""
        return round(self.look_work(tokens) / self.token_work) if self.token_work else 0

    def look_bytes(self, itemsize: int, context_length: int, kind: str) -> LookBytes:
        """What the tower takes for the largest image that a context can have, on a CPU or a GPU.

        Kept of each patch are its place in the stream, queries, keys and values, and by which angles these
        turn; and of each token what it becomes, once there is some of that.
        """
        if self.gemma4 is not None:
            return self._look_bytes_of_gemma4(itemsize, context_length, kind)
        patches = min(self.max_pixels // self.patch_size**2, context_length * self.merge_size**2)
        at_once, hidden = min(patches, PIECE_PATCHES[kind]), self.hidden_size
        stream, wide, turns = hidden * itemsize, self.intermediate_size * itemsize, self.siglip is None
        more = 1 if self.pixtral is None else {"cpu": 3, "cuda": 2}[kind]  # or no kernel for gates
        tokens = patches // self.merge_size**2 * self.out_size * (1 + len(self.deepstack)) * itemsize
        qwen = self.pixtral is None and self.siglip is None  # whose tokens are there from the first block on
        colours, filled = self.patch_values // self.frames, self.patch_values * itemsize
        stretched = 2 * FLOAT * hidden if self.table_side and turns else 0
        first = max(colours * itemsize + max(colours * FLOAT, filled), filled + 2 * stream + stretched)
        in_block = max(4 * stream, 3 * FLOAT * hidden * turns, wide + max(more * wide, stream))
        inside = patches * (stream + FLOAT * (hidden // self.num_heads) * turns)
        kept = inside + (3 * patches * stream + tokens if qwen else max(3 * patches * stream, tokens))
        at_last = at_once * 4 * stream + inside + tokens
        most = max(patches * stream + at_once * first, kept + at_once * in_block, at_last)
        return LookBytes(kept, most - kept + SEGMENT_BYTES[kind])

    def _look_bytes_of_gemma4(self, itemsize: int, context_length: int, kind: str) -> LookBytes:
        """Of its own blocks, which normalise more and in which gates are a product by themselves."""
        patches = min(self.max_pixels // self.patch_size**2, context_length * self.merge_size**2)
        at_once, hidden = min(patches, PIECE_PATCHES[kind]), self.hidden_size
        stream, wide = hidden * itemsize, self.intermediate_size * itemsize
        filled = self.patch_values * itemsize
        tokens = patches // self.merge_size**2 * self.out_size * itemsize
        colours = filled + max(self.patch_values * FLOAT, filled)
        if self.gemma4.unified:
            kept, first = patches * stream + tokens, max(colours, 2 * filled + stream)
            most = max(patches * stream + at_once * first, kept + at_once * (stream + 2 * FLOAT * hidden))
            return LookBytes(kept, most - kept + SEGMENT_BYTES[kind])
        first = max(colours, filled + 3 * stream)
        clipped = stream * self.gemma4.clipped
        in_block = max(stream + 3 * FLOAT * hidden, 4 * stream, stream + clipped + 2 * wide)
        kept = patches * (4 * stream + FLOAT * (hidden // self.num_heads))
        at_last = patches * stream + tokens + at_once * 2 * stream
        most = max(patches * stream + at_once * first, kept + at_once * in_block, at_last)
        return LookBytes(kept, most - kept + SEGMENT_BYTES[kind])


Token = Annotated[int, msgspec.Meta(ge=0)]


class _Tower(msgspec.Struct, kw_only=True):
    """The part `vision_config` of a `config.json`."""

    depth: Size = 27
    hidden_size: Size = 1152
    intermediate_size: Size = 4304
    num_heads: Size = 16
    in_channels: Size = CHANNELS
    patch_size: Size = 16
    spatial_merge_size: Size = 2
    temporal_patch_size: Size = 2
    out_hidden_size: Size
    num_position_embeddings: Size = 2304
    deepstack_visual_indexes: list[Annotated[int, msgspec.Meta(ge=0)]] = []
    hidden_act: str = "gelu_pytorch_tanh"
    rope_parameters: dict[str, Any] | None = None


class _Around(msgspec.Struct):
    vision_config: _Tower
    image_token_id: Token
    video_token_id: Token | None = None


Base = Annotated[float, msgspec.Meta(gt=0)]  # of the angles by which rows and columns turn


class Turning(msgspec.Struct):
    """The part `rope_parameters` of a tower whose queries and keys turn with rows and columns."""

    rope_type: Literal["axial", "default"] = "axial"
    rope_theta: Base | None = None


Colours = tuple[float, float, float]


class Preprocessor(msgspec.Struct, kw_only=True):
    """What all settings for images have, and what is meant where a file does not say."""

    image_mean: Colours = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
    image_std: Colours = (0.26862954, 0.26130258, 0.27577711)
    rescale_factor: float = 1 / 255
    resample: int = BICUBIC
    do_resize: bool | None = None
    do_rescale: bool | None = None
    do_normalize: bool | None = None


Settings = TypeVar("Settings", bound=Preprocessor)


class _Edges(msgspec.Struct):
    shortest_edge: Size
    longest_edge: Size


class _Preprocessor(Preprocessor, kw_only=True):
    size: _Edges | None = None
    min_pixels: Size | None = None  # the same, until 2025
    max_pixels: Size | None = None
    patch_size: Size | None = None
    merge_size: Size | None = None
    temporal_patch_size: Size | None = None


UNWRITTEN = _Edges(shortest_edge=56 * 56, longest_edge=28 * 28 * 1280)  # sizes that are meant so
# what Qwen's own files say, where there is none
USUAL = _Preprocessor(
    size=_Edges(shortest_edge=1 << 16, longest_edge=1 << 24),
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
)


def missing(folder: Path, path: Path, stored: Collection[str], model: ModelConfig) -> str:
    """Why the language model alone can be served: never, where a family of Qwen's says that it sees."""
    return ""


def read(folder: Path, path: Path, model: ModelConfig) -> Vision:
    """What the `config.json` at `path` and the settings for images in its `folder` say.

    Args:
        model: the language model.

    Raises:
        CortexError: MODEL_LOAD_FAILED, naming the file and what is not done here.
    """
    around = read_json(path, _Around)
    tower, images = around.vision_config, preprocessor(folder, _Preprocessor) or USUAL
    name = "vision_config"
    if tower.in_channels != CHANNELS:
        refuse(path, f"{name}.in_channels {tower.in_channels} is not supported: images have {CHANNELS}")
    if tower.hidden_act not in ACTIVATIONS:
        refuse(path, f"{name}.hidden_act {tower.hidden_act} is not supported")
    if tower.hidden_size % (4 * tower.num_heads):
        refuse(path, f"{name}.num_heads {tower.num_heads} does not divide {tower.hidden_size} into fours")
    table_side = round(tower.num_position_embeddings**0.5)
    if table_side**2 != tower.num_position_embeddings:
        refuse(path, f"{name}.num_position_embeddings {tower.num_position_embeddings} is no square")
    if tower.out_hidden_size != model.hidden_size:
        refuse(
            path,
            f"{name}.out_hidden_size {tower.out_hidden_size} is not text_config.hidden_size, "
            f"{model.hidden_size}",
        )
    if (rope := tower.rope_parameters or {}).get("rope_theta", 10_000.0) != 10_000.0:
        refuse(path, f"{name}.rope_parameters.rope_theta {rope['rope_theta']} is not supported")
    if around.image_token_id >= model.vocab_size:
        refuse(path, f"image_token_id {around.image_token_id} is none of {model.vocab_size} tokens")
    deepstack = tower.deepstack_visual_indexes
    if len(set(deepstack)) < len(deepstack) or max(deepstack, default=0) >= tower.depth:
        refuse(path, f"{name}.deepstack_visual_indexes {deepstack} are no {len(deepstack)} of its layers")
    for key, told in (
        ("patch_size", images.patch_size),
        ("spatial_merge_size", images.merge_size),
        ("temporal_patch_size", images.temporal_patch_size),
    ):
        if told not in (None, getattr(tower, key)):
            refuse(path, f"{name}.{key} is {getattr(tower, key)}, and for its images {told}")
    edges = images.size or _Edges(
        images.min_pixels or UNWRITTEN.shortest_edge, images.max_pixels or UNWRITTEN.longest_edge
    )
    if edges.shortest_edge > edges.longest_edge:
        refuse(
            folder, f"its images have {edges.shortest_edge} to {edges.longest_edge} pixels, which are none"
        )
    return Vision(
        depth=tower.depth,
        hidden_size=tower.hidden_size,
        intermediate_size=tower.intermediate_size,
        num_heads=tower.num_heads,
        patch_size=tower.patch_size,
        merge_size=tower.spatial_merge_size,
        frames=tower.temporal_patch_size,
        table_side=table_side,
        out_size=tower.out_hidden_size,
        deepstack=tuple(deepstack),
        activation=ACTIVATIONS[tower.hidden_act],
        token=around.image_token_id,
        unshown=() if around.video_token_id is None else (around.video_token_id,),
        min_pixels=edges.shortest_edge,
        max_pixels=edges.longest_edge,
        mean=images.image_mean,
        deviation=images.image_std,
    )


def specs(vision: Vision) -> Iterator[TensorSpec]:
    """All that the tower loads."""
    hidden, merged = vision.hidden_size, vision.hidden_size * vision.merge_size**2

    yield from linear(f"{PREFIX}patch_embed.proj", hidden, vision.patch_values, "first")
    yield TensorSpec(f"{PREFIX}pos_embed.weight", (vision.table_side**2, hidden), "first")
    for number in range(vision.depth):
        block = f"blocks.{number}"
        yield from norm(f"{PREFIX}{block}.norm1", hidden, sharing="first")
        yield from norm(f"{PREFIX}{block}.norm2", hidden, sharing="first")
        yield from linear(f"{PREFIX}{block}.attn.qkv", 3 * hidden, hidden, "first")
        yield from linear(f"{PREFIX}{block}.attn.proj", hidden, hidden, "first")
        yield from linear(f"{PREFIX}{block}.mlp.linear_fc1", vision.intermediate_size, hidden, "first")
        yield from linear(f"{PREFIX}{block}.mlp.linear_fc2", hidden, vision.intermediate_size, "first")
    mergers = {"merger": hidden} | {
        f"deepstack_merger_list.{number}": merged for number in range(len(vision.deepstack))
    }
    for name, size in mergers.items():
        yield from norm(f"{PREFIX}{name}.norm", size, sharing="first")
        yield from linear(f"{PREFIX}{name}.linear_fc1", merged, merged, "first")
        yield from linear(f"{PREFIX}{name}.linear_fc2", vision.out_size, merged, "first")


def tensors(stored: Mapping[str, Tensor], vision: Vision) -> dict[str, Tensor]:
    """All tensors, those of the tower under its names, and the filter of its patches as a matrix."""
    found = {renamed(name, RENAMED): tensor for name, tensor in stored.items()}
    patches = found.get(PATCHES)
    filters = (vision.hidden_size, CHANNELS, vision.frames, vision.patch_size, vision.patch_size)
    if patches is not None and patches.shape == filters:
        found[PATCHES] = replace(patches, shape=(vision.hidden_size, vision.patch_values))
    return found


def renamed(name: str, prefixes: Mapping[str, str]) -> str:
    """What a tensor of a file is called here.

    Args:
        prefixes: how names begin there, but for a "model.", and how they do here. The first that fits counts.
    """
    bare = name.removeprefix("model.")
    prefix = next(filter(bare.startswith, prefixes), None)
    return name if prefix is None else prefixes[prefix] + bare.removeprefix(prefix)


def without_tokens(folder: Path, around: msgspec.Struct, keys: Sequence[str], model: ModelConfig) -> str:
    """Which of the tokens that an image needs a model or its tokenizer has not; empty: they have all.

    Args:
        around: the `config.json`, in which `keys` name them.
    """
    known = text.added(folder).values()
    for key in keys:
        if (token := getattr(around, key)) is None or token >= model.vocab_size:
            return f"{key} {token} is none of {model.vocab_size} tokens"
        if token not in known:
            return f"{text.TOKENIZER} has no token {token}, its {key}"
    return ""


STEPS = ("do_resize", "do_rescale", "do_normalize")


def preprocessor(
    folder: Path, kind: type[Settings], resample: int = BICUBIC, steps: Sequence[str] = STEPS
) -> Settings | None:
    """The settings for images, which stand in one of two files; None: in neither.

    Args:
        resample: the number of the filter that is meant by which they are made larger and smaller.
        steps: that may not be left out.
    """
    for name, part in PREPROCESSORS.items():
        if not (path := folder / name).exists():
            continue
        given = read_json(path, dict[str, Any])
        if part is not None:
            given = given.get(part)
        if given is None:
            continue
        try:
            found = msgspec.convert(given, kind)
        except msgspec.ValidationError as error:
            refuse(path, str(error))
        if (
            abs(found.rescale_factor * 255 - 1) > 1e-6
            or found.resample != resample
            or min(found.image_std) <= 0
        ):
            refuse(path, "has a rescale_factor, resample or image_std that is not supported")
        for step in steps:
            if getattr(found, step) is False:
                refuse(path, f"{step} false is not supported")
        return found
    return None
