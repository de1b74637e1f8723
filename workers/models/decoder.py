"""The decoder of Llama (Touvron et al. 2023), Mistral, Qwen, Gemma, Granite, Phi, SmolLM, OLMo and GLM: one
figure, drawn by the config.

tokens ─ embedding ─┬─ norm ─ attention ─┬+─ norm ─ mlp ─┬+─ … ─ norm ─ head ─ logits
                    └────────────────────┘└──────────────┘
Gemma and GLM have norms behind attention and MLP as well, OLMo and EXAONE have them only there. Cohere's MLP
stands beside attention, on the same norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from workers.attention.backend import Attend
from workers.checkpoints.model_config import ModelConfig
from workers.kernels import step
from workers.kernels.fused import Turn, has_triton
from workers.layers.embedding import Embedding, Head, VocabularySlice
from workers.layers.layer_norm import LayerNorm
from workers.layers.linear import ColumnParallel, Linear, RowParallel
from workers.layers.norm import BareHeadNorm, HeadNorm, RMSNorm, WholeNorm, over_rms
from workers.layers.rotary import Angles, Rotary, rotate_part
from workers.layers.sinks import Sinks
from workers.models.experts import MixtureOfExperts
from workers.models.latent import LatentAttention
from workers.models.mlp import MLP, activated
from workers.models.residual import Norm, Residual, only
from workers.models.routers import ROUTERS
from workers.parallel import RankGroup
from workers.weights.blocks import Empty
from workers.weights.loader import Shard, Slice, bytes_filled


class Places(NamedTuple):
    """What the positions of a step's tokens come to, once for all layers."""

    angles: list[Angles]  # of each of the model's ropes
    growth: Tensor | None = None  # of queries, [tokens, 1, 1] float32


class Seen(NamedTuple):
    """What rows of a step are that stand for an image."""

    rows: Tensor  # [seen] int64
    features: Tensor  # [seen, n * hidden]: in place of their embeddings, and added to the first n - 1 layers'

    def shown(self, x: Tensor, layer: int) -> Tensor:
        """`x` with what these rows are at the input (0), or get behind a layer (its number from 1)."""
        hidden = x.shape[1]
        if layer * hidden >= self.features.shape[1]:
            return x
        part = self.features[:, layer * hidden : (layer + 1) * hidden]
        return x.index_copy(0, self.rows, part) if layer == 0 else x.index_add(0, self.rows, part)


class Decoder:
    """One rank's share of the model: token ids to hidden states, and hidden states to logits."""

    def __init__(
        self,
        config: ModelConfig,
        group: RankGroup,
        dtype: torch.dtype,
        formats: Mapping[str, str] | None = None,  # of weights that are kept in blocks, by name
    ) -> None:
        empty = Empty(dtype, group.device, formats)
        self.vocab_size, self.writes = config.vocab_size, config.writes
        vocabulary = VocabularySlice(config.vocab_size, group)
        self.embedding = Embedding("model.embed_tokens", vocabulary, config.hidden_size, empty)
        self.embedding_scale = float(torch.tensor(config.embedding_scale, dtype=dtype))  # as it was trained
        ropes = [(config.rope, config.rotary_dim)]
        if config.window_rope is not None:
            ropes.append((config.window_rope, config.window_rotary_dim or config.rotary_dim))
        turning = group.device, config.interleaved, config.rope_sections
        self.rotaries = [Rotary(*rope, *turning) for rope in ropes]
        self.temperature = config.temperature
        self.logit_scale, self.logit_cap = config.logit_scale, config.logit_cap
        self.blocks = [self.block(i, config, group, empty) for i in range(config.num_layers)]
        self.norm = norm_of("model.norm", config, empty)
        tied = self.embedding if config.tied_head else None
        self.head = Head("lm_head", vocabulary, config.hidden_size, tied, empty, config.head_bias)

    def block(self, number: int, config: ModelConfig, group: RankGroup, empty: Empty) -> Block:
        """One layer; a family whose layers are more than that has its own."""
        return Block(number, config, group, empty)

    def parts(self) -> Iterator[Shard]:
        """What this rank reads from the checkpoint, and what then becomes of it."""
        pieces = [*self.embedding.pieces(), *self.head.pieces()]
        yield Shard(pieces, self.head.pack) if self.writes else Shard(pieces)
        for block in self.blocks:
            yield from block.parts()
        yield Shard([*self.norm.pieces()])

    def make_exact(self) -> None:
        """From now on compute each token as if it were alone. Called when the weights are in place."""
        known: dict[object, list[int]] = {}
        for block in self.blocks:
            block.make_exact(known)
        self.head.make_exact(known)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights that are to be read, in the type that they are kept in."""
        return bytes_filled(self.parts())

    def __call__(
        self,
        token_ids: Tensor,
        positions: Tensor,
        attend: Attend,
        numbers: Sequence[int] | None = None,
        seen: Seen | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:  # [tokens, or wanted ones, hidden], before the last norm
        """Run all blocks, or some of them: to see what memory they take, as others of their kind do.

        Args:
            token_ids: `[tokens]` int64.
            positions: the same, from 0 in each sequence; `[3, tokens]` where some of them are seen.
            numbers: of the blocks that run; None: all of them.
            seen: the tokens that are images.
            wanted: rows that are asked for, `[wanted]` int64, where none is seen; None: all. Of the others
                the last block computes little more than keys and values.
        """
        places = self.places(positions)
        embedded = self.embedded(token_ids)
        stream = Residual(embedded if seen is None else seen.shown(embedded, 0))
        del embedded
        blocks = self._blocks(numbers)
        for block in blocks:
            block(stream, places, attend, wanted if block is blocks[-1] else None)
            if seen is not None:
                stream = Residual(seen.shown(stream.whole(), block.number + 1))
        return stream.whole()

    def places(self, positions: Tensor) -> Places:
        angles = [rotary(positions) for rotary in self.rotaries]
        if (each := self.temperature) is None:
            return Places(angles)
        steps = torch.floor((positions.float() + each.first) / each.every)
        return Places(angles, (torch.log1p(steps) * each.weight + 1.0)[:, None, None])

    def embedded(self, token_ids: Tensor) -> Tensor:  # [tokens, hidden]
        x = self.embedding(token_ids)
        return x if self.embedding_scale == 1.0 else x * self.embedding_scale

    def _blocks(self, numbers: Sequence[int] | None) -> Sequence[Block]:
        return self.blocks if numbers is None else [self.blocks[number] for number in numbers]

    def logits(self, x: Tensor) -> Tensor | None:  # [rows, hidden] -> [rows, vocabulary] float32
        """What the rows of `__call__` say about their next tokens: on rank 0, and None on the others."""
        logits = self.head(self.norm(x))
        if logits is None:
            return None
        if self.logit_scale != 1.0:
            logits.mul_(self.logit_scale)
        return logits if self.logit_cap is None else logits.div_(self.logit_cap).tanh_().mul_(self.logit_cap)


class Block:
    """Attention, then the feed-forward network, each on the normalised residual stream."""

    def __init__(self, number: int, config: ModelConfig, group: RankGroup, empty: Empty) -> None:
        def norm(name: str | None) -> Norm | None:
            return name and norm_of(f"model.layers.{number}.{name}", config, empty)

        self.number, self.residual_scale, self.parallel = number, config.residual_scale, config.parallel
        self.rope: int | None = None  # which of the model's; None: no positions
        if number not in config.unrotated:
            self.rope = int(config.window_rope is not None and config.layers[number].kind == "window")
        grows = config.temperature is not None
        self.grows = grows and (self.rope is None or not config.temperature.unrotated)
        self.attention = self._attention(
            f"model.layers.{number}.self_attn", config.of_layer(number), group, empty
        )
        self.mlp = self._mlp(f"model.layers.{number}.mlp", config, group, empty)
        names = config.norms_of(number)
        self.before_attention = norm(names.before_attention)
        self.after_attention = norm(names.after_attention)
        self.before_mlp, self.after_mlp = norm(names.before_mlp), norm(names.after_mlp)

    def _attention(
        self, name: str, config: ModelConfig, group: RankGroup, empty: Empty
    ) -> Attention | LatentAttention:
        return (Attention if config.latent is None else LatentAttention)(name, config, group, empty)

    def _mlp(self, name: str, config: ModelConfig, group: RankGroup, empty: Empty) -> MLP | MixtureOfExperts:
        if config.experts is None or self.number not in config.experts.layers:
            return MLP(name, config, group, empty)
        return MixtureOfExperts(name, config, group, empty, router=ROUTERS[config.experts.scoring])

    @property
    def linears(self) -> tuple[Linear, ...]:
        return *self.attention.linears, *self.mlp.linears

    def make_exact(self, known: dict[object, list[int]]) -> None:
        for linear in self.linears:
            linear.make_exact(known)
        if isinstance(self.attention, LatentAttention):
            self.attention.make_exact()
        self.attention.exact = True
        self.mlp.exact = True

    def put_in_order(self) -> None:
        """Called when the weights are in place: what is left to do with several of them together."""
        for part in vars(self).values():
            if isinstance(part, MixtureOfExperts):
                part.put_in_order()

    def parts(self) -> Iterator[Shard]:
        yield Shard([*self._vectors()])
        for linear in self.linears:
            yield Shard([*linear.pieces()], linear.pack)

    def _vectors(self) -> Iterator[Slice]:
        """All that is no product."""
        norms = (self.before_attention, self.after_attention, self.before_mlp, self.after_mlp)
        yield from (piece for norm in norms if norm is not None for piece in norm.pieces())
        yield from self.attention.norm_pieces()
        if isinstance(self.mlp, MLP):
            yield from self.mlp.vectors()

    def __call__(
        self, stream: Residual, places: Places, attend: Attend, wanted: Tensor | None = None
    ) -> None:
        """Add to the stream, or to its wanted rows alone, what attention and the feed-forward network make of
        it."""
        normed = self._attended(stream, places, attend, wanted)
        self._add(stream, self.mlp(normed), self.after_mlp)

    def _attended(
        self, stream: Residual, places: Places, attend: Attend, wanted: Tensor | None
    ) -> Tensor:  # [tokens, or wanted ones, hidden]
        """What the MLP is given, once attention has added to the stream."""
        turned = None if self.rope is None else places.angles[self.rope]
        if self.grows:
            attend = _growing(attend, places.growth)
        normed = stream.normed(self.before_attention)
        y = self.attention(normed, turned, partial(attend, self.number), wanted)
        stream.keep(wanted)
        if self.parallel:
            self._add(stream, y, self.after_attention)
            return only(normed, wanted)
        del normed
        self._add(stream, y, self.after_attention)
        del y
        return stream.normed(self.before_mlp)

    def _add(self, stream: Residual, y: Tensor, norm: Norm | None) -> None:
        if isinstance(norm, RMSNorm) and self.residual_scale == 1.0:
            stream.add_normed(y, norm)
            return
        y = y if norm is None else norm(y)
        stream.add(y if self.residual_scale == 1.0 else y * self.residual_scale)


def norm_of(name: str, config: ModelConfig, empty: Empty) -> Norm:
    """A norm of the residual stream, of the model's kind."""
    if config.layer_norm:
        return LayerNorm(name, config.hidden_size, config.norm_eps, empty, config.norm_bias)
    return RMSNorm(name, config.hidden_size, config.norm_eps, empty, config.norm_offset)


def _growing(attend: Attend, growth: Tensor) -> Attend:
    """The same with queries that are multiplied before."""

    def attend_growing(
        layer: int,
        q: Tensor,
        keys: Tensor,
        values: Tensor | None,
        sinks: Tensor | None = None,
        turn: Turn | None = None,
    ) -> Tensor:
        if turn is None:
            return attend(layer, (q * growth).to(q.dtype), keys, values, sinks)
        return attend(layer, q, keys, values, sinks, turn._replace(growth=growth))

    return attend_growing


class Attention:
    """Grouped-query attention with rotary positions, or without any."""

    def __init__(self, name: str, config: ModelConfig, group: RankGroup, empty: Empty) -> None:
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        mine, mine_kv = group.share(heads), group.share_kv(kv_heads)
        self.num_heads, self.num_kv_heads, self.head_dim = len(mine), len(mine_kv), head_dim
        self.interleaved = config.interleaved
        self.eps = config.norm_eps if config.qk_norm == "turned" else None
        self.turns_first = config.qk_norm == "turned_heads"

        def rows(part: range, first: int = 0) -> range:
            return range((first + part.start) * head_dim, (first + part.stop) * head_dim)

        if config.fused_qkv:
            stored, whole = f"{name}.qkv_proj", (heads + 2 * kv_heads) * head_dim
            parts = [rows(mine), rows(mine_kv, heads), rows(mine_kv, heads + kv_heads)]
            projections = [(stored, whole, part) for part in parts]
        else:
            projections = [
                (f"{name}.q_proj", heads * head_dim, rows(mine)),
                (f"{name}.k_proj", kv_heads * head_dim, rows(mine_kv)),
                (f"{name}.v_proj", kv_heads * head_dim, rows(mine_kv)),
            ]
        gates: list[tuple[str, int, range]] = []
        match config.attention_gate:
            case "within":
                stored, whole = projections[0][0], 2 * heads * head_dim
                each = range(2 * mine.start, 2 * mine.stop)
                halves = [(stored, whole, rows(range(n, n + 1))) for n in each]
                projections[:1], gates = halves[::2], halves[1::2]
            case "apart":
                gates = [(f"{name}.gate_proj", heads * head_dim, rows(mine))]
            case "heads":
                gates = [(f"{name}.gate_proj", heads, mine)]
        hidden, bias = config.hidden_size, config.output_bias
        self.qkv = ColumnParallel(projections, hidden, config.qkv_bias, empty)
        self.output = RowParallel(f"{name}.o_proj", hidden, heads * head_dim, bias, group, empty)
        self.exact, self.keeps = False, not config.bidirectional
        biased = config.qkv_bias and config.attention_gate == "within"
        self.gate = ColumnParallel(gates, hidden, biased, empty) if gates else None
        self.gate_activation = config.gate_activation
        self.sinks = Sinks(f"{name}.sinks", heads, group, empty) if config.sinks else None
        self.qk_norm: HeadNorm | WholeNorm | None = None
        names, counts = (f"{name}.q_norm", f"{name}.k_norm"), (len(mine), len(mine_kv))
        if config.qk_norm in ("heads", "turned_heads"):
            self.qk_norm = HeadNorm(names, counts, head_dim, config.norm_eps, empty, config.norm_offset)
        elif config.qk_norm == "bare_heads":
            self.qk_norm = BareHeadNorm(names, counts, head_dim, config.norm_eps, empty)
        elif config.qk_norm == "whole":
            self.qk_norm = WholeNorm(names, (heads, kv_heads), head_dim, config.norm_eps, group, empty)

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.qkv, self.output, *filter(None, [self.gate])

    def norm_pieces(self) -> Iterator[Slice]:
        if self.qk_norm:
            yield from self.qk_norm.pieces()
        if self.sinks:
            yield from self.sinks.pieces()

    def __call__(
        self,
        x: Tensor,  # [tokens, hidden]
        angles: Angles | None,
        attend: Callable[..., Tensor],  # see `Attend`
        wanted: Tensor | None = None,
    ) -> Tensor:  # [tokens, or wanted ones, hidden]
        heads, kv_heads, tokens = self.num_heads, self.num_kv_heads, x.shape[0]
        qkv = self.qkv(x).view(tokens, heads + 2 * kv_heads, self.head_dim)
        qk, values = qkv.split_with_sizes((heads + kv_heads, kv_heads), dim=1)
        norm, turn = self.qk_norm, []
        if self._fuses(qkv):
            of_norm = (None, 0.0, self.eps or 0.0) if norm is None else (norm.weights, norm.offset, norm.eps)
            then_normed = self.eps is not None and angles is not None
            turn = [Turn(*of_norm, angles, self.interleaved, then_normed)]
        elif self._compiled(qkv, angles):
            of_norm = (None, 0.0, 0.0) if norm is None else (norm.weights, norm.eps, norm.offset)
            step.heads(qkv, (heads, kv_heads), *of_norm, angles)
        else:
            if self.qk_norm and not self.turns_first:
                qk = self.qk_norm(qk.float())
            if angles is not None:
                qk = rotate_part(qk.float(), *angles, self.interleaved)
                if self.eps is not None:
                    qk = qk * over_rms(qk, self.eps)
            if self.qk_norm and self.turns_first:
                qk = self.qk_norm(qk.float())
        q, keys = qk.to(x.dtype).split_with_sizes((heads, kv_heads), dim=1)
        sinks = None if self.sinks is None else self.sinks.weight
        attended = only(attend(q, keys, values, sinks, *turn).view(tokens, -1), wanted)
        if self.gate is not None:
            gates = activated(self.gate(only(x, wanted)), self.gate_activation, self.exact)
            attended = (attended.unflatten(1, (gates.shape[1], -1)) * gates[..., None]).flatten(1)
        return self.output(attended)

    @property
    def _normed_apart(self) -> bool:
        """Whether there is a norm that no kernel has."""
        return self.turns_first or isinstance(self.qk_norm, WholeNorm)

    def _fuses(self, qkv: Tensor) -> bool:
        """Whether attention, which writes keys, does what is before that as well."""
        return self.keeps and not self._normed_apart and has_triton(qkv.device)

    def _compiled(self, qkv: Tensor, angles: Angles | None) -> bool:
        if self.interleaved or self.eps is not None or self._normed_apart:
            return False
        return step.takes_heads(qkv, 0 if angles is None else angles[0].shape[-1])
