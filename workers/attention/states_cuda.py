"""Tokens through the states of their sequences by Triton's kernels: the backend for GPUs."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ipc.worker_messages import FREE_ROWS
from workers.attention.states import Drafted, states_of
from workers.cache.state import StateCache
from workers.kernels import gated_delta_triton as kernels
from workers.kernels.gated_delta_chunks_triton import CHUNK, Chunks, Part, chunked, parts_of
from workers.kernels.gated_delta_triton import Places
from workers.step.batch import Segment


@dataclass(slots=True)
class StateStep:
    """A step, as all layers with a state see it: sequences with one token, with drafts, and others."""

    owners: Tensor  # [tokens] int64, the sequence of each
    places: Places
    num_few: int  # sequences with one token, or with drafts
    chunks: Chunks  # of the others
    parts: list[Part]
    guesses: Drafted | None


class TritonStates:
    """Implements `workers.attention.states.StateBackend`.

    Args:
        cache: of the states.
        group: the number of theirs among the tables of a plan.
        max_segments: of a step, and tokens.
    """

    capturable = True

    def __init__(self, cache: StateCache, group: int, max_segments: int) -> None:
        self.cache, self._group = cache, group
        names = ("states_read", "states_written", "state_owners", "state_ends")
        self.sizes = dict.fromkeys(names, max_segments)
        self.sizes["state_chunk_owners"] = max_segments
        self.sizes |= dict.fromkeys(("state_starts", "state_chunk_starts"), max_segments + 1)
        self._guesses: Drafted | None = None  # of the last step that had some

    def arrays(self, segments: Sequence[Segment]) -> dict[str, array[int]]:
        """See `Places`, `Chunks` and `StateStep`, whose arrays they are; without prompts nothing is cut."""
        read, written = states_of(segments, self._group, self.cache.zero)
        starts = array("q", [segment.rows.start for segment in segments])
        starts.append(segments[-1].rows.stop)
        owners = array("q")
        chunk_owners, chunk_starts = array("q"), array("q", [0])
        for number, segment in enumerate(segments):
            owners.extend([number] * len(segment.rows))
            chunk_owners.extend([number] * _chunks_of(segment))
            chunk_starts.append(len(chunk_owners))
        return {
            "states_read": read,
            "states_written": written,
            "state_owners": owners,
            "state_ends": array("q", [segment.rows.stop - segment.drafts for segment in segments]),
            "state_starts": starts,
            "state_chunk_owners": chunk_owners,
            "state_chunk_starts": chunk_starts if chunk_owners else array("q"),
        }

    def prepare(self, segments: Sequence[Segment], tensors: dict[str, Tensor]) -> StateStep:
        """Of the same segments, and their arrays on the device."""
        names = ("state_starts", "state_ends", "states_read", "states_written")
        places = Places(*(tensors[name] for name in names))
        chunks = Chunks(tensors["state_chunk_owners"], tensors["state_chunk_starts"])
        counts = [count for each in segments if (count := _chunks_of(each))]
        self._guesses = Drafted.of(segments, self._group)
        few = len(segments) - len(counts)
        parts = parts_of(counts, few)
        return StateStep(tensors["state_owners"], places, few, chunks, parts, self._guesses)

    def run(
        self, prepared: StateStep, layer: int, mixed: Tensor, weight: Tensor, decay: Tensor, beta: Tensor
    ) -> Tensor:  # [tokens, heads, value_dim] float32
        """One layer, of all sequences."""
        places, few, delta = prepared.places, prepared.num_few, self.cache.shape
        matrices, y = self.cache.matrices[layer], self._convolve(prepared, layer, mixed, weight)
        decay, beta = decay.contiguous(), beta.contiguous()
        out = y.new_empty(len(y), delta.value_heads, delta.value_dim)
        if few:
            kernels.recur(y, decay, beta, matrices, out, places, few, delta)
        if (guesses := prepared.guesses) is not None:
            guesses.keep(layer, mixed, y[guesses.rows], decay, beta)
        if prepared.parts:
            chunked(y, decay, beta, matrices, out, places, prepared.chunks, prepared.parts, delta)
        return out

    def _convolve(
        self,
        prepared: StateStep,
        layer: int,
        mixed: Tensor,
        weight: Tensor,
        silu: bool = True,
        bias: Tensor | None = None,
    ) -> Tensor:
        """All tokens through the convolution, which keeps its last inputs: `[tokens, channels]` float32."""
        inputs, mixed = self.cache.inputs[layer], mixed.contiguous()
        y = kernels.convolve(mixed, weight, inputs, prepared.owners, prepared.places, silu, bias)
        kernels.keep_inputs(mixed, inputs, prepared.places)
        return y

    def adopt(self, right: Sequence[int]) -> None:
        """All sequences at once, each from its first draft on."""
        guesses = self._guesses
        places, delta = self._places_of(guesses, right), self.cache.shape
        self._adopt_inputs(guesses, places)
        rows = guesses.rows.stop - guesses.rows.start
        unread = torch.empty(rows, delta.value_heads, delta.value_dim, device=self.cache.device)
        for layer, (y, decay, beta) in [*guesses.layers.items()]:
            kernels.recur(y, decay, beta, self.cache.matrices[layer], unread, places, len(right), delta)
            del guesses.layers[layer]

    def _adopt_inputs(self, guesses: Drafted, places: Places) -> None:
        for layer, mixed in [*guesses.inputs.items()]:
            kernels.keep_inputs(mixed, self.cache.inputs[layer], places)
            del guesses.inputs[layer]

    def _places_of(self, guesses: Drafted, right: Sequence[int]) -> Places:
        """Where the drafts that were right are, and the states that they get into."""
        firsts, count = guesses.firsts, len(guesses.firsts)
        starts = [*firsts, guesses.rows.stop - guesses.rows.start]
        ends = [first + number for first, number in zip(firsts, right, strict=True)]
        # each at an address that is a multiple of 16 bytes, for which kernels are compiled once
        numbers = torch.zeros(3, FREE_ROWS, dtype=torch.int64)
        for row, values in zip(numbers, (starts, ends, guesses.states), strict=True):
            row[: len(values)] = torch.tensor(values)
        starts, ends, states = numbers.to(self.cache.device)
        return Places(starts[: count + 1], ends[:count], states[:count], states[:count])


def _chunks_of(segment: Segment) -> int:
    """None, where a launch has its tokens one after the other."""
    count = len(segment.rows)
    return -(-count // CHUNK) if count > 1 and not segment.drafts else 0
