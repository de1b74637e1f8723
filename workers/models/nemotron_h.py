"""The decoder of Nemotron-H and Nemotron 3: each layer is one thing alone.

tokens ─ embedding ─┬─ norm ─ Mamba-2, attention, mlp or experts ─┬+─ … ─ norm ─ head
                    └─────────────────────────────────────────────┘
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from workers.attention.states import Mixing
from workers.checkpoints.model_config import ModelConfig
from workers.layers.linear import Linear
from workers.models.decoder import Attention, Block, Decoder, Places, norm_of
from workers.models.mamba import Mamba2
from workers.models.mlp import MLP
from workers.models.residual import Residual, only
from workers.parallel import RankGroup
from workers.weights.blocks import Empty
from workers.weights.loader import Slice


class NemotronH(Decoder):
    """One rank's share of the model, which is called with a `Mixing` where layers keep a state."""

    def block(self, number: int, config: ModelConfig, group: RankGroup, empty: Empty) -> Block:
        return SingleBlock(number, config, group, empty)


class SingleBlock(Block):
    """A layer of one kind."""

    def __init__(self, number: int, config: ModelConfig, group: RankGroup, empty: Empty) -> None:
        name = f"model.layers.{number}"
        self.number, self.residual_scale = number, config.residual_scale
        self.norm = norm_of(f"{name}.norm", config, empty)
        match config.layers[number].kind:
            case "full":
                self.part = Attention(f"{name}.self_attn", config, group, empty)
            case "state":
                self.part = Mamba2(f"{name}.mamba", number, config, group, empty)
            case _:
                self.part = self._mlp(f"{name}.mlp", config, group, empty)

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.part.linears

    def make_exact(self, known: dict[object, list[int]]) -> None:
        for linear in self.linears:
            linear.make_exact(known)
        self.part.exact = True

    def _vectors(self) -> Iterator[Slice]:
        yield from self.norm.pieces()
        if isinstance(self.part, Attention | Mamba2):
            yield from self.part.norm_pieces()
        elif isinstance(self.part, MLP):
            yield from self.part.vectors()

    def __call__(
        self, stream: Residual, places: Places, attend: Mixing, wanted: Tensor | None = None
    ) -> None:
        if isinstance(self.part, Attention):
            y = self.part(stream.normed(self.norm), None, partial(attend, self.number), wanted)
            stream.keep(wanted)
        elif isinstance(self.part, Mamba2):
            y = only(self.part(stream.normed(self.norm), attend.recur), wanted)
            stream.keep(wanted)
        else:
            stream.keep(wanted)
            y = self.part(stream.normed(self.norm))
        self._add(stream, y, None)
