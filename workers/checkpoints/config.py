"""What a checkpoint's `config.json` says about the model, checked and made explicit.

Hugging Face writes these files in two ways: rotary settings flat (`rope_theta`, `rope_scaling`) or nested
(`rope_parameters`, since transformers 5). Both end in the same `ModelConfig`. Whatever would change the
numbers and is not done here is refused, naming the key: a model that runs with a setting ignored is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from workers.checkpoints import rope
from workers.checkpoints.experts import Experts
from workers.checkpoints.files import refuse
from workers.checkpoints.layers import Layer
from workers.checkpoints.rope import Rope, RopeKeys, Size

Activation = Literal["silu", "gelu", "gelu_tanh", "relu2", "xielu"]

LayerCount = Annotated[int, msgspec.Meta(ge=1, le=10_000)]

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu2": "relu2",
}


class Norms(msgspec.Struct, frozen=True):
    """What the norms of a layer are called, by where they stand; None: there is none."""

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None


class Latent(msgspec.Struct, frozen=True):
    """Multi-head latent attention (https://arxiv.org/abs/2405.04434): of keys and values of all heads one
    vector a token is kept, and a key with positions that all heads share."""

    rank: int  # of that vector
    rope_dim: int  # of the key with positions
    plain_dim: int  # of a head's own key, without positions
    value_dim: int  # of a head
    query_rank: int | None = None  # of the vector that queries are made of; None: they are made of the input


class DeltaNet(msgspec.Struct, frozen=True):
    """Gated DeltaNet (https://arxiv.org/abs/2412.06464), of the layers that keep a state.

    Each value head has a matrix `[key_dim, value_dim]`; a key head serves several of them, which follow each
    other. Queries, keys and values go through a short convolution over the last `kernel` tokens first.
    """

    key_heads: int
    value_heads: int
    key_dim: int  # of a head
    value_dim: int
    kernel: int  # tokens
    grouped: bool = False  # what a key head and its value heads are made of is stored together (Qwen3-Next)
    tiled: bool = False  # columns of what goes out: a value head of each key head, then another of each, …

    @property
    def channels(self) -> int:
        """Of the convolution: queries, keys, values."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    @property
    def state_size(self) -> int:
        """Elements that a layer keeps of a sequence: its matrices, and what the convolution still sees."""
        return self.value_heads * self.key_dim * self.value_dim + (self.kernel - 1) * self.channels

    @property
    def matrices(self) -> tuple[int, int, int]:
        """Of a layer: how many, and their sizes."""
        return self.value_heads, self.key_dim, self.value_dim

    def on_rank(self, world_size: int) -> DeltaNet:
        """The heads of each rank."""
        return msgspec.structs.replace(
            self, key_heads=self.key_heads // world_size, value_heads=self.value_heads // world_size
        )

    def splits_into(self, world_size: int) -> bool:
        """Whether ranks can have equal numbers of key heads, each with its value heads."""
        return self.key_heads % world_size == 0


class ShortConvolution(msgspec.Struct, frozen=True):
    """The convolution of LFM2 (https://arxiv.org/abs/2511.23404), of the layers that keep a state: the last
    inputs, and nothing else."""

    channels: int
    kernel: int  # tokens
    matrices = (0, 0, 0)  # as of `DeltaNet`

    @property
    def state_size(self) -> int:
        """Elements that a layer keeps of a sequence."""
        return (self.kernel - 1) * self.channels

    def on_rank(self, world_size: int) -> ShortConvolution:
        """The channels of each rank."""
        return msgspec.structs.replace(self, channels=self.channels // world_size)

    def splits_into(self, world_size: int) -> bool:
        """Whether ranks can have equal numbers of channels."""
        return self.channels % world_size == 0


class Temperature(msgspec.Struct, frozen=True):
    """Queries that grow with their positions (https://arxiv.org/abs/2501.19399), a step at a time:
    `1 + weight * log(1 + floor((position + first) / every))`."""

    every: int  # tokens
    weight: float
    first: int = 0
    unrotated: bool = False  # in layers without positions alone


class PerLayer(msgspec.Struct, frozen=True):
    """An input of each token into every layer, from a table of its own (Gemma 4)."""

    vocab_size: int  # of that table
    size: int  # of such an input
    unread: int = 0  # token whose row stands for all of an image


class Encoder(msgspec.Struct, frozen=True, kw_only=True):
    """What an encoder has and a decoder has not."""

    positions: int = 0  # rows of a table of them; 0: they turn
    first_position: int = 0  # the row of the first token
    token_types: int = 0  # texts that are told apart
    norm_bias: bool = False


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The dimensions and settings of a decoder, or of an encoder; sizes in elements."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    activation: Activation
    rope: Rope
    tied_head: bool  # the output head is the token embedding
    head_bias: bool = False
    qkv_bias: bool
    output_bias: bool  # of attention
    mlp_bias: bool
    gates: bool = True  # an MLP has them, which open what is projected beside them
    # queries and keys: each head, or all together; or each head once it is turned, without weights or with
    qk_norm: Literal["none", "heads", "whole", "turned", "turned_heads"] = "none"
    temperature: Temperature | None = None
    latent: Latent | None = None  # attention is that
    # what attention gives is let through by gates: one for each number of it, which q_proj makes as well or a
    # projection of their own; or one for each head
    attention_gate: Literal["none", "within", "apart", "heads"] = "none"
    delta: DeltaNet | None = None  # what layers with a state are, in place of attention
    convolution: ShortConvolution | None = None  # or they are that
    norms: Norms = Norms()
    norm_offset: float = 0.0  # is added to the weights of all norms
    layer_norm: bool = False  # norms take the mean away, and have a bias
    norm_bias: bool = True  # so they do
    parallel: bool = False  # the MLP reads what attention reads, and not what that adds
    window_rope: Rope | None = None  # of layers with a window, where it is another
    window_rotary_dim: int | None = None  # the same of `rotary_dim`
    unrotated: tuple[int, ...] = ()  # layers without positions
    values_of_keys: tuple[int, ...] = ()  # layers whose values are made by the projection of their keys
    double_wide: tuple[int, ...] = ()  # layers whose MLP is twice as wide
    per_layer: PerLayer | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0  # of what attention and MLP add
    attention_scale: float | None = None  # of scores; None: 1 / sqrt(head_dim)
    attention_cap: float | None = None  # scores are bent to stay below it: cap * tanh(score / cap)
    logit_scale: float = 1.0
    logit_cap: float | None = None
    sinks: bool = False  # of attention: every head has a score for nothing
    experts: Experts | None = None
    context_length: int  # tokens that the model was made for
    context_limit: int  # tokens that its positions can be stretched to; no less
    layers: tuple[Layer, ...]
    rotary_dim: int  # of a head, what turns with the positions: its first dimensions
    # Of a model that sees: how many pairs of a head's dimensions turn with a token's time, its row and its
    # column, in turn (interleaved M-RoPE). Of text all three are its position.
    rope_sections: tuple[int, int, int] | None = None
    interleaved: bool = False  # what turns together are neighbours, not dimensions that are half of it apart
    fused_qkv: bool = False  # queries, keys and values are stored as one tensor
    fused_gate_up: bool = False  # so are the two projections into an MLP
    writes: bool = True  # it is asked for tokens; else its head is not read
    # A head that predicts the token after the next is read, too: its layer is the last of `layers`, and of
    # those with experts, where the model has some; `num_layers` does not count it.
    mtp: bool = False
    bidirectional: bool = False  # tokens see later ones: a text is computed as a whole, and nothing is kept
    encoder: Encoder | None = None

    @property
    def state(self) -> DeltaNet | ShortConvolution | None:
        """What layers with a state are."""
        return self.delta or self.convolution

    def at_context(self, length: int) -> ModelConfig:
        """The same where a context is served that long: a longrope has other factors in a long one.

        They hold for all of it, for keys that are cached cannot turn again when their sequence grows.
        """
        if self.rope.rope_type != "longrope":
            return self
        is_long = length > self.rope.original_max_position_embeddings
        return msgspec.structs.replace(self, rope=msgspec.structs.replace(self.rope, is_long=is_long))

    def unlike_layers(self) -> list[int]:
        """Numbers of layers of which each other one is like one, and of those whose keys they read."""
        first: dict[object, int] = {}
        for number, layer in enumerate(self.layers[: self.num_layers]):
            shape, has_experts = layer.shape_on_rank(1), self.experts and number in self.experts.layers
            kind = shape, has_experts, layer.keys_of is not None, number in self.double_wide
            first.setdefault(kind, number)
        read = {self.layers[number].keys_of for number in first.values()} - {None}
        return sorted({*first.values(), *read})

    def with_mtp(self) -> ModelConfig:
        """The same with its head that predicts the token after the next (`mtp`): a layer that sees all
        tokens, as those of the model do, with experts where it has some."""
        number, experts = self.num_layers, self.experts
        layer = next(each for each in reversed(self.layers) if each.kind in ("full", "latent"))
        if experts is not None:
            experts = msgspec.structs.replace(experts, layers=(*experts.layers, number))
        return msgspec.structs.replace(self, mtp=True, layers=(*self.layers, layer), experts=experts)

    def guess_bytes(self, world_size: int) -> int:
        """What layers with a state keep on a rank of a token that may have to be taken back, in float32 at
        most: what goes into their convolutions, and what a delta net takes besides."""
        if self.state is None:
            return 0
        state = self.state.on_rank(world_size)
        numbers = state.channels
        if isinstance(state, DeltaNet):  # what comes out of the convolution, decay and beta
            numbers += state.channels + 2 * state.value_heads
        return 4 * numbers * sum(layer.kind == "state" for layer in self.layers)

    def splits_into(self, world_size: int) -> bool:
        """Whether the model can be spread over so many ranks."""
        experts = self.experts
        has_mlps = experts is None or experts.beside_mlp or len(experts.layers) < self.num_layers + self.mtp
        return (
            world_size >= 1
            and self.num_heads % world_size == 0
            and (self.intermediate_size % world_size == 0 or not has_mlps)
            and (experts is None or experts.splits_into(world_size))
            and (not self.mtp or 2 * self.hidden_size % world_size == 0)
            and (self.state is None or self.state.splits_into(world_size))
            and all(
                heads % world_size == 0 or world_size % heads == 0
                for heads in {self.num_kv_heads, *(layer.kv_heads or world_size for layer in self.layers)}
            )
        )


class ConfigFile(RopeKeys, frozen=True, kw_only=True):
    """The keys of `config.json` that every family understands. What is left out, a family fills in; one with
    keys of its own has a struct of its own."""

    architectures: list[str]
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: LayerCount
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    rms_norm_eps: Annotated[float, msgspec.Meta(ge=0)] = 1e-6
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: Size | None = None
    max_window_layers: Annotated[int, msgspec.Meta(ge=0)] | None = None
    layer_types: list[str] | None = None
    quantization_config: dict[str, Any] | None = None
    compression_config: dict[str, Any] | None = None
    eos_token_id: int | list[int] | None = None
    dtype: str | None = None  # since transformers 5; before, it was torch_dtype
    torch_dtype: str | None = None


# Keys without a bearing on the numbers that this engine computes.
_HARMLESS = """
    _name_or_path architectures auto_map bos_token_id cache_implementation chunk_size_feed_forward
    finetuning_task gradient_checkpointing id2label is_decoder is_encoder_decoder label2id max_length
    model_type name_or_path output_attentions output_hidden_states output_router_logits pad_token_id
    prefix pretraining_tp problem_type pruned_heads return_dict sep_token_id task_specific_params
    tie_encoder_decoder torchscript transformers_version unk_token_id unsloth_fixed unsloth_version
    use_bfloat16 use_cache
"""
HARMLESS = frozenset(_HARMLESS.split())
_HOW_NOT_WHAT = re.compile(r"dropout|pdrop|implementation|flash|initializer|fused")
_CHANGES_NUMBERS = re.compile(
    r"scal(e|ing)|multiplier|soft_?cap|clip|norm|rope|rotary|alibi|window|attn|attention|expert|moe|bias"
    r"|residual|mup|sink|lora|adapter|causal|parallel|logit|activation|embedding"
)
_NEUTRAL = (None, False, 0, 1, "", [], {})  # 0.0 and 1.0 are equal to these


File = TypeVar("File", bound=ConfigFile)


def read(path: Path, given: Mapping[str, Any], kind: type[File] = ConfigFile) -> File:
    """The keys of `config.json` that are understood, from all that are in it.

    Args:
        kind: what a family understands.

    Raises:
        CortexError: a key is missing or has the wrong type, or one that is not understood may change numbers.
    """
    try:
        file = msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        refuse(path, str(error))
    refuse_unknown(path, given, kind)
    return file


def refuse_unknown(
    path: Path, given: Mapping[str, Any], kind: type[msgspec.Struct], within: str = ""
) -> None:
    """Refuse a key of `given` that is none of `kind`, and may change numbers.

    Args:
        within: what stands before its name in what is said.
    """
    for key, value in given.items():
        known = key in HARMLESS or key in kind.__struct_encode_fields__
        if not known and sounds_as_if_it_mattered(key) and not is_neutral(value):
            refuse(path, f"{within}{key} {value} is not understood, and may change what the model computes")


def refuse_above(path: Path, file: ConfigFile, key: str, limit: str) -> None:
    """Refuse a key of `file` that says more than `limit`, another of its keys, allows."""
    value, most = getattr(file, key), getattr(file, limit)
    if value > most:
        refuse(path, f"{key} {value} is above {limit}, which is {most}")


def notes(given: Mapping[str, Any]) -> list[str]:
    """What stands there and is not followed, for whoever serves the model."""
    turning = next((given[key] for key in rope.KEYS if given.get(key)), {})
    kind = turning.get("rope_type") or turning.get("type")
    found = []
    if kind == rope.PLAIN_UP_TO_CONTEXT and not turning.get("alpha"):  # which is another base, and followed
        found.append(
            "config.json: the rope is dynamic, which up to the context that is served is the plain one"
        )
    return found


def sounds_as_if_it_mattered(key: str) -> bool:
    """Whether a key has the name of one that changes numbers."""
    return _CHANGES_NUMBERS.search(key) is not None and _HOW_NOT_WHAT.search(key) is None


def is_neutral(value: Any) -> bool:
    """Whether that is what such a key has where it changes nothing, most often."""
    return value is not True and value in _NEUTRAL


def model_config(
    path: Path, file: ConfigFile, windows: list[int | None], *, partial: bool = False, **changes: Any
) -> ModelConfig:
    """What `file` says of a dense decoder whose missing keys its family has filled in.

    Args:
        path: of the file, for the refusal.
        windows: tokens that each layer sees; None: all of them.
        partial: whether a part of a head may be what turns.
        changes: of the result, in what a family is another.

    Raises:
        CortexError: it asks for something that is not done here.
    """
    num_kv_heads = file.num_key_value_heads or file.num_attention_heads
    head_dim = file.head_dim or file.hidden_size // file.num_attention_heads
    if file.hidden_act not in ACTIVATIONS:
        refuse(path, f"hidden_act {file.hidden_act} is not supported; there are {', '.join(ACTIVATIONS)}")
    if file.num_attention_heads % num_kv_heads:
        refuse(path, f"num_key_value_heads {num_kv_heads} does not divide {file.num_attention_heads} heads")
    if head_dim < 2 or head_dim % 2:
        refuse(path, f"head_dim {head_dim} is not supported: heads have an even size")
    share = rope.rotary_share(file)
    rotary_dim = int(head_dim * share) if partial and isinstance(share, int | float) else head_dim
    if not 2 <= rotary_dim <= head_dim or rotary_dim % 2:
        refuse(path, f"partial_rotary_factor {share} of a head of {head_dim} is not supported")
    positions, context_length, context_limit = rope.read(path, file, rotary_dim, partial=partial)
    layers = tuple(
        Layer("full", num_kv_heads, head_dim)
        # a window that no layer could tell from seeing all, but for the positions that it may have
        if window is None or (window >= context_limit and "window_rope" not in changes)
        else Layer("window", num_kv_heads, head_dim, window)
        for window in windows
    )
    config = ModelConfig(
        vocab_size=file.vocab_size,
        hidden_size=file.hidden_size,
        intermediate_size=file.intermediate_size,
        num_layers=file.num_hidden_layers,
        num_heads=file.num_attention_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        norm_eps=file.rms_norm_eps,
        activation=ACTIVATIONS[file.hidden_act],
        rope=positions,
        tied_head=file.tie_word_embeddings,
        qkv_bias=file.attention_bias,
        output_bias=file.attention_bias,
        mlp_bias=False,
        context_length=context_length,
        context_limit=context_limit,
        layers=layers,
        rotary_dim=rotary_dim,
    )
    return msgspec.structs.replace(config, **changes)


def up_to(model: ModelConfig, length: int | None) -> ModelConfig:
    """The same, served with contexts of so many tokens unless somebody asks for all that it has."""
    if length is None or length >= model.context_length:
        return model
    return msgspec.structs.replace(model, context_length=length)


def windows_of(path: Path, file: ConfigFile, *, first: int) -> list[int | None]:
    """The window of each layer where `use_sliding_window` or `layer_types` asks for some.

    Args:
        first: the first layer with a window, where `layer_types` does not list them.
    """
    count = file.num_hidden_layers
    types = file.layer_types
    if types is None:
        windowed = [file.use_sliding_window and number >= first for number in range(count)]
    else:
        if len(types) != count:
            refuse(path, f"layer_types has {len(types)} entries, and there are {count} layers")
        for kind in types:
            if kind not in ("full_attention", "sliding_attention"):
                refuse(path, f"layer_types: {kind} is not supported")
        windowed = [kind == "sliding_attention" for kind in types]
    if any(windowed) and file.sliding_window is None:
        refuse(path, "sliding_window is missing, and some layers have one")
    return [file.sliding_window if each else None for each in windowed]


def unrotated_layers(path: Path, listed: list[int] | None, every: int, count: int) -> tuple[int, ...]:
    """The layers without positions, as `no_rope_layers` lists them: 1 where one has positions.

    Args:
        listed: of each layer, and maybe more; None: every so many'th has none.
        count: of layers.
    """
    rotated = [int((number + 1) % every != 0) for number in range(count)] if listed is None else listed
    if len(rotated) < count or not {*rotated} <= {0, 1}:
        refuse(path, f"no_rope_layers is no list of 0 and 1 for {count} layers")
    return tuple(number for number in range(count) if not rotated[number])
