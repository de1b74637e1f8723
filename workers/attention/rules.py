"""What tokens do to the matrices that a layer keeps: a rule for each kind of such layers, in torch."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from workers.checkpoints.model_config import DeltaNet, Mamba, StateShape
from workers.kernels import gated_delta, state_space
from workers.kernels.gated_delta import unit


class Rule(Protocol):
    """Of one kind. Inputs are what comes out of the convolution, `[tokens, channels]`, and of each token and
    head two numbers; all is float32."""

    def recur(self, state: Tensor, y: Tensor, decay: Tensor, beta: Tensor) -> Tensor:
        """One token of each of several sequences, whose matrices are changed in place.

        Returns:
            What they read, `[tokens, *results]`, as the kind says.
        """
        ...

    def chunked(self, state: Tensor, y: Tensor, decay: Tensor, beta: Tensor, out: Tensor) -> None:
        """Tokens of one sequence, in order; `out` takes what they read."""
        ...


class DeltaRule:
    """A Gated DeltaNet's."""

    def __init__(self, shape: DeltaNet) -> None:
        self._shape = shape

    def recur(self, state: Tensor, y: Tensor, decay: Tensor, beta: Tensor) -> Tensor:
        return gated_delta.recur(state, *self._heads(y), decay, beta)

    def chunked(self, state: Tensor, y: Tensor, decay: Tensor, beta: Tensor, out: Tensor) -> None:
        gated_delta.chunked(state, *self._heads(y), decay, beta, out)

    def _heads(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # [tokens, channels]
        """Queries and keys, of unit length, and values."""
        shape = self._shape
        keys = shape.key_heads * shape.key_dim
        qk, v = y.split((2 * keys, y.shape[1] - 2 * keys), dim=1)
        q, k = unit(qk.unflatten(1, (2, shape.key_heads, shape.key_dim))).unbind(1)
        return q, k, v.unflatten(1, (shape.value_heads, shape.value_dim))


class SpaceRule:
    """That of Mamba-2, which takes so many tokens of a prompt together."""

    def __init__(self, shape: Mamba, chunk: int = state_space.CHUNK) -> None:
        self._shape, self._chunk = shape, chunk

    def recur(self, state: Tensor, y: Tensor, decay: Tensor, beta: Tensor) -> Tensor:
        return state_space.recur(state, *self._heads(y), decay, beta)

    def chunked(self, state: Tensor, y: Tensor, decay: Tensor, beta: Tensor, out: Tensor) -> None:
        state_space.chunked(state, *self._heads(y), decay, beta, out, self._chunk)

    def inputs(self, y: Tensor) -> Tensor:  # [tokens, *results]
        """What of `y` a layer with `skip` lets through, beside what is read."""
        return self._heads(y)[0]

    def _heads(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # [tokens, channels]
        """Inputs, keys and queries."""
        shape, keys = self._shape, (self._shape.groups, self._shape.state_dim)
        x, k, q = y.split((shape.inner, shape.keys, shape.keys), dim=1)
        return x.unflatten(1, shape.results), k.unflatten(1, keys), q.unflatten(1, keys)


def rule_of(shape: StateShape) -> Rule | None:
    """None: a convolution alone has none."""
    if isinstance(shape, DeltaNet):
        return DeltaRule(shape)
    return SpaceRule(shape) if isinstance(shape, Mamba) else None
