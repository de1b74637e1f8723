"""The decoder of Gemma 4: that of Gemma 3 with layers of two shapes, and more in each of them.

─┬─ norm ─ attention ─ norm ─┬+─┬─ norm ─ mlp ───── norm ─┬─ norm ─┬+─┬─ gate ─ input ─ norm ─┬+─ scale
 └───────────────────────────┘  ├─ norm ─ experts ─ norm ─┘+       │  └───────────────────────┘
                                └──────────────────────────────────┘
The second row is there with experts, the last addition where layers have inputs of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from workers.attention.backend import Attend
from workers.checkpoints.experts import Experts
from workers.checkpoints.families import gemma4 as names
from workers.checkpoints.model_config import ModelConfig
from workers.layers.embedding import Embedding, VocabularySlice
from workers.layers.linear import ColumnParallel, Linear, RowParallel
from workers.layers.norm import HeadNorm, RMSNorm, over_rms
from workers.layers.rotary import Angles, rotate
from workers.models.decoder import Block, Decoder, Places, Seen
from workers.models.experts import MixtureOfExperts, Router
from workers.models.mlp import MLP, activated
from workers.models.residual import Residual, only
from workers.parallel import RankGroup
from workers.weights.blocks import Empty
from workers.weights.loader import Shard, Slice


class Gemma4(Decoder):
    """One rank's share of the model."""

    def __init__(
        self,
        config: ModelConfig,
        group: RankGroup,
        dtype: torch.dtype,
        formats: Mapping[str, str] | None = None,  # of weights that are kept in blocks, by name
    ) -> None:
        super().__init__(config, group, dtype, formats)
        empty = Empty(dtype, group.device, formats)
        self.inputs = None if config.per_layer is None else LayerInputs(config, group, empty, dtype)

    def block(self, number: int, config: ModelConfig, group: RankGroup, empty: Empty) -> Block:
        return Gemma4Block(number, config, group, empty)

    def parts(self) -> Iterator[Shard]:
        yield from super().parts()
        if self.inputs is not None:
            yield from self.inputs.parts()

    def make_exact(self) -> None:
        super().make_exact()
        if self.inputs is not None:
            self.inputs.projection.make_exact({})

    def __call__(
        self,
        token_ids: Tensor,
        positions: Tensor,
        attend: Attend,
        numbers: Sequence[int] | None = None,
        seen: Seen | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:  # [tokens, or wanted ones, hidden], before the last norm
        places = self.places(positions)
        x = self.embedded(token_ids)
        if seen is not None:
            x = seen.shown(x, 0)
            if self.inputs is not None:  # whose table has nothing for images
                token_ids = token_ids.index_fill(0, seen.rows, self.inputs.unread)
        inputs = None if self.inputs is None else self.inputs(token_ids, x)
        stream = Residual(x)
        del x
        blocks = self._blocks(numbers)
        for block in blocks:
            own = None if inputs is None else inputs[:, block.number]
            block(stream, places, attend, wanted if block is blocks[-1] else None, own)
        return stream.whole()


class LayerInputs:
    """What each layer is given of a token besides: of a table, and of its embedding."""

    def __init__(self, config: ModelConfig, group: RankGroup, empty: Empty, dtype: torch.dtype) -> None:
        size, columns = config.per_layer.size, config.num_layers * config.per_layer.size
        vocabulary = VocabularySlice(config.per_layer.vocab_size, group)
        self.shape, self.unread = (config.num_layers, size), config.per_layer.unread
        self.lacks = config.vocab_size > config.per_layer.vocab_size  # rows for the last tokens
        self.table = Embedding(names.TABLE, vocabulary, columns, empty)
        self.scale = float(torch.tensor(size**0.5, dtype=dtype))  # as it was trained
        self.projection = ColumnParallel(
            [(names.PROJECTION, columns, range(columns))], config.hidden_size, False, empty
        )
        self.projection_scale = config.hidden_size**-0.5
        self.norm = RMSNorm(names.PROJECTION_NORM, size, config.norm_eps, empty)

    def parts(self) -> Iterator[Shard]:
        yield Shard([*self.table.pieces(), *self.norm.pieces()])
        yield Shard([*self.projection.pieces()], self.projection.pack)

    def __call__(self, token_ids: Tensor, x: Tensor) -> Tensor:  # [tokens, layers, size]
        if self.lacks:
            token_ids = token_ids.masked_fill(token_ids >= self.table.vocabulary.size, 0)
        projected = (self.projection(x) * self.projection_scale).unflatten(1, self.shape)
        table = (self.table(token_ids) * self.scale).unflatten(1, self.shape)
        return (self.norm(projected) + table) * 0.5**0.5


class InputGate:
    """What a layer makes of its own input: as much of it as what it has computed lets through."""

    def __init__(self, name: str, config: ModelConfig, empty: Empty) -> None:
        size, hidden = config.per_layer.size, config.hidden_size
        self.activation, self.exact = config.activation, False
        self.gate = ColumnParallel([(f"{name}.{names.GATE}", size, range(size))], hidden, False, empty)
        self.into = ColumnParallel([(f"{name}.{names.INTO}", hidden, range(hidden))], size, False, empty)
        self.norm = RMSNorm(f"{name}.{names.NORM_OF_INPUT}", hidden, config.norm_eps, empty)

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.gate, self.into

    def __call__(
        self, x: Tensor, own: Tensor
    ) -> Tensor:  # [tokens, hidden], [tokens, size] -> [tokens, hidden]
        return self.norm(self.into(activated(self.gate(x), self.activation, self.exact) * own))


class Gemma4Block(Block):
    """A layer of one of two shapes, of which some read the keys and values of another."""

    def __init__(self, number: int, config: ModelConfig, group: RankGroup, empty: Empty) -> None:
        super().__init__(number, config, group, empty)
        name, hidden = f"model.layers.{number}", config.hidden_size

        def norm(own: str) -> RMSNorm:
            return RMSNorm(f"{name}.{own}", hidden, config.norm_eps, empty)

        source = config.layers[number].keys_of
        self.source = number if source is None else source
        self.group, self.name, self.scale = group, name, empty(1)
        self.experts: MixtureOfExperts | None = None
        self.more_norms: list[RMSNorm] = []
        if config.experts is not None:
            router = partial(ScaledRouter, eps=config.norm_eps)
            self.experts = MixtureOfExperts(name, config, group, empty, router=router)
            self.after_dense, self.before_experts, self.after_experts = map(norm, names.EXPERT_NORMS)
            self.more_norms += [self.after_dense, self.before_experts, self.after_experts]
        self.gate = None if config.per_layer is None else InputGate(name, config, empty)
        if self.gate is not None:
            self.more_norms.append(self.gate.norm)

    def _attention(self, name: str, config: ModelConfig, group: RankGroup, empty: Empty) -> Gemma4Attention:
        return Gemma4Attention(name, self.number, config, group, empty)

    def _mlp(self, name: str, config: ModelConfig, group: RankGroup, empty: Empty) -> MLP:
        inner = config.inner(self.number)
        return MLP(name, config, group, empty, inner=inner, part=config.experts is not None)

    @property
    def linears(self) -> tuple[Linear, ...]:
        experts = () if self.experts is None else self.experts.linears
        return *super().linears, *experts, *(() if self.gate is None else self.gate.linears)

    def make_exact(self, known: dict[object, list[int]]) -> None:
        super().make_exact(known)
        if self.gate is not None:
            self.gate.exact = True
        if self.experts is not None:
            self.experts.exact = True

    def _vectors(self) -> Iterator[Slice]:
        yield from super()._vectors()
        yield from (piece for norm in self.more_norms for piece in norm.pieces())
        yield Slice(f"{self.name}.{names.SCALE}", (1,), self.scale)

    def __call__(
        self,
        stream: Residual,
        places: Places,
        attend: Attend,
        wanted: Tensor | None = None,
        own: Tensor | None = None,
    ) -> None:
        """One layer.

        Args:
            own: its input, `[tokens, size]`.
        """
        angles = places.angles[self.rope]
        attend = partial(attend, self.source)
        normed = stream.normed(self.before_attention)
        attended = self.after_attention(self.attention(normed, angles, attend, wanted))
        del normed
        stream.keep(wanted)
        stream.add(attended)
        del attended
        stream.add(self.after_mlp(self._fed(stream)))
        if own is not None:
            stream.add(self.gate(stream.whole(), only(own, wanted)))
        stream.multiply(self.scale)

    def _fed(self, stream: Residual) -> Tensor:  # [tokens, hidden]
        """What comes of the MLP, and of experts beside it: this rank has a part of both, and the ranks meet
        once."""
        dense = self.mlp(stream.normed(self.before_mlp))
        if self.experts is None:
            return dense
        x = stream.whole()
        routed = self.experts.part(self.before_experts(x), shown=x)
        dense, routed = self.group.all_reduce(torch.stack((dense, routed)))
        return self.after_dense(dense) + self.after_experts(routed)


class ScaledRouter(Router):
    """It normalises what it sees, and each expert has a scale of its own."""

    def __init__(
        self, name: str, experts: Experts, hidden: int, group: RankGroup, empty: Empty, eps: float
    ) -> None:
        super().__init__(name, experts, hidden, group, empty)
        self.eps = eps
        self.layer = name.removesuffix(names.ROUTER)
        self.inputs = empty(hidden, dtype=torch.float32)
        self.scales = empty(experts.count, dtype=torch.float32)

    def pieces(self) -> Iterator[Slice]:
        yield from super().pieces()
        yield Slice(self.layer + names.ROUTER_SCALE, tuple(self.inputs.shape), self.inputs)
        yield Slice(self.layer + names.EXPERT_SCALES, tuple(self.scales.shape), self.scales)

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:  # [tokens, chosen] both
        x = x.float()
        seen = x * over_rms(x, self.eps) * self.inputs * x.shape[1] ** -0.5
        weights, numbers = super().choose(seen)
        return weights * self.scales[numbers], numbers


class Gemma4Attention:
    """Heads of the layer's own size. Keys and values are normalised, or those of another layer."""

    def __init__(self, name: str, number: int, config: ModelConfig, group: RankGroup, empty: Empty) -> None:
        layer, heads, hidden = config.layers[number], config.num_heads, config.hidden_size
        self.head_dim, self.eps = layer.head_dim, config.norm_eps
        self.keeps, self.has_values = layer.keys_of is None, number not in config.values_of_keys
        mine, mine_kv = group.share(heads), group.share_kv(layer.kv_heads)
        self.num_heads, self.num_kv_heads = len(mine), len(mine_kv) if self.keeps else 0

        def projection(own: str, count: int, part: range) -> tuple[str, int, range]:
            rows = range(part.start * self.head_dim, part.stop * self.head_dim)
            return f"{name}.{own}", count * self.head_dim, rows

        projections, norms = [projection("q_proj", heads, mine)], [f"{name}.q_norm"]
        if self.keeps:
            projections.append(projection("k_proj", layer.kv_heads, mine_kv))
            norms.append(f"{name}.k_norm")
            if self.has_values:
                projections.append(projection("v_proj", layer.kv_heads, mine_kv))
        self.qkv = ColumnParallel(projections, hidden, config.qkv_bias, empty)
        columns = heads * self.head_dim
        self.output = RowParallel(f"{name}.o_proj", hidden, columns, config.output_bias, group, empty)
        counts = [self.num_heads, self.num_kv_heads][: len(norms)]
        self.norm = HeadNorm(norms, counts, self.head_dim, config.norm_eps, empty)

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.qkv, self.output

    def norm_pieces(self) -> Iterator[Slice]:
        return self.norm.pieces()

    def __call__(
        self,
        x: Tensor,  # [tokens, hidden]
        angles: Angles,
        attend: Callable[[Tensor, Tensor | None, Tensor | None], Tensor],
        wanted: Tensor | None = None,
    ) -> Tensor:  # [tokens, or wanted ones, hidden]
        projected = self.qkv(x).view(len(x), -1, self.head_dim).float()
        values = None
        if self.keeps:
            values = projected[:, -self.num_kv_heads :]
            values = (values * over_rms(values, self.eps)).to(x.dtype)
        turned = rotate(self.norm(projected[:, : self.num_heads + self.num_kv_heads]), *angles).to(x.dtype)
        del projected
        q, keys = turned.split((self.num_heads, self.num_kv_heads), dim=1)
        attended = attend(q, keys if self.keeps else None, values).view(len(x), -1)
        return self.output(only(attended, wanted))
