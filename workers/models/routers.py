"""Routers that choose in another way than by the best scores of all."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.models.experts import Router


class SparseMixer(Router):
    """SparseMixer-v2 (https://arxiv.org/abs/2409.12136, as Phi-3.5-MoE is served): the weight of the best
    expert is its share among those that are near it, that of the second the same without the first."""

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:  # [tokens, 2] both
        logits = left = self(x.float())
        numbers = self.group.chosen(logits.topk(2, dim=-1).indices)
        weights = []
        for number in numbers.split(1, dim=1):
            best = left.gather(1, number)
            far = (best - logits) / torch.maximum(logits.abs(), best) > 2 * self.experts.jitter
            weights.append(left.masked_fill(far, -torch.inf).softmax(dim=-1).gather(1, number))
            left = left.scatter(1, number, -torch.inf)
        return torch.cat(weights, dim=1), numbers


ROUTERS: dict[str, type[Router]] = {
    "softmax": Router,
    "sigmoid": Router,
    "sigmoid_of_chosen": Router,
    "sparse_mixer": SparseMixer,
}
