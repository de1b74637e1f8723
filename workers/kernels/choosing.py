"""How a router chooses the experts of a token, by the scores that its logits come to."""

from __future__ import annotations

from typing import NamedTuple

from workers.checkpoints.experts import Experts


class Choosing(NamedTuple):
    """Those of the best scores, of all experts or of those in the best groups."""

    chosen: int
    sigmoid: bool  # scores are the sigmoids of logits; else their softmax
    least: float | None  # is added to the sum of scores that are chosen, by which they are divided; None: not
    scale: float  # of the weights
    groups: int = 1  # of experts, the best of which are chosen first, and experts only from them
    groups_chosen: int = 1  # which are as good as their best expert, or with corrections as their best two
    by_logits: bool = False  # the best are those of the largest logits (Llama 4, Cohere), not scores

    @classmethod
    def of(cls, experts: Experts) -> Choosing:
        least = experts.least if experts.normalised else None
        groups, by_logits = (experts.groups, experts.groups_chosen), experts.scoring == "sigmoid_of_chosen"
        sigmoid = experts.scoring != "softmax"
        return cls(experts.chosen, sigmoid, least, experts.scale, *groups, by_logits)
