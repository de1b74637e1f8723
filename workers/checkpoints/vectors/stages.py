"""What follows the encoder: hidden states are pooled to one vector, and that goes through some products."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

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

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """What it loads: names and shapes."""
        yield f"{self.name}.weight", (self.outputs, self.inputs)
        if self.bias:
            yield f"{self.name}.bias", (self.outputs,)
        if self.norm:
            yield f"{self.norm}.weight", (self.outputs,)
            if self.norm_bias:
                yield f"{self.norm}.bias", (self.outputs,)
