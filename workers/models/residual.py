"""The residual stream of a model, to which every layer adds."""

from __future__ import annotations

from torch import Tensor

from workers.kernels import step
from workers.layers.layer_norm import LayerNorm
from workers.layers.norm import RMSNorm

Norm = RMSNorm | LayerNorm


class Residual:
    """What layers read normalised, and add to.

    What is added waits for the next norm: the sum is made as it is normalised. Nobody else keeps either of
    both, so that they go when their sum is there.

    Args:
        x: `[tokens, hidden]`.
    """

    def __init__(self, x: Tensor) -> None:
        self._x, self._added = x, None

    def add(self, y: Tensor) -> None:
        """`[tokens, hidden]`."""
        self._x, self._added = self.whole(), y

    def add_normed(self, y: Tensor, norm: RMSNorm) -> None:
        """The same of `y` normalised."""
        self._x = norm.added(self.whole(), y)

    def multiply(self, scale: Tensor) -> None:
        """`[1]`; all that was added."""
        self._x = self.whole() * scale

    def keep(self, rows: Tensor | None) -> None:
        """Go on with these alone; None: with all."""
        self._x = only(self._x, rows)
        if self._added is not None:
            self._added = only(self._added, rows)

    def whole(self) -> Tensor:
        """All that was added."""
        if self._added is not None:
            self._x, self._added = _sum(self._x, self._added), None
        return self._x

    def normed(self, norm: Norm | None) -> Tensor:
        """The same, normalised; without a norm as it is."""
        if norm is None:
            return self.whole()
        if self._added is None or not isinstance(norm, RMSNorm):
            return norm(self.whole())
        self._x, normed = norm.of_sum(self._x, self._added)
        self._added = None
        return normed


def only(x: Tensor, rows: Tensor | None) -> Tensor:
    """These rows of `x` `[tokens, ...]`; None: all."""
    return x if rows is None else x.index_select(0, rows)


def _sum(x: Tensor, y: Tensor) -> Tensor:
    return step.sum_of(x, y) if step.takes(x, x.shape[-1]) and x.dtype == y.dtype else x + y
