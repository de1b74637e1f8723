"""A mixture of experts (Shazeer et al. 2017) in place of one feed-forward network."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from workers.checkpoints.config import ModelConfig
from workers.checkpoints.experts import Experts
from workers.layers.linear import ColumnParallel, Linear, RowPart
from workers.layers.steady import add_rows
from workers.models.mlp import MLP, clamped, gated
from workers.parallel import RankGroup
from workers.weights.blocks import Empty
from workers.weights.loader import Slice

PAIRS = 1024  # of a token and an expert that it goes to, whose numbers are in memory at once
LEAST = 1e-20  # is added to a sum of scores, which may all be 0


class Router(Linear):
    """Which experts a token goes to, and with what weight; in float32, and the same on every rank."""

    def __init__(self, name: str, experts: Experts, hidden: int, group: RankGroup, empty: Empty) -> None:
        bias = empty(experts.count, dtype=torch.float32) if experts.biased else None
        super().__init__(empty(experts.count, hidden, dtype=torch.float32), bias)
        self.name, self.experts, self.group = name, experts, group
        self.correction = empty(experts.count, dtype=torch.float32) if experts.corrected else None

    def pieces(self) -> Iterator[Slice]:
        experts, hidden = self.experts.count, self.weight.shape[1]
        yield Slice(f"{self.name}.weight", (experts, hidden), self.weight)
        if self.bias is not None:
            yield Slice(f"{self.name}.bias", (experts,), self.bias)
        if self.correction is not None:
            yield Slice(f"{self.name}.e_score_correction_bias", (experts,), self.correction)

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:  # [tokens, chosen] both
        """The weights of the experts that are chosen, float32, and their numbers."""
        experts, logits = self.experts, self(x.float())
        scores = logits.sigmoid() if experts.scoring == "sigmoid" else logits.softmax(dim=-1)
        ranking = scores if self.correction is None else scores + self.correction
        if experts.groups > 1:
            ranking = self._best_groups(ranking)
        numbers = self.group.chosen(ranking.topk(experts.chosen, dim=-1).indices)
        weights = scores.gather(1, numbers)
        if experts.normalised:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + LEAST)
        return weights * experts.scale, numbers

    def _best_groups(self, ranking: Tensor) -> Tensor:  # [tokens, experts]
        """The same with minus infinity for experts of other groups. A group is as good as its best expert, or
        with corrections (DeepSeek V3) as its best two."""
        experts = self.experts
        grouped = ranking.unflatten(1, (experts.groups, -1))
        best = grouped.topk(1 if self.correction is None else 2, dim=-1).values.sum(dim=-1)
        chosen = best.topk(experts.groups_chosen, dim=-1).indices
        others = torch.ones_like(best, dtype=torch.bool).scatter_(1, chosen, False)
        return grouped.masked_fill(others[..., None], -torch.inf).flatten(1)


class MixtureOfExperts:
    """Every rank has its rows of every expert; what they add up to is summed over the ranks once.

    Args:
        router: what chooses them.
    """

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        group: RankGroup,
        empty: Empty,
        *,
        router: Callable[..., Router] = Router,
    ) -> None:
        experts, hidden = config.experts, config.hidden_size
        inner = experts.intermediate_size
        self.group, self.exact = group, False
        self.activation, self.clamp = config.activation, experts.clamp
        self.interleaved, self.weighs_inputs = experts.interleaved, experts.weighs_inputs
        self.router = router(f"{name}.{experts.router}", experts, hidden, group, empty)
        share = group.share(inner)
        self.gate_up, self.down = [], []
        for number in range(experts.count):
            own = f"{name}.experts.{number}"
            projections = [(f"{own}.gate_proj", inner, share), (f"{own}.up_proj", inner, share)]
            if experts.interleaved:
                both = range(2 * share.start, 2 * share.stop)
                projections = [(f"{own}.gate_up_proj", 2 * inner, both)]
            self.gate_up.append(ColumnParallel(projections, hidden, experts.biased, empty))
            down = RowPart(f"{own}.down_proj", hidden, inner, group, empty, biased=experts.biased)
            self.down.append(down)
        self.shared: MLP | None = None
        if experts.shared_size:
            shared = f"{name}.{experts.shared_name}"
            self.shared = MLP(shared, config, group, empty, inner=experts.shared_size, part=True)
        self.shared_gate: Linear | None = None
        if experts.shared_gate:
            self.shared_gate = ColumnParallel([(f"{shared}_gate", 1, range(1))], hidden, False, empty)

    @property
    def linears(self) -> tuple[Linear, ...]:
        shared = () if self.shared is None else self.shared.linears
        gate = () if self.shared_gate is None else (self.shared_gate,)
        return self.router, *self.gate_up, *self.down, *shared, *gate

    def __call__(self, x: Tensor) -> Tensor:  # [tokens, hidden]
        return self.group.all_reduce(self.part(x))

    def part(self, x: Tensor, shown: Tensor | None = None) -> Tensor:  # [tokens, hidden]
        """This rank's part of the sum.

        Args:
            shown: what the router sees in place of `x`.
        """
        weights, numbers = self.router.choose(x if shown is None else shown)
        y = self._weighed(x, weights, numbers) if self.weighs_inputs else self._routed(x, weights, numbers)
        if self.shared is not None:
            self.shared.exact = self.exact
            shared = self.shared(x)
            y += shared if self.shared_gate is None else self.shared_gate(x).sigmoid() * shared
        return y

    def _weighed(self, x: Tensor, weights: Tensor, numbers: Tensor) -> Tensor:  # [tokens, hidden]
        """What the experts make of their tokens, each of which is multiplied before."""
        each = (x[:, None] * weights[..., None].to(x.dtype)).flatten(0, 1)
        y = self._routed(each, torch.ones_like(weights).view(-1, 1), numbers.view(-1, 1))
        return y.unflatten(0, weights.shape).sum(dim=1)

    def _routed(self, x: Tensor, weights: Tensor, numbers: Tensor) -> Tensor:  # [tokens, hidden]
        """What the experts make of their tokens. Pairs of a token and an expert are sorted by expert, and are
        taken together for some experts at once: what is not a product is then done for all of these."""
        chosen = numbers.shape[1]
        by_expert, order = numbers.flatten().sort(stable=True)
        rows, weights = order // chosen, weights.flatten()[order, None]
        y = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        start = 0
        for run in _runs(by_expert.bincount(minlength=len(self.gate_up)).tolist()):
            counts = [count for _, count in run]
            end = start + sum(counts)
            parts = x[rows[start:end]].split(counts)
            inner = _cat([self.gate_up[n](part) for (n, _), part in zip(run, parts, strict=True)])
            parts = self._gated(inner).split(counts)
            outputs = _cat([self.down[n](part) for (n, _), part in zip(run, parts, strict=True)])
            # in the order of the experts, so that sums do not depend on what other tokens there are
            add_rows(y, rows[start:end], outputs * weights[start:end])
            start = end
        return y.to(x.dtype)

    def _gated(self, inner: Tensor) -> Tensor:  # [pairs, 2 * inner] -> [pairs, inner]
        if self.clamp is None:
            return gated(inner, self.activation, self.exact)
        return clamped(inner, self.clamp, self.exact, self.interleaved)


def _runs(counts: list[int]) -> Iterator[list[tuple[int, int]]]:
    """Experts that have pairs, by number and how many, as many at once as have no more than PAIRS."""
    run: list[tuple[int, int]] = []
    total = 0
    for number, count in enumerate(counts):
        if count and run and total + count > PAIRS:
            yield run
            run, total = [], 0
        if count:
            run.append((number, count))
            total += count
    yield run


def _cat(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
