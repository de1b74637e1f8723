"""What a mixture of experts is: how many there are, how a router chooses them, what stands beside."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from workers.checkpoints.shares import Share

_OWN = re.compile(r"\.experts\.(\d+)\.")


class Clamp(msgspec.Struct, frozen=True):
    """An MLP's gate that lets through no more than a limit: `(up + 1) * gate * sigmoid(alpha * gate)`."""

    alpha: float
    limit: float  # of the gate, above; of the other, on both sides


class Experts(msgspec.Struct, frozen=True, kw_only=True):
    """MLPs of which each token goes through a few, as a router says."""

    count: int
    chosen: int  # for each token
    intermediate_size: int  # of each
    layers: tuple[int, ...]  # that have them; others have one MLP
    beside_mlp: bool = False  # and so have these
    # the router
    scoring: Literal["softmax", "sigmoid", "sigmoid_of_chosen", "sparse_mixer"] = "softmax"
    jitter: float = 0.0  # of a sparse mixer
    weighs_inputs: bool = False  # what goes into an expert is multiplied with its weight, not what comes out
    normalised: bool = False  # the weights of those that are chosen add up to 1
    least: float = 1e-20  # is added to their sum then, which may be 0
    corrected: bool = False  # each expert has a number that is added to its score for the choice alone
    groups: int = 1  # of experts, of which some are chosen first, and experts only from them
    groups_chosen: int = 1
    scale: float = 1.0  # of the weights
    router: str = "gate"  # its name
    biased: bool = False  # it, and all projections
    summed_bias: bool = False  # is added to the sum of what they make
    # each
    interleaved: bool = (
        False  # the two projections into an expert are one tensor, whose rows are theirs by turns
    )
    clamp: Clamp | None = None
    block: int = 1  # columns of its last projection that no two ranks may share, as they are stored
    # beside them
    shared_size: int = 0  # of an MLP that every token goes through; 0: there is none
    shared_name: str = "shared_experts"
    averaged: bool = False  # what comes of both is halved
    shared_gate: bool = False  # a number for each token, that what comes of it is multiplied with

    def whole_in(self, parts: int) -> bool:
        """Whether each of so many parts has some of the experts, and those whole.

        Else it has its part of every expert, which is what ranks do where they can: so each reads its share
        for each token. Of whole experts one rank may have more of those that a token chose than another, and
        the slowest is waited for (with 8 of 128 on two ranks: 5.1 on average, and not 4). Both take one sum
        over the ranks a block, of the same size.
        """
        divides = self.intermediate_size % (parts * self.block) == 0
        return parts > 1 and not divides and self.count >= parts

    def of(self, share: Share) -> range:
        """The experts of a rank that has them whole; parts may differ by one."""
        ends = share.first, share.first + share.count
        return range(*(end * self.count // share.parts for end in ends))

    def splits_into(self, parts: int) -> bool:
        """Whether they can be divided so, as far as sizes say."""
        each = self.intermediate_size % parts == 0 or self.whole_in(parts)
        return each and self.shared_size % parts == 0


def number_of(name: str) -> int | None:
    """The expert that a tensor is a part of; None: it is of none."""
    own = _OWN.search(name)
    return None if own is None else int(own[1])
