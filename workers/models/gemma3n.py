"""The decoder of Gemma 3n: of each token there are several predictions, and every layer computes one.

predictions ─ mix ─┬─────────────────────────────────────────────────────────────────────── correct all ─┬─ …
                   └─ norm ─┬─ attention ─ norm ─ + prediction ─┬+─ /√2 ─┬─ norm ─ mlp ─ norm ─┬+─┘      │
                            └─ low rank ──── norm ─ + input ────┘        └─────────────────────┘        │
                                   all but the first: + norm ─ input of the layer ─ gate ─ scale ───────┘
How they are mixed, and how much each is corrected, a router says of the one that is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

import torch
from torch import Tensor

from workers.attention.backend import Attend
from workers.checkpoints.families import gemma3n as names
from workers.checkpoints.model_config import ModelConfig
from workers.layers.linear import ColumnParallel, Linear
from workers.layers.norm import RMSNorm
from workers.layers.steady import elementwise
from workers.models.decoder import Block, Decoder, Places, Seen
from workers.models.gemma4 import Gemma4Attention, InputGate, LayerInputs
from workers.models.mlp import MLP
from workers.models.residual import only
from workers.parallel import RankGroup
from workers.weights.blocks import Empty
from workers.weights.loader import Shard, Slice

LEAST_SQUARE = 1e-5  # of what is made as large as something else, on average


class Gemma3n(Decoder):
    """One rank's share of the model."""

    def __init__(
        self,
        config: ModelConfig,
        group: RankGroup,
        dtype: torch.dtype,
        formats: Mapping[str, str] | None = None,  # of weights that are kept in blocks, by name
    ) -> None:
        super().__init__(config, group, dtype, formats)
        empty, hidden = Empty(dtype, group.device, formats), config.hidden_size
        self.inputs = LayerInputs(config, group, empty, dtype)
        others = range(config.altup.predictions - 1)
        spread = [(f"{names.SPREAD}.{number}", hidden, range(hidden)) for number in others]
        self.spread = ColumnParallel(spread, hidden, False, empty)
        self.gathered = [_whole(f"{names.GATHERED}.{number}", hidden, hidden, empty) for number in others]

    def block(self, number: int, config: ModelConfig, group: RankGroup, empty: Empty) -> Block:
        return Gemma3nBlock(number, config, group, empty)

    def parts(self) -> Iterator[Shard]:
        yield from super().parts()
        yield from self.inputs.parts()
        for linear in (self.spread, *self.gathered):
            yield Shard([*linear.pieces()], linear.pack)

    def make_exact(self) -> None:
        super().make_exact()
        known: dict[object, list[int]] = {}
        for linear in (self.inputs.projection, self.spread, *self.gathered):
            linear.make_exact(known)

    def __call__(
        self,
        token_ids: Tensor,
        positions: Tensor,
        attend: Attend,
        numbers: Sequence[int] | None = None,
        seen: Seen | None = None,  # never any
        wanted: Tensor | None = None,
    ) -> Tensor:  # [tokens, or wanted ones, hidden], before the last norm
        places = self.places(positions)
        x = self.embedded(token_ids)
        inputs = self.inputs(token_ids, x)
        others = _as_large(self.spread(x).unflatten(1, (-1, x.shape[1])), x[:, None])
        predictions = Predictions(torch.cat((x[:, None], others), dim=1))
        del x, others
        blocks = self._blocks(numbers)
        for block in blocks:
            own = inputs[:, block.number]
            block(predictions, places, attend, wanted if block is blocks[-1] else None, own)
        return self._mean(predictions.all)

    def _mean(self, predictions: Tensor) -> Tensor:  # [tokens, count, hidden] -> [tokens, hidden]
        """Of all, the others made as large as the first."""
        first = predictions[:, 0]
        total = first.to(torch.float32, copy=True)
        for number, linear in enumerate(self.gathered, 1):
            total += _as_large(linear(predictions[:, number]), first)
        return total.div_(predictions.shape[1]).to(first.dtype)


@dataclass(slots=True)
class Predictions:
    """Of the tokens of a step. Nobody else keeps what a layer replaces."""

    all: Tensor  # [tokens, count, hidden]


class Gemma3nBlock(Block):
    """One layer."""

    def __init__(self, number: int, config: ModelConfig, group: RankGroup, empty: Empty) -> None:
        super().__init__(number, config, group, empty)
        name, hidden, rank = f"model.layers.{number}", config.hidden_size, config.altup.rank
        source = config.layers[number].keys_of
        self.source = number if source is None else source
        self.altup = AltUp(name, config, empty)
        self.left = _whole(f"{name}.{names.LEFT}", rank, hidden, empty)
        self.right = _whole(f"{name}.{names.RIGHT}", hidden, rank, empty)
        self.after_low = RMSNorm(f"{name}.{names.LAUREL_NORM}", hidden, config.norm_eps, empty)
        self.gate = InputGate(name, config, empty)

    def _attention(self, name: str, config: ModelConfig, group: RankGroup, empty: Empty) -> Gemma4Attention:
        return Gemma4Attention(name, self.number, config, group, empty)

    def _mlp(self, name: str, config: ModelConfig, group: RankGroup, empty: Empty) -> MLP:
        inner, sparsity = config.inner(self.number), config.sparsity[self.number]
        if not sparsity:
            return MLP(name, config, group, empty, inner=inner)
        return SparseMLP(name, config, group, empty, inner=inner, sparsity=sparsity)

    @property
    def linears(self) -> tuple[Linear, ...]:
        return *super().linears, self.left, self.right, *self.altup.linears, *self.gate.linears

    def make_exact(self, known: dict[object, list[int]]) -> None:
        super().make_exact(known)
        self.altup.exact = self.gate.exact = True

    def _vectors(self) -> Iterator[Slice]:
        yield from super()._vectors()
        yield from (piece for norm in (self.after_low, self.gate.norm) for piece in norm.pieces())
        yield from self.altup.pieces()

    def __call__(
        self,
        predictions: Predictions,
        places: Places,
        attend: Attend,
        wanted: Tensor | None = None,
        own: Tensor | None = None,
    ) -> None:
        """Correct the predictions, of wanted rows alone, by what attention and the MLP make of one of them.

        Args:
            own: the layer's input, `[tokens, size]`.
        """
        predictions.all = self.altup.predict(predictions.all)
        x = self.altup.active(predictions.all)
        normed = self.before_attention(x)
        y = self.attention(normed, places.angles[self.rope], partial(attend, self.source), wanted)
        every = predictions.all = only(predictions.all, wanted)
        x, normed, own = (only(each, wanted) for each in (x, normed, own))
        x = self.after_attention.added(x, y)
        y = self.after_low.added(normed, self.right(self.left(normed)))
        x = x.add_(y).mul_(0.5**0.5)
        del y, normed
        x = self.after_mlp.added(x, self.mlp(self.before_mlp(x)))
        self.altup.correct(every, x)
        del x
        every[:, 1:].add_(self.gate(self.altup.scaled(every), own)[:, None])


class AltUp:
    """Alternating updates: what is predicted before a layer computes one, and what that corrects."""

    def __init__(self, layer: str, config: ModelConfig, empty: Empty) -> None:
        hidden, self.count, self.number = config.hidden_size, config.altup.predictions, config.altup.active
        self.exact = False
        self.norm = RMSNorm(f"{layer}.{names.ROUTER_NORM}", hidden, config.norm_eps, empty)
        self.router = _whole(f"{layer}.{names.ROUTER}", self.count, hidden, empty)
        self.predicting = _whole(f"{layer}.{names.PREDICTING}", self.count**2, self.count, empty)
        self.correcting = _whole(f"{layer}.{names.CORRECTING}", self.count, self.count, empty)
        self.scale_name, self.scale = f"{layer}.{names.SCALE}", empty(hidden)
        self.scales = config.altup.scaled

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.router, self.predicting, self.correcting

    def pieces(self) -> Iterator[Slice]:
        yield from self.norm.pieces()
        yield Slice(self.scale_name, tuple(self.scale.shape), self.scale)

    def active(self, predictions: Tensor) -> Tensor:  # [tokens, count, hidden] -> [tokens, hidden]
        """The one that is computed."""
        return predictions[:, self.number].contiguous()

    def scaled(self, predictions: Tensor) -> Tensor:  # as `active`
        """The same, as inputs are gated by it."""
        active = self.active(predictions)
        return active * self.scale if self.scales else active

    def predict(self, predictions: Tensor) -> Tensor:  # [tokens, count, hidden]
        """Each with a part of all of them."""
        parts = self.predicting(self._routed(self.active(predictions))).unflatten(1, (self.count, self.count))
        if not self.exact:
            return torch.baddbmm(predictions, parts, predictions)
        found = predictions.clone()
        for number in range(self.count):  # as a product does not promise to
            found += parts[:, :, number, None] * predictions[:, number, None]
        return found

    def correct(self, predictions: Tensor, computed: Tensor) -> None:  # changed in place; [tokens, hidden]
        """By what was computed otherwise than predicted."""
        change = computed - predictions[:, self.number]
        predictions += (self.correcting(self._routed(computed)) + 1)[:, :, None] * change[:, None]

    def _routed(self, x: Tensor) -> Tensor:  # [tokens, hidden] -> [tokens, count]
        routed = self.router(self.norm(x)).float() / x.shape[1]
        return (elementwise(torch.tanh, routed) if self.exact else routed.tanh_()).to(x.dtype)


class SparseMLP(MLP):
    """Most gates of a token are closed: all but those that are far above their mean.

    Args:
        sparsity: the share that would be, if gates were distributed normally.
    """

    def __init__(
        self, name: str, config: ModelConfig, group: RankGroup, empty: Empty, *, inner: int, sparsity: float
    ) -> None:
        super().__init__(name, config, group, empty, inner=inner)
        self.group, self.deviations = group, NormalDist().inv_cdf(sparsity)

    def __call__(self, x: Tensor) -> Tensor:  # [tokens, hidden]
        gate_up = self.gate_up(x)
        self._close(gate_up)
        return self.down(self._activated(gate_up))

    def _close(self, gate_up: Tensor) -> None:  # [tokens, 2 * inner], of which the first half is changed
        inner = gate_up.shape[1] // 2
        wide = gate_up[:, :inner].float()
        mean = wide.mean(dim=1, keepdim=True)
        square = torch.linalg.vector_norm(wide, dim=1, keepdim=True).square_().div_(inner)
        if self.group.size > 1:
            mine = self.group.mine
            both = torch.cat((mean, square), dim=1).mul_(mine.count / mine.parts)
            mean, square = self.group.all_reduce(both).split(1, dim=1)
        deviation = (square - mean.square()).clamp_(min=0).sqrt_()
        gate_up[:, :inner] = wide.sub_(mean + deviation * self.deviations).clamp_(min=0)


def _whole(name: str, rows: int, columns: int, empty: Empty) -> ColumnParallel:
    """A projection that every rank computes."""
    return ColumnParallel([(name, rows, range(rows))], columns, False, empty)


def _as_large(y: Tensor, x: Tensor) -> Tensor:  # [..., hidden] both
    """`y`, as large as `x`."""
    scale = (_mean_square(x) / _mean_square(y).clamp_(min=LEAST_SQUARE)).sqrt_()
    return (y * scale).to(y.dtype)


def _mean_square(x: Tensor) -> Tensor:  # [..., hidden] -> [..., 1] float32
    return torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True).square_().div_(x.shape[-1])
