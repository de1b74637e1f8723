"""The decoder of Falcon-H1: in each layer Mamba-2 stands beside attention.

tokens ─ embedding ─┬─ norm ─┬─ Mamba-2 ───┬+─┬+─ norm ─ mlp ─┬+─ … ─ norm ─ head
                    │        └─ attention ─┘  ││              │
                    └─────────────────────────┘└──────────────┘
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from workers.attention.states import Mixing
from workers.checkpoints.model_config import ModelConfig
from workers.layers.linear import Linear
from workers.models.decoder import Block, Decoder, Places
from workers.models.mamba import Mamba2
from workers.models.residual import Residual, only
from workers.parallel import RankGroup
from workers.weights.blocks import Empty
from workers.weights.loader import Slice


class FalconH1(Decoder):
    """One rank's share of the model, which is called with a `Mixing`."""

    def block(self, number: int, config: ModelConfig, group: RankGroup, empty: Empty) -> Block:
        return BothBlock(number, config, group, empty)


class BothBlock(Block):
    """A layer that keeps keys, values and a state."""

    def __init__(self, number: int, config: ModelConfig, group: RankGroup, empty: Empty) -> None:
        super().__init__(number, config, group, empty)
        self.mamba = Mamba2(f"model.layers.{number}.mamba", number, config, group, empty)
        self.scales = config.multipliers

    @property
    def linears(self) -> tuple[Linear, ...]:
        return *self.mamba.linears, *super().linears

    def make_exact(self, known: dict[object, list[int]]) -> None:
        super().make_exact(known)
        self.mamba.exact = True

    def _vectors(self) -> Iterator[Slice]:
        yield from super()._vectors()
        yield from self.mamba.norm_pieces()

    def __call__(
        self, stream: Residual, places: Places, attend: Mixing, wanted: Tensor | None = None
    ) -> None:
        normed, scales = stream.normed(self.before_attention), self.scales
        y = only(self.mamba(normed, attend.recur), wanted).mul_(scales.state)
        attended = self.attention(normed, places.angles[self.rope], partial(attend, self.number), wanted)
        del normed
        stream.keep(wanted)
        # two operations: what is multiplied and added in one can come out otherwise at a tensor's end
        self._add(stream, y.add_(attended.mul_(scales.attention)), None)
        del y, attended
        self._add(stream, self.mlp(stream.normed(self.before_mlp)).mul_(scales.mlp), None)
