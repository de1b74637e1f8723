"""Layers of Mamba-2 on a GPU: single tokens and drafts by a kernel of Triton's, prompts by torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from workers.attention.convolutions_cuda import StateStep, TritonInputs, few_of
from workers.attention.rules import SpaceRule
from workers.cache.state import StateCache
from workers.kernels import state_space_triton
from workers.kernels.state_space import LARGE_CHUNK
from workers.step.batch import Segment


@dataclass(slots=True)
class SpaceStep(StateStep):
    """A step: sequences with one token, with drafts, and others."""

    num_few: int  # sequences with one token, or with drafts
    prompts: list[slice]  # the rows of each of the others


class TritonSpaces(TritonInputs):
    """Implements `workers.attention.states.StateBackend`; for the arguments see `TritonInputs`."""

    _kernel = staticmethod(state_space_triton.recur)

    def __init__(self, cache: StateCache, group: int, max_segments: int) -> None:
        super().__init__(cache, group, max_segments)
        self._rule = SpaceRule(cache.shape, LARGE_CHUNK)

    def prepare(self, segments: Sequence[Segment], tensors: dict[str, Tensor]) -> SpaceStep:
        step, few = super().prepare(segments, tensors), few_of(segments)
        prompts = [slice(each.rows.start, each.rows.stop) for each in segments[few:]]
        return SpaceStep(step.owners, step.places, step.guesses, few, prompts)

    def run(
        self,
        prepared: SpaceStep,
        layer: int,
        mixed: Tensor,
        weight: Tensor,
        decay: Tensor,
        beta: Tensor,
        bias: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> Tensor:  # [tokens, heads, head_dim] float32
        """One layer, of all sequences."""
        places, few, shape = prepared.places, prepared.num_few, self.cache.shape
        matrices, y = self.cache.matrices[layer], self._convolve(prepared, layer, mixed, weight, bias=bias)
        out = y.new_empty(len(y), *shape.results)
        if few:
            self._kernel(y, decay, beta, matrices, out, places, few, shape, skip)
        if (guesses := prepared.guesses) is not None:
            guesses.keep(layer, mixed, y[guesses.rows], decay, beta)
        for number, rows in enumerate(prepared.prompts, few):
            state = matrices[places.read[number : number + 1]][0]
            self._rule.chunked(state, y[rows], decay[rows], beta[rows], out[rows])
            if skip is not None:
                out[rows].addcmul_(self._rule.inputs(y[rows]), skip[:, None])
            matrices[places.written[number : number + 1]] = state
        return out
