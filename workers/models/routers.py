"""Routers that choose in another way than by the best scores of all."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.models.experts import Router
from workers.models.mlp import activated


class TopLogits(Router):
    """The weight of an expert is the sigmoid of its own logit (Llama 4), or its share of theirs (Cohere); the
    best are those of the largest logits, or of these with corrections (Kolibri)."""

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:  # [tokens, chosen] both
        logits = self(x.float())
        ranking = logits if self.correction is None else logits + self.correction
        numbers = self.group.chosen(ranking.topk(self.experts.chosen, dim=-1).indices)
        weights = activated(logits.gather(1, numbers), "sigmoid", self.exact)
        if self.experts.normalised:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + self.experts.least)
        return weights, numbers


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
    "sigmoid_of_chosen": TopLogits,
    "sparse_mixer": SparseMixer,
}
