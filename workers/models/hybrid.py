"""The decoder of Qwen3-Next and Qwen3.5: in most layers a Gated DeltaNet stands in the place of attention.

tokens ─ embedding ─┬─ norm ─ delta net, or attention ─┬+─ norm ─ mlp, or experts ─┬+─ … ─ norm ─ head
                    └──────────────────────────────────┘└──────────────────────────┘
"""

from __future__ import annotations

from torch import Tensor

from workers.attention.states import Mixing
from workers.checkpoints.config import ModelConfig
from workers.models.decoder import Block, Decoder, Places
from workers.models.gated_delta_net import GatedDeltaNet
from workers.parallel import RankGroup
from workers.weights.blocks import Empty


class Hybrid(Decoder):
    """One rank's share of the model, which is called with a `Mixing`."""

    def block(self, number: int, config: ModelConfig, group: RankGroup, empty: Empty) -> Block:
        kind = StateBlock if config.layers[number].kind == "state" else Block
        return kind(number, config, group, empty)


class StateBlock(Block):
    """A layer that keeps a state."""

    attention: GatedDeltaNet

    def _attention(self, name: str, config: ModelConfig, group: RankGroup, empty: Empty) -> GatedDeltaNet:
        return GatedDeltaNet(f"model.layers.{self.number}.linear_attn", self.number, config, group, empty)

    def __call__(self, x: Tensor, places: Places, attend: Mixing) -> Tensor:  # [tokens, hidden]
        x = self._add(x, self.attention(self.before_attention(x), attend.recur), None)
        return self._add(x, self.mlp(self.before_mlp(x)), None)
