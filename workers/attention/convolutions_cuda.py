"""The same by Triton's kernels: the backend for GPUs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from workers.attention.states_cuda import StateStep, TritonStates


class TritonInputs(TritonStates):
    """Implements `workers.attention.states.StateBackend`, whose `run` has two tensors."""

    def run(self, prepared: StateStep, layer: int, x: Tensor, weight: Tensor) -> Tensor:
        """As of `workers.attention.convolutions.ConvolvedInputs`."""
        y = self._convolve(prepared, layer, x, weight, silu=False)
        if prepared.guesses is not None:
            prepared.guesses.keep_inputs(layer, x)
        return y

    def adopt(self, right: Sequence[int]) -> None:
        self._adopt_inputs(self._guesses, self._places_of(self._guesses, right))
