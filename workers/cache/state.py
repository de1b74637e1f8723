"""The memory of recurrent states: of each layer that keeps one, as many as sequences and checkpoints need."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.cache.paged import zeros
from workers.checkpoints.config import DeltaNet


class StateCache:
    """States are numbered, and a number stands for the states of all layers, which lie together.

    Behind the last one is one more that nobody writes: a sequence begins with it, and it is zero.

    Args:
        layers: numbers of those that keep a state.
        delta: what each is on this rank.
        states: how many.

    Attributes:
        matrices: of each layer, `[states + 1, heads, key_dim, value_dim]` float32.
        inputs: the last ones of its convolution, `[states + 1, kernel - 1, channels]` float32.
    """

    def __init__(self, layers: Sequence[int], delta: DeltaNet, *, states: int, device: torch.device) -> None:
        self.states, self.delta, self.device = states, delta, device
        size = delta.state_size
        self._arena = zeros((states + 1, len(layers) * size), torch.float32, device)
        self.matrices: dict[int, Tensor] = {}
        self.inputs: dict[int, Tensor] = {}
        matrix = (delta.value_heads, delta.key_dim, delta.value_dim)
        inputs = (delta.kernel - 1, delta.channels)
        split = delta.value_heads * delta.key_dim * delta.value_dim
        for place, layer in enumerate(layers):
            part = self._arena[:, place * size : (place + 1) * size]
            self.matrices[layer] = part[:, :split].unflatten(1, matrix)
            self.inputs[layer] = part[:, split:].unflatten(1, inputs)

    @property
    def zero(self) -> int:
        """The number of the state that a sequence begins with."""
        return self.states

    @property
    def nbytes(self) -> int:
        return self._arena.nbytes
