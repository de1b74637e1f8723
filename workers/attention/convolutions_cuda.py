"""The same by Triton's kernels: the backend for GPUs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from workers.attention.states_cuda import StateStep, TritonStates
from workers.kernels import gated_delta_triton as kernels


class TritonInputs(TritonStates):
    """Implements `workers.attention.states.StateBackend`, whose `run` has two tensors."""

    def run(self, prepared: StateStep, layer: int, x: Tensor, weight: Tensor) -> Tensor:
        """As of `workers.attention.convolutions.ConvolvedInputs`."""
        y = self._convolve(prepared, layer, x, weight, silu=False)
        if prepared.guesses is not None:
            prepared.guesses.keep_inputs(layer, x)
        return y

    def adopt(self, right: Sequence[int]) -> None:
        guesses, self._guesses = self._guesses, None
        places = self._places_of(guesses, right)
        for layer, x in guesses.inputs.items():
            kernels.keep_inputs(x, self.cache.inputs[layer], places)
