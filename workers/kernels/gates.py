"""What kernels know of gates, before any of them is imported."""

from __future__ import annotations

from typing import NamedTuple

from workers.checkpoints.experts import Clamp

ACTIVATIONS = ("silu", "gelu_tanh", "gelu")  # in the order of the numbers that kernels know them by


class Gates(NamedTuple):
    """How one half of what a product gives opens the other, element by element.

    Args:
        how: one of `ACTIVATIONS`, or as gpt-oss has it.
        interleaved: gates are every second element, and not the first half.
    """

    how: str | Clamp
    interleaved: bool = False

    @classmethod
    def of(cls, how: str | Clamp, interleaved: bool = False) -> Gates | None:
        """None: kernels do not know that activation."""
        return cls(how, interleaved) if isinstance(how, Clamp) or how in ACTIVATIONS else None
