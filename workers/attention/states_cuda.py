"""Tokens through the states of their sequences by Triton's kernels: the backend for GPUs."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from workers.attention.states import heads_of, states_of
from workers.cache.state import StateCache
from workers.kernels import gated_delta_triton as kernels
from workers.kernels.gated_delta import BLOCK, chunked
from workers.kernels.gated_delta_triton import Places
from workers.step.batch import Segment


@dataclass(slots=True)
class StateStep:
    """A step, as all layers with a state see it. Sequences with one token come first."""

    places: Places
    num_decode: int  # sequences with one token
    chunks: list[slice]  # rows of the step, of each of the others


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
        self.sizes = dict.fromkeys(("states_read", "states_written", "state_owners"), max_segments)
        self.sizes["state_starts"] = max_segments + 1

    def arrays(self, segments: Sequence[Segment]) -> dict[str, array[int]]:
        """See `Places`, whose arrays they are."""
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
            "state_starts": starts,
        }

    def prepare(self, segments: Sequence[Segment], tensors: dict[str, Tensor]) -> StateStep:
        """Of the same segments, and their arrays on the device."""
        names = ("state_owners", "state_starts", "states_read", "states_written")
        chunks = [slice(each.rows.start, each.rows.stop) for each in segments if len(each.rows) > 1]
        return StateStep(Places(*(tensors[name] for name in names)), len(segments) - len(chunks), chunks)

    def run(
        self, prepared: StateStep, layer: int, mixed: Tensor, weight: Tensor, decay: Tensor, beta: Tensor
    ) -> Tensor:  # [tokens, heads, value_dim] float32
        """One layer, of all sequences."""
        places, single, delta = prepared.places, prepared.num_decode, self.cache.delta
        matrices = self.cache.matrices[layer]
        y = kernels.convolve(mixed, weight, self.cache.inputs[layer], places)
        decay, beta = decay.contiguous(), beta.contiguous()
        out = y.new_empty(len(y), delta.value_heads, delta.value_dim)
        if single:
            kernels.recur(y[:single], decay, beta, matrices, out, places, delta)
        for number, rows in enumerate(prepared.chunks, single):
            state = matrices[places.read[number : number + 1]][0]
            for start in range(rows.start, rows.stop, BLOCK["cuda"]):  # the memory of one does for all
                part = slice(start, min(start + BLOCK["cuda"], rows.stop))
                out[part], state = chunked(state, *heads_of(y[part], delta), decay[part], beta[part])
            matrices[places.written[number : number + 1]] = state
        return out
