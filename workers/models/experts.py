"""A mixture of experts (Shazeer et al. 2017) in place of one feed-forward network."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from workers.checkpoints.config import Experts, ModelConfig
from workers.layers.linear import ColumnParallel, Linear, RowPart
from workers.models.mlp import gated
from workers.parallel import RankGroup
from workers.weights.blocks import Empty
from workers.weights.loader import Slice


class Router(Linear):
    """Which experts a token goes to, and with what weight; the same on every rank."""

    def __init__(self, name: str, experts: Experts, hidden: int, empty: Empty) -> None:
        super().__init__(empty(experts.count, hidden))
        self.name, self.experts = name, experts

    def pieces(self) -> Iterator[Slice]:
        yield Slice(f"{self.name}.weight", tuple(self.weight.shape), self.weight)

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:  # [tokens, chosen] both
        """The weights of the experts that are chosen, in the type of `x`, and their numbers."""
        weights, numbers = torch.softmax(self(x), dim=-1, dtype=torch.float32).topk(self.experts.chosen)
        if self.experts.normalised:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights.to(x.dtype), numbers


class MixtureOfExperts:
    """Every rank has its rows of every expert; what they add up to is summed over the ranks once."""

    def __init__(self, name: str, config: ModelConfig, group: RankGroup, empty: Empty) -> None:
        experts, hidden = config.experts, config.hidden_size
        inner = experts.intermediate_size
        self.group, self.exact = group, False
        self.activation = config.activation
        self.router = Router(f"{name}.gate", experts, hidden, empty)
        share = group.share(inner)
        self.gate_up, self.down = [], []
        for number in range(experts.count):
            own = f"{name}.experts.{number}"
            projections = [(f"{own}.gate_proj", inner, share), (f"{own}.up_proj", inner, share)]
            self.gate_up.append(ColumnParallel(projections, hidden, False, empty))
            self.down.append(RowPart(f"{own}.down_proj", hidden, inner, group, empty))

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.router, *self.gate_up, *self.down

    def __call__(self, x: Tensor) -> Tensor:  # [tokens, hidden]
        weights, numbers = self.router.choose(x)
        y = torch.zeros_like(x)
        for number in numbers.unique().tolist():  # in order, so that sums do not depend on what else there is
            rows, place = torch.where(numbers == number)
            inner = gated(self.gate_up[number](x[rows]), self.activation, self.exact)
            y[rows] += self.down[number](inner) * weights[rows, place, None]
        return self.group.all_reduce(y)
