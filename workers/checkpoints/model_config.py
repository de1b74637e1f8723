"""What a model is: its dimensions and settings, and those of the parts that not every one has.

One `ModelConfig` for all families, whatever their files call it; `config` beside this makes it of a file.
"""

from __future__ import annotations

from math import inf
from typing import Literal

import msgspec

from workers.checkpoints.experts import Experts
from workers.checkpoints.layers import Layer
from workers.checkpoints.rope import Rope
from workers.checkpoints.shares import WHOLE, Share, Split

Activation = Literal["silu", "gelu", "gelu_tanh", "relu2", "xielu"]


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
    apart: bool = False  # queries, keys and values are stored one by one, as are their convolutions (OLMo)
    tiled: bool = False  # columns of what goes out: a value head of each key head, then another of each, …
    beta_scale: float = 1.0  # of betas: above 1, what a state has may change its sign
    norm_eps: float | None = None  # of what a head gives; None: as of the other norms

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

    @property
    def results(self) -> tuple[int, int]:
        """What comes of a token: heads, and the size of each."""
        return self.value_heads, self.value_dim

    def on_rank(self, share: Share) -> DeltaNet:
        """The heads of a rank."""
        return msgspec.structs.replace(
            self, key_heads=share.of(self.key_heads), value_heads=share.of(self.value_heads)
        )

    def splits_into(self, split: Split) -> bool:
        """Whether the parts can have equal numbers of key heads, each with its value heads."""
        return self.key_heads % split.parts == 0


class Mamba(msgspec.Struct, frozen=True, kw_only=True):
    """Mamba-2 (https://arxiv.org/abs/2405.21060), of the layers that keep a state.

    Heads that follow each other are a group, and share keys and queries (B and C there). A group has a matrix
    `[state_dim, heads of a group * head_dim]`. What heads are given, keys and queries go through a short
    convolution over the last `kernel` tokens first.
    """

    heads: int
    head_dim: int
    groups: int
    state_dim: int
    kernel: int  # tokens
    conv_bias: bool = True
    bias: bool = False  # of the projections, in and out
    limits: tuple[float, float] = (0.0, inf)  # of a token's step
    # gates are multiplied with what is normalised then, by group; or with what was; or there is no norm
    norm: Literal["behind_gates", "before_gates", "none"] = "behind_gates"
    # that gates, what heads are given, keys, queries and steps are multiplied with before all else
    scales: tuple[float, float, float, float, float] = (1.0, 1.0, 1.0, 1.0, 1.0)

    @property
    def inner(self) -> int:
        """Elements of all heads."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Of the keys of all groups, or of their queries."""
        return self.groups * self.state_dim

    @property
    def channels(self) -> int:
        """Of the convolution: what heads are given, keys, queries."""
        return self.inner + 2 * self.keys

    @property
    def projected(self) -> int:
        """Gates, what goes into the convolution, and the step of each head."""
        return self.inner + self.channels + self.heads

    @property
    def state_size(self) -> int:
        """Elements that a layer keeps of a sequence: its matrices, and what the convolution still sees."""
        return self.inner * self.state_dim + (self.kernel - 1) * self.channels

    @property
    def matrices(self) -> tuple[int, int, int]:
        """Of a layer: how many, and their sizes."""
        return self.groups, self.state_dim, self.inner // self.groups

    @property
    def results(self) -> tuple[int, int]:
        """What comes of a token: heads, and the size of each."""
        return self.heads, self.head_dim

    def on_rank(self, share: Share) -> Mamba:
        """The heads of a rank, with their groups, of which several ranks may have the same one."""
        return msgspec.structs.replace(self, heads=share.of(self.heads), groups=share.kv_heads(self.groups))

    def splits_into(self, split: Split) -> bool:
        """Whether the parts can have equal numbers of heads, of whole groups or of one."""
        return self.heads % split.parts == 0 and split.divides_kv(self.groups)


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

    def on_rank(self, share: Share) -> ShortConvolution:
        """The channels of a rank."""
        return msgspec.structs.replace(self, channels=share.of(self.channels))

    def splits_into(self, split: Split) -> bool:
        """Whether the parts can have equal numbers of channels."""
        return self.channels % split.parts == 0


StateShape = DeltaNet | Mamba | ShortConvolution


class Multipliers(msgspec.Struct, frozen=True, kw_only=True):
    """Of a model that was made with μP (Falcon-H1): what is multiplied in each layer."""

    attention: float  # what it gives
    state: float  # the same of a state beside it
    gates: float  # of an MLP, before they are activated
    mlp: float  # what it gives


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


class AltUp(msgspec.Struct, frozen=True):
    """Alternating updates (https://arxiv.org/abs/2301.13310): a token has several predictions, of which a
    layer computes one, and corrects all by what came of it. Beside attention, its input is added once more,
    and what a projection of low rank makes of it (LAuReL, https://arxiv.org/abs/2411.07501)."""

    predictions: int
    active: int  # the one that is computed
    rank: int  # of the projection
    scaled: bool = True  # what inputs of layers are gated by is multiplied before


class Encoder(msgspec.Struct, frozen=True, kw_only=True):
    """What an encoder has and a decoder has not."""

    positions: int = 0  # rows of a table of them; 0: they turn
    first_position: int = 0  # the row of the first token
    token_types: int = 0  # texts that are told apart
    norm_bias: bool = False
    down_bias: bool = False  # the last projection of an MLP has one, whatever the others have


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The dimensions and settings of a decoder, or of an encoder; sizes in elements."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    inner_of: tuple[int, ...] = ()  # the same of each layer, where they are not alike
    num_layers: int
    num_heads: int
    heads_of: tuple[int, ...] = ()  # the same of each layer, where they are not alike
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
    # queries and keys: each head, with weights or without, or all together; or each head once it is turned,
    # without weights (and only where it is) or with; or each head, of values too
    qk_norm: Literal["none", "heads", "bare_heads", "whole", "turned", "turned_heads", "with_values"] = "none"
    temperature: Temperature | None = None
    latent: Latent | None = None  # attention is that
    # what attention gives is let through by gates: one for each number of it, which q_proj makes as well or a
    # projection of their own; or one for each head
    attention_gate: Literal["none", "within", "apart", "heads"] = "none"
    gate_activation: Literal["sigmoid", "softplus"] = "sigmoid"
    delta: DeltaNet | None = None  # what layers with a state are, in place of attention
    convolution: ShortConvolution | None = None  # or they are that
    mamba: Mamba | None = None  # or that
    multipliers: Multipliers | None = None
    norms: Norms = Norms()
    state_norms: Norms | None = None  # of layers with a state, where they are others
    norm_offset: float = 0.0  # is added to the weights of all norms
    after_norm_eps: float | None = None  # of those behind attention and MLP, where it is another
    layer_norm: bool = False  # norms take the mean away, and have a bias
    norm_bias: bool = True  # so they do
    single: bool = False  # a layer is attention, or a state, or an MLP, and no two of them
    parallel: bool = False  # the MLP reads what attention reads, and not what that adds
    window_rope: Rope | None = None  # of layers with a window, where it is another
    window_rotary_dim: int | None = None  # the same of `rotary_dim`
    unrotated: tuple[int, ...] = ()  # layers without positions
    values_of_keys: tuple[int, ...] = ()  # layers whose values are made by the projection of their keys
    per_layer: PerLayer | None = None
    altup: AltUp | None = None
    sparsity: tuple[float, ...] = ()  # of each layer: what share of its gates is closed, were they normal
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
    def state(self) -> StateShape | None:
        """What layers with a state are."""
        return self.delta or self.convolution or self.mamba

    @property
    def head_counts(self) -> list[int]:
        """How many attention heads a layer has: of all that differ, from the least."""
        return sorted({*self.heads_of} or {self.num_heads})

    def at_context(self, length: int) -> ModelConfig:
        """The same where a context is served that long: a longrope has other factors in a long one.

        They hold for all of it, for keys that are cached cannot turn again when their sequence grows.
        """
        if self.rope.rope_type != "longrope":
            return self
        is_long = length > self.rope.original_max_position_embeddings
        return msgspec.structs.replace(self, rope=msgspec.structs.replace(self.rope, is_long=is_long))

    def up_to(self, length: int | None) -> ModelConfig:
        """The same, served with contexts of so many tokens unless somebody asks for all that it has."""
        if length is None or length >= self.context_length:
            return self
        return msgspec.structs.replace(self, context_length=length)

    def of_layer(self, number: int) -> ModelConfig:
        """The same, of which every layer has as many heads as that one."""
        if not self.heads_of:
            return self
        return msgspec.structs.replace(self, num_heads=self.heads_of[number], heads_of=())

    def norms_of(self, number: int) -> Norms:
        """Those of a layer."""
        has_state = self.state_norms is not None and self.layers[number].kind == "state"
        return self.state_norms if has_state else self.norms

    @property
    def inner_sizes(self) -> tuple[int, ...]:
        """Of all MLPs."""
        return self.inner_of or (self.intermediate_size,)

    def inner(self, number: int) -> int:
        """The same of that layer's."""
        return self.inner_of[number] if self.inner_of else self.intermediate_size

    def closes(self, number: int) -> bool:
        """Whether most of that layer's gates are closed."""
        return bool(self.sparsity) and self.sparsity[number] > 0

    def unlike_layers(self) -> list[int]:
        """Numbers of layers of which each other one is like one, and of those whose keys they read."""
        first: dict[object, int] = {}
        for number, layer in enumerate(self.layers[: self.num_layers]):
            shape, has_experts = layer.shape_on_rank(WHOLE), self.experts and number in self.experts.layers
            kind = (
                shape,
                has_experts,
                layer.keeps,
                self.inner(number),
                self.closes(number),
                self.of_layer(number).num_heads,
            )
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

    @property
    def has_mlps(self) -> bool:
        """Whether there are MLPs that are no experts, nor stand beside some."""
        if (experts := self.experts) is not None and experts.beside_mlp:
            return True
        routed = () if experts is None else experts.layers
        return any(
            number not in routed and not (self.single and layer.kind != "nothing")
            for number, layer in enumerate(self.layers)
        )

    def guess_bytes(self, share: Share) -> int:
        """What layers with a state keep on a rank of a token that may have to be taken back, in float32 at
        most: what goes into their convolutions, and what changes matrices besides."""
        if self.state is None:
            return 0
        state = self.state.on_rank(share)
        numbers = state.channels
        if not isinstance(
            state, ShortConvolution
        ):  # what comes out of the convolution, and two for each head
            numbers += state.channels + 2 * state.results[0]
        return 4 * numbers * sum(layer.state_size > 0 for layer in self.layers)

    def splits_into(self, split: Split) -> bool:
        """Whether the model can be shared so."""
        experts, parts = self.experts, split.parts
        kv_heads = {self.num_kv_heads, *(layer.kv_heads or parts for layer in self.layers)}
        return (
            parts >= 1
            and all(heads % parts == 0 for heads in self.head_counts)
            and (not self.has_mlps or not any(size % parts for size in self.inner_sizes))
            and (experts is None or experts.splits_into(parts))
            and (not self.mtp or 2 * self.hidden_size % parts == 0)
            and (self.state is None or self.state.splits_into(split))
            and all(map(split.divides_kv, kv_heads))
            # all layers are shared alike, so that ranks agree which of them can have pages together
            and (split.even or len({heads % parts == 0 for heads in kv_heads}) == 1)
        )
