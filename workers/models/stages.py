"""What follows the pooled vector: Dense modules, or a classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.checkpoints.vectors.stages import Pooling, Stage, StageActivation
from workers.layers.layer_norm import LayerNorm
from workers.layers.linear import ColumnParallel
from workers.weights.blocks import Empty
from workers.weights.loader import Shard, bytes_filled

ACTIVATIONS: dict[StageActivation, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
}


class Stages:
    """One after the other. Every rank holds all of them, and computes with them where it is wanted.

    Args:
        norm_eps: of the norms in them.
    """

    def __init__(self, stages: Sequence[Stage], norm_eps: float, empty: Empty) -> None:
        self.stages = list(stages)
        self.linears = [
            ColumnParallel([(each.name, each.outputs, range(each.outputs))], each.inputs, each.bias, empty)
            for each in stages
        ]
        self.norms = [
            LayerNorm(each.norm, each.outputs, norm_eps, empty, each.norm_bias) if each.norm else None
            for each in stages
        ]

    def parts(self) -> Iterator[Shard]:
        """What is read from the checkpoint."""
        for linear, norm in zip(self.linears, self.norms, strict=True):
            yield Shard([*linear.pieces(), *(norm.pieces() if norm else ())])

    @property
    def nbytes(self) -> int:
        return bytes_filled(self.parts())

    def __call__(self, x: Tensor) -> Tensor:  # [texts, inputs of the first] -> [texts, outputs of the last]
        for stage, linear, norm in zip(self.stages, self.linears, self.norms, strict=True):
            x = ACTIVATIONS[stage.activation](linear(x))
            x = x if norm is None else norm(x)
        return x


def pool(hidden: Tensor, pooling: Pooling) -> Tensor:  # [tokens, hidden] -> [hidden] float32
    """One vector of all hidden states of a text."""
    match pooling:
        case "cls":
            return hidden[0].float()
        case "last":
            return hidden[-1].float()
        case "max":
            return hidden.amax(dim=0).float()
        case "mean":
            return hidden.mean(dim=0, dtype=torch.float32)
        case "mean_sqrt_len":
            return hidden.sum(dim=0, dtype=torch.float32) / len(hidden) ** 0.5
