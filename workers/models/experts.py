"""A mixture of experts (Shazeer et al. 2017) in place of one feed-forward network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from workers.checkpoints.experts import Experts
from workers.checkpoints.model_config import ModelConfig
from workers.kernels import fused
from workers.kernels.choosing import Choosing
from workers.kernels.gates import Gates
from workers.kernels.pairs import Pairs
from workers.layers.grouped import GroupedLinear
from workers.layers.linear import ColumnParallel, Linear, RowPart
from workers.layers.steady import add_rows
from workers.models.mlp import MLP, activated, clamped, gated
from workers.parallel import RankGroup
from workers.weights.blocks import Empty
from workers.weights.loader import Slice

PAIRS = 1024  # of a token and an expert that it goes to, whose numbers are in memory at once
PAIRS_OF_A_GPU = 16_384  # the same there, where each time reads the weights of all experts


class Router(Linear):
    """Which experts a token goes to, and with what weight; in float32, and the same on every rank."""

    def __init__(self, name: str, experts: Experts, hidden: int, group: RankGroup, empty: Empty) -> None:
        bias = empty(experts.count, dtype=torch.float32) if experts.biased else None
        super().__init__(empty(experts.count, hidden, dtype=torch.float32), bias)
        self.name, self.experts, self.group, self.exact = name, experts, group, False
        self.correction = empty(experts.count, dtype=torch.float32) if experts.corrected else None
        self.choosing = Choosing.of(experts)

    def pieces(self) -> Iterator[Slice]:
        experts, hidden = self.experts.count, self.weight.shape[1]
        yield Slice(f"{self.name}.weight", (experts, hidden), self.weight)
        if self.bias is not None:
            yield Slice(f"{self.name}.bias", (experts,), self.bias)
        if self.correction is not None:
            yield Slice(f"{self.name}.e_score_correction_bias", (experts,), self.correction)

    def pairs(self, x: Tensor, mine: range) -> tuple[Tensor, Pairs] | None:
        """What `choose` says as pairs with the experts of `mine`, sorted, and their weights; where one kernel
        makes that of the tokens."""
        is_usual = type(self).choose is Router.choose
        if self.exact or not is_usual or not fused.has_triton(x.device) or not self.group.chooses_alike:
            return None
        return fused.routed(x, self.weight, self.bias, self.correction, self.choosing, mine)

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:  # [tokens, chosen] both
        """The weights of the experts that are chosen, float32, and their numbers."""
        experts, logits = self.experts, self(x.float())
        if fused.has_triton(x.device) and self.group.chooses_alike:
            return fused.choice(logits, self.correction, self.choosing)
        sigmoid, by_logits = self.choosing.sigmoid, self.choosing.by_logits
        scores = activated(logits, "sigmoid", self.exact) if sigmoid else logits.softmax(dim=-1)
        ranking = logits if by_logits else scores
        ranking = ranking if self.correction is None else ranking + self.correction
        if experts.groups > 1:
            ranking = self._best_groups(ranking)
        numbers = self.group.chosen(ranking.topk(experts.chosen, dim=-1).indices)
        weights = scores.gather(1, numbers)
        if experts.normalised:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + experts.least)
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


class Beside(NamedTuple):
    """What every token goes through beside its experts."""

    y: Tensor  # [tokens, hidden]
    gates: Tensor | None  # [tokens, 1], whose sigmoids open it

    def part(self, rows: slice) -> Beside:
        return Beside(self.y[rows], None if self.gates is None else self.gates[rows])


class MixtureOfExperts:
    """Every rank has its rows of every expert, or some experts whole (`Experts.whole_in`): either way what
    the ranks have adds up to the sum over a token's experts, and that is summed over the ranks once.

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
        self.group, self._exact = group, False
        self.activation, self.clamp = config.activation, experts.clamp
        self.gates = config.gates
        how = config.activation if experts.clamp is None else experts.clamp
        self.opening = Gates.of(how, experts.interleaved) if config.gates else None
        self.interleaved, self.weighs_inputs = experts.interleaved, experts.weighs_inputs
        self.router = router(f"{name}.{experts.router}", experts, hidden, group, empty)
        whole = experts.whole_in(group.mine.parts)
        self.mine = experts.of(group.mine) if whole else range(experts.count)
        each = RankGroup(device=group.device) if whole else group  # that has an expert to share
        inner, share = experts.intermediate_size, each.share(experts.intermediate_size)

        def gate_up(number: int, empty: Empty) -> Linear:
            own = f"{name}.experts.{self.mine[number]}"
            projections = [(f"{own}.gate_proj", inner, share), (f"{own}.up_proj", inner, share)]
            if not config.gates:
                projections = projections[1:]
            if experts.interleaved:
                both = range(2 * share.start, 2 * share.stop)
                projections = [(f"{own}.gate_up_proj", 2 * inner, both)]
            return ColumnParallel(projections, hidden, experts.biased, empty)

        def down(number: int, empty: Empty) -> Linear:
            own = f"{name}.experts.{self.mine[number]}.down_proj"
            return RowPart(own, hidden, inner, each, empty, biased=experts.biased)

        self.gate_up = GroupedLinear(len(self.mine), gate_up, empty)
        self.down = GroupedLinear(len(self.mine), down, empty)
        self.in_pairs = self.gate_up.takes_pairs and self.down.takes_pairs  # and nobody asks how many
        self.averaged = experts.averaged
        self.shared: MLP | None = None
        if experts.shared_size:
            shared = f"{name}.{experts.shared_name}"
            self.shared = MLP(shared, config, group, empty, inner=experts.shared_size, part=True)
        self.shared_gate: Linear | None = None
        if experts.shared_gate:
            self.shared_gate = ColumnParallel([(f"{shared}_gate", 1, range(1))], hidden, False, empty)

    def put_in_order(self) -> None:
        """Have weights as they are multiplied, now that all of them are there."""
        self.gate_up.put_in_order()
        self.down.put_in_order()

    @property
    def linears(self) -> tuple[Linear, ...]:
        shared = () if self.shared is None else self.shared.linears
        gate = () if self.shared_gate is None else (self.shared_gate,)
        return self.router, *self.gate_up.experts, *self.down.experts, *shared, *gate

    @property
    def exact(self) -> bool:
        """Whether each token is computed as if it were alone."""
        return self._exact

    @exact.setter
    def exact(self, exact: bool) -> None:
        parts = (self, self.router, self.gate_up, self.down, *filter(None, [self.shared]))
        self._exact = exact
        for part in parts[1:]:
            part.exact = exact

    def __call__(self, x: Tensor) -> Tensor:  # [tokens, hidden]
        return self.group.all_reduce(self.part(x))

    def part(self, x: Tensor, shown: Tensor | None = None) -> Tensor:  # [tokens, hidden]
        """This rank's part of the sum.

        Args:
            shown: what the router sees in place of `x`.
        """
        beside = None
        if self.shared is not None:
            beside = Beside(self.shared(x), None if self.shared_gate is None else self.shared_gate(x))
        seen, in_pairs = x if shown is None else shown, self.in_pairs and not self.weighs_inputs
        found = self.router.pairs(seen, self.mine) if in_pairs else None
        if found is not None:
            y = self._of_pairs(x, *found, beside)
        elif self.weighs_inputs:
            y = self._with(beside, self._weighed(x, *self.router.choose(seen)))
        else:
            y = self._routed(x, *self.router.choose(seen), beside)
        return y * 0.5 if self.averaged else y

    def _with(self, beside: Beside | None, y: Tensor) -> Tensor:  # [tokens, hidden]
        """`y`, and what stands beside it; both are changed."""
        if beside is None:
            return y
        if beside.gates is not None:
            beside.y.mul_(activated(beside.gates, "sigmoid", self.exact))
        return y.add_(beside.y)

    def _weighed(self, x: Tensor, weights: Tensor, numbers: Tensor) -> Tensor:  # [tokens, hidden]
        """What the experts make of their tokens, each of which is multiplied before."""
        each = (x[:, None] * weights[..., None].to(x.dtype)).flatten(0, 1)
        y = self._routed(each, torch.ones_like(weights).view(-1, 1), numbers.view(-1, 1))
        return y.unflatten(0, weights.shape).sum(dim=1)

    def _routed(
        self, x: Tensor, weights: Tensor, numbers: Tensor, beside: Beside | None = None
    ) -> Tensor:  # [tokens, hidden]
        """What the experts of this rank make of their tokens, and what stands beside that. Pairs of a token
        and an expert are sorted by expert, and are taken together for some experts at once."""
        chosen, numbers = numbers.shape[1], numbers.flatten()
        if len(self.mine) < self.router.experts.count:  # the others' come last
            theirs = (numbers < self.mine.start) | (numbers >= self.mine.stop)
            numbers = (numbers - self.mine.start).masked_fill(theirs, len(self.mine))
        if self.in_pairs:
            step, found = max(1, PAIRS_OF_A_GPU // chosen), []
            for begin in range(0, len(x) or 1, step):
                rows, taken = slice(begin, begin + step), slice(begin * chosen, (begin + step) * chosen)
                pairs = Pairs.of(numbers[taken], len(self.mine), chosen)
                shared = None if beside is None else beside.part(rows)
                found.append(self._of_pairs(x[rows], weights[rows].flatten(), pairs, shared))
            return found[0] if len(found) == 1 else torch.cat(found)
        by_expert, order = numbers.sort(stable=True)
        rows, weights = order // chosen, weights.flatten()[order, None]
        y = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        counts = by_expert.bincount(minlength=len(self.mine)).tolist()[: len(self.mine)]
        start = 0
        for run in _runs(counts):
            taken = counts[run.start : run.stop]
            end = start + sum(taken)
            inner = self._gated(self.gate_up(x[rows[start:end]], taken, run.start))
            # in the order of the experts, so that sums do not depend on what other tokens there are
            add_rows(y, rows[start:end], self.down(inner, taken, run.start) * weights[start:end])
            start = end
        return self._with(beside, y.to(x.dtype))

    def _of_pairs(
        self, x: Tensor, weights: Tensor, pairs: Pairs, beside: Beside | None
    ) -> Tensor:  # [tokens, hidden]
        """The same of tokens that a GPU takes at once; how many pairs an expert has, only the GPU knows."""
        count, chosen, hidden = len(pairs.order), pairs.chosen, x.shape[1]
        inner = None if self.opening is None else self.gate_up.gated(x, pairs, self.opening)
        if inner is None:
            inner = x.new_empty(count, self.gate_up.rows)
            self.gate_up.of_pairs(x, pairs, inner)
            inner = self._gated(inner)
        has_all = len(self.mine) == self.router.experts.count
        # of pairs that are another rank's nothing is written
        y = x.new_empty(count, hidden) if has_all else x.new_zeros(count, hidden)
        self.down.of_pairs(inner, pairs, y, weights)
        if fused.has_triton(x.device):
            return fused.sum_of_chosen(y, chosen, *beside or ())
        y = y.view(-1, chosen, hidden).sum(dim=1, dtype=torch.float32).to(x.dtype)
        return self._with(beside, y)

    def _gated(self, inner: Tensor) -> Tensor:  # [pairs, rows of what is projected] -> [pairs, inner]
        if not self.gates:
            return activated(inner, self.activation, self.exact)
        if self.clamp is None:
            return gated(inner, self.activation, self.exact)
        return clamped(inner, self.clamp, self.exact, self.interleaved)


def _runs(counts: list[int]) -> Iterator[range]:
    """Experts, from the first to the last that has pairs, as many at once as have no more than PAIRS."""
    begin = total = 0
    for number, count in enumerate(counts):
        if total and total + count > PAIRS:
            yield range(begin, number)
            begin, total = number, 0
        if not total:
            begin = number
        total += count
    if total:
        yield range(begin, len(counts))
