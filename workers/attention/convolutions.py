"""Layers that keep the last inputs of a convolution, and no more, in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.attention.states import RecurrentStates, StateStep
from workers.kernels.gated_delta import convolve, convolve_each


class ConvolvedInputs(RecurrentStates):
    """The backend that is torch alone. Implements `StateBackend`, whose `run` has two tensors."""

    def run(self, prepared: StateStep, layer: int, x: Tensor, weight: Tensor) -> Tensor:
        """One layer, of all sequences: `[tokens, channels]` and `[channels, kernel]` to such float32."""
        x, weight, single = x.float(), weight.float(), prepared.num_decode
        inputs, found, number = self.cache.inputs[layer], [], 0
        if single and not self._exact:
            read, written = prepared.read[:single], prepared.written[:single]
            y, inputs[written] = convolve_each(x[:single], inputs[read], weight, silu=False)
            found, number = [y], single
        alone = [slice(row, row + 1) for row in range(number, single)]
        for part in (*alone, *prepared.checked, *prepared.chunks):
            read, written = prepared.read[number : number + 1], prepared.written[number : number + 1]
            of_drafts = single <= number < single + len(prepared.checked)
            y, seen = self._sequence(x[part], inputs[read][0], weight, keeps=1 if of_drafts else None)
            found.append(y)
            inputs[written] = seen
            number += 1
        if prepared.guesses is not None:
            prepared.guesses.keep_inputs(layer, x)
        return found[0] if len(found) == 1 else torch.cat(found)

    def _sequence(
        self, x: Tensor, before: Tensor, weight: Tensor, keeps: int | None
    ) -> tuple[Tensor, Tensor]:
        """Tokens of one sequence, and the inputs that the next ones see.

        Args:
            keeps: how many of the tokens count for these; None: all of them.
        """
        seen = torch.cat((before, x[:keeps]))[-len(before) :]
        if not self._exact:
            return convolve(x, before, weight, silu=False)[0], seen
        found, before = [], before[None]
        for row in range(len(x)):
            y, before = convolve_each(x[row : row + 1], before, weight, silu=False)
            found.append(y)
        return torch.cat(found), seen
