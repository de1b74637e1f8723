"""What follows the encoder: hidden states are pooled to one vector, and that goes through some products."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from workers.checkpoints.family import TensorSpec

# Of the hidden states of a text: the first, the last, their mean, the largest of each dimension, or their sum
# over the square root of their number.
Pooling = Literal["cls", "last", "mean", "max", "mean_sqrt_len"]
StageActivation = Literal["identity", "tanh", "gelu", "relu", "sigmoid", "silu"]


class Stage(msgspec.Struct, frozen=True):
    """`norm(activation(W x + b))` of a pooled vector. Every rank has all of it."""

    name: str  # of its tensors, without `.weight`
    inputs: int
    outputs: int
    bias: bool
    activation: StageActivation = "identity"
    norm: str = ""  # the name of a LayerNorm behind it
    norm_bias: bool = False


def tensors(stages: Iterable[Stage]) -> Iterator[TensorSpec]:
    """All that the stages load."""
    for stage in stages:
        yield TensorSpec(f"{stage.name}.weight", (stage.outputs, stage.inputs), "none")
        if stage.bias:
            yield TensorSpec(f"{stage.name}.bias", (stage.outputs,), "none")
        if stage.norm:
            yield TensorSpec(f"{stage.norm}.weight", (stage.outputs,), "none")
            if stage.norm_bias:
                yield TensorSpec(f"{stage.norm}.bias", (stage.outputs,), "none")
