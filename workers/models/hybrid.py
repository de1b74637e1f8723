"""The decoder of Qwen3-Next, Qwen3.5, OLMo Hybrid, LFM2, LFM3 and Granite 4: in most layers a Gated DeltaNet,
a short convolution or Mamba-2 stands in the place of attention.

tokens ─ embedding ─┬─ norm ─ delta net, or attention ─┬+─ norm ─ mlp, or experts ─┬+─ … ─ norm ─ head
                    └──────────────────────────────────┘└──────────────────────────┘
"""

from __future__ import annotations

from torch import Tensor

from workers.attention.states import Mixing
from workers.checkpoints.model_config import ModelConfig
from workers.models.decoder import Block, Decoder, Places
from workers.models.gated_delta_net import GatedDeltaNet
from workers.models.mamba import Mamba2
from workers.models.residual import Residual
from workers.models.short_convolution import ShortConvolution
from workers.parallel import RankGroup
from workers.weights.blocks import Empty


class Hybrid(Decoder):
    """One rank's share of the model, which is called with a `Mixing`."""

    def block(self, number: int, config: ModelConfig, group: RankGroup, empty: Empty) -> Block:
        kind = StateBlock if config.layers[number].kind == "state" else Block
        return kind(number, config, group, empty)


Mixer = GatedDeltaNet | ShortConvolution | Mamba2


class StateBlock(Block):
    """A layer that keeps a state."""

    attention: Mixer

    def _attention(self, name: str, config: ModelConfig, group: RankGroup, empty: Empty) -> Mixer:
        if config.convolution is not None:
            return ShortConvolution(f"model.layers.{self.number}.conv", self.number, config, group, empty)
        if config.mamba is not None:
            return Mamba2(f"model.layers.{self.number}.mamba", self.number, config, group, empty)
        return GatedDeltaNet(f"model.layers.{self.number}.linear_attn", self.number, config, group, empty)

    def __call__(
        self, stream: Residual, places: Places, attend: Mixing, wanted: Tensor | None = None
    ) -> None:
        self._add(
            stream, self.attention(stream.normed(self.before_attention), attend.recur), self.after_attention
        )
        stream.keep(wanted)
        self._add(stream, self.mlp(stream.normed(self.before_mlp)), self.after_mlp)
