"""The short convolution of LFM2 (https://arxiv.org/abs/2511.23404), in the place of attention.

x ─┬─ b ─ × ─ convolution ─ × ─ out
   ├─ v ──┘                 │
   └─ c ────────────────────┘
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from workers.checkpoints.model_config import ModelConfig
from workers.layers.linear import ColumnParallel, Linear, RowParallel
from workers.parallel import RankGroup
from workers.weights.blocks import Empty
from workers.weights.loader import Slice


class ShortConvolution:
    """The channels of a rank."""

    exact = False  # what is multiplied here is the same in any company

    def __init__(self, name: str, number: int, config: ModelConfig, group: RankGroup, empty: Empty) -> None:
        whole, hidden = config.convolution, config.hidden_size
        self.name, self.number, self.whole = name, number, whole
        self.mine = group.share(whole.channels)
        rows = whole.channels
        parts = [range(n * rows + self.mine.start, n * rows + self.mine.stop) for n in range(3)]
        projections = [(f"{name}.in_proj", 3 * rows, part) for part in parts]
        self.projections = ColumnParallel(projections, hidden, False, empty)
        self.output = RowParallel(f"{name}.out_proj", hidden, whole.channels, False, group, empty)
        self.convolution = empty(len(self.mine), whole.kernel)

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.projections, self.output

    def norm_pieces(self) -> Iterator[Slice]:
        shape = self.whole.channels, self.whole.kernel
        yield Slice(f"{self.name}.conv.weight", shape, self.convolution, row=self.mine.start)

    def __call__(self, x: Tensor, recur: Callable[..., Tensor]) -> Tensor:  # [tokens, hidden]
        before, behind, values = self.projections(x).chunk(3, dim=1)
        y = recur(self.number, before * values, self.convolution).mul_(behind)
        return self.output(y.to(x.dtype))
