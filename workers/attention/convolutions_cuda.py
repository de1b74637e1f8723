"""Tokens through the convolutions of layers with a state by Triton's kernels: the backend for GPUs."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ipc.worker_messages import FREE_ROWS
from workers.attention.states import Drafted, states_of
from workers.cache.state import StateCache
from workers.kernels import gated_delta_triton as kernels
from workers.kernels.gated_delta_triton import Places
from workers.step.batch import Segment


@dataclass(slots=True)
class StateStep:
    """A step, as all layers with a state see it."""

    owners: Tensor  # [tokens] int64, the sequence of each
    places: Places
    guesses: Drafted | None


class TritonInputs:
    """Implements `workers.attention.states.StateBackend` for layers of a convolution alone.

    Args:
        cache: of the states.
        group: the number of theirs among the tables of a plan.
        max_segments: of a step, and tokens.
    """

    capturable = True
    _kernel: Callable[..., None]  # `recur` of layers that have matrices

    def __init__(self, cache: StateCache, group: int, max_segments: int) -> None:
        self.cache, self._group = cache, group
        names = ("states_read", "states_written", "state_owners", "state_ends")
        self.sizes = dict.fromkeys(names, max_segments) | {"state_starts": max_segments + 1}
        self._guesses: Drafted | None = None  # of the last step that had some

    def arrays(self, segments: Sequence[Segment]) -> dict[str, array[int]]:
        """See `Places` and `StateStep`, whose arrays they are."""
        read, written = states_of(segments, self._group, self.cache.zero)
        starts = array("q", [segment.rows.start for segment in segments])
        starts.append(segments[-1].rows.stop)
        owners = array("q")
        for number, segment in enumerate(segments):
            owners.extend([number] * len(segment.rows))
        return {
            "states_read": read,
            "states_written": written,
            "state_owners": owners,
            "state_ends": array("q", [segment.rows.stop - segment.drafts for segment in segments]),
            "state_starts": starts,
        }

    def prepare(self, segments: Sequence[Segment], tensors: dict[str, Tensor]) -> StateStep:
        """Of the same segments, and their arrays on the device."""
        names = ("state_starts", "state_ends", "states_read", "states_written")
        places = Places(*(tensors[name] for name in names))
        self._guesses = Drafted.of(segments, self._group)
        return StateStep(tensors["state_owners"], places, self._guesses)

    def run(self, prepared: StateStep, layer: int, x: Tensor, weight: Tensor) -> Tensor:
        """As of `workers.attention.convolutions.ConvolvedInputs`."""
        y = self._convolve(prepared, layer, x, weight, silu=False)
        if prepared.guesses is not None:
            prepared.guesses.keep_inputs(layer, x)
        return y

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
        guesses, places = self._guesses, self._places_of(self._guesses, right)
        for layer, mixed in [*guesses.inputs.items()]:
            kernels.keep_inputs(mixed, self.cache.inputs[layer], places)
            del guesses.inputs[layer]
        for layer, (y, decay, beta) in [*guesses.layers.items()]:
            unread = y.new_empty(len(y), *self.cache.shape.results)
            given = y, decay, beta, self.cache.matrices[layer], unread, places, len(right)
            self._kernel(*given, self.cache.shape)
            del guesses.layers[layer]

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


def few_of(segments: Sequence[Segment]) -> int:
    """Sequences with one token, or with drafts: the first. A launch has their tokens one after the other."""
    return sum(len(segment.rows) == 1 or segment.drafts > 0 for segment in segments)
