"""Layers of Gated DeltaNet on a GPU, by Triton's kernels: single tokens and drafts, and prompts in chunks."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from workers.attention.convolutions_cuda import StateStep, TritonInputs, few_of
from workers.cache.state import StateCache
from workers.kernels import gated_delta_triton
from workers.kernels.gated_delta_chunks_triton import CHUNK, Chunks, Part, chunked, parts_of
from workers.step.batch import Segment


@dataclass(slots=True)
class DeltaStep(StateStep):
    """A step: sequences with one token, with drafts, and others."""

    num_few: int  # sequences with one token, or with drafts
    chunks: Chunks  # of the others
    parts: list[Part]


class TritonStates(TritonInputs):
    """Implements `workers.attention.states.StateBackend`; for the arguments see `TritonInputs`."""

    _kernel = staticmethod(gated_delta_triton.recur)

    def __init__(self, cache: StateCache, group: int, max_segments: int) -> None:
        super().__init__(cache, group, max_segments)
        self.sizes |= {"state_chunk_owners": max_segments, "state_chunk_starts": max_segments + 1}

    def arrays(self, segments: Sequence[Segment]) -> dict[str, array[int]]:
        """See `Chunks` as well; without prompts nothing is cut."""
        few = few_of(segments)
        owners, starts = array("q"), array("q", [0] * (few + 1))
        for number, count in enumerate(_chunks(segments[few:]), few):
            owners.extend([number] * count)
            starts.append(len(owners))
        chunks = {"state_chunk_owners": owners, "state_chunk_starts": starts if owners else array("q")}
        return super().arrays(segments) | chunks

    def prepare(self, segments: Sequence[Segment], tensors: dict[str, Tensor]) -> DeltaStep:
        step, few = super().prepare(segments, tensors), few_of(segments)
        chunks = Chunks(tensors["state_chunk_owners"], tensors["state_chunk_starts"])
        parts = parts_of(_chunks(segments[few:]), few)
        return DeltaStep(step.owners, step.places, step.guesses, few, chunks, parts)

    def run(
        self, prepared: DeltaStep, layer: int, mixed: Tensor, weight: Tensor, decay: Tensor, beta: Tensor
    ) -> Tensor:  # [tokens, heads, value_dim] float32
        """One layer, of all sequences."""
        places, few, delta = prepared.places, prepared.num_few, self.cache.shape
        matrices, y = self.cache.matrices[layer], self._convolve(prepared, layer, mixed, weight)
        decay, beta = decay.contiguous(), beta.contiguous()
        out = y.new_empty(len(y), delta.value_heads, delta.value_dim)
        if few:
            self._kernel(y, decay, beta, matrices, out, places, few, delta)
        if (guesses := prepared.guesses) is not None:
            guesses.keep(layer, mixed, y[guesses.rows], decay, beta)
        if prepared.parts:
            chunked(y, decay, beta, matrices, out, places, prepared.chunks, prepared.parts, delta)
        return out


def _chunks(prompts: Sequence[Segment]) -> list[int]:
    return [-(-len(each.rows) // CHUNK) for each in prompts]
