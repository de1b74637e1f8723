"""What the model runner and the models ask of layers that keep a state, and how that is done in torch."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ipc.worker_messages import PAGE_SIZE
from workers.attention.backend import Attend
from workers.cache.state import StateCache
from workers.checkpoints.config import DeltaNet
from workers.kernels.gated_delta import BLOCK, chunked, convolve, convolve_each, recur, unit
from workers.step.batch import Segment


class Recur(Protocol):
    """What a model calls in each layer that keeps a state."""

    def __call__(
        self,
        layer: int,
        mixed: Tensor,  # [tokens, channels]: queries, keys and values, as they go into the convolution
        weight: Tensor,  # [channels, kernel], of that
        decay: Tensor,  # [tokens, heads] float32: the logarithm
        beta: Tensor,  # the same
    ) -> Tensor:  # [tokens, heads, value_dim] float32
        ...


class Mixing(NamedTuple):
    """What a model with layers of both kinds is called with, in the place of `Attend`."""

    attend: Attend
    recur: Recur

    def __call__(self, *given: Any) -> Tensor:
        return self.attend(*given)


class StateBackend(Protocol):
    """The tokens of a step through the states of their sequences; asked as `AttentionBackend` is."""

    sizes: dict[str, int]
    capturable: bool  # as of `AttentionBackend`

    def arrays(self, segments: Sequence[Segment]) -> dict[str, array[int]]: ...

    def prepare(self, segments: Sequence[Segment], tensors: dict[str, Tensor]) -> Any: ...

    def run(
        self, prepared: Any, layer: int, mixed: Tensor, weight: Tensor, decay: Tensor, beta: Tensor
    ) -> Tensor:
        """In each layer: change the states by the new tokens, and say what these read (see `Recur`)."""
        ...


def states_of(segments: Sequence[Segment], group: int, zero: int) -> tuple[array[int], array[int]]:
    """The states that sequences begin with, and those that they leave: of the last pages before.

    Args:
        group: the number of theirs among the tables of a plan.
        zero: the state that stands for no token.
    """
    read, written = array("q"), array("q")
    for segment in segments:
        table = segment.slot.tables[group]
        read.append(table[(segment.start - 1) // PAGE_SIZE] if segment.start else zero)
        written.append(table[(segment.end - 1) // PAGE_SIZE])
    return read, written


def heads_of(y: Tensor, delta: DeltaNet) -> tuple[Tensor, Tensor, Tensor]:  # [tokens, channels]
    """Queries and keys, of unit length, and values, of what comes out of a convolution."""
    keys = delta.key_heads * delta.key_dim
    qk, v = y.split((2 * keys, y.shape[1] - 2 * keys), dim=1)
    q, k = unit(qk.unflatten(1, (2, delta.key_heads, delta.key_dim))).unbind(1)
    return q, k, v.unflatten(1, (delta.value_heads, delta.value_dim))


@dataclass(slots=True)
class StateStep:
    """A step, as all layers with a state see it. Sequences with one token come first."""

    read: Tensor  # [sequences] int64: the states that their tokens begin with
    written: Tensor  # the same: where the states after their tokens go
    num_decode: int  # sequences with one token
    chunks: list[slice]  # rows of the step, of each of the others
    places: list[tuple[int, int]]  # what `read` and `written` say, for a CPU, which need not copy


class RecurrentStates:
    """The backend that is torch alone. Implements `StateBackend`.

    Args:
        cache: of the states.
        group: the number of theirs among the tables of a plan.
        max_segments: of a step.
        exact: token after token and sequence after sequence, so that a token has the same bits in any step.
    """

    capturable = False  # on a GPU another one serves, but for `exact`

    def __init__(self, cache: StateCache, group: int, max_segments: int, exact: bool = False) -> None:
        self.cache, self._group, self._exact = cache, group, exact
        self.sizes = {"states_read": max_segments, "states_written": max_segments}

    def arrays(self, segments: Sequence[Segment]) -> dict[str, array[int]]:
        """Which state each sequence begins with, and which it leaves."""
        read, written = states_of(segments, self._group, self.cache.zero)
        return {"states_read": read, "states_written": written}

    def prepare(self, segments: Sequence[Segment], tensors: dict[str, Tensor]) -> StateStep:
        """Of the same segments, and their arrays on the device."""
        chunks = [segment.rows for segment in segments if len(segment.rows) > 1]
        arrays = self.arrays(segments).values() if tensors["states_read"].device.type == "cpu" else ((), ())
        return StateStep(
            tensors["states_read"],
            tensors["states_written"],
            len(segments) - len(chunks),
            [slice(rows.start, rows.stop) for rows in chunks],
            list(zip(*arrays, strict=True)),
        )

    def run(
        self, prepared: StateStep, layer: int, mixed: Tensor, weight: Tensor, decay: Tensor, beta: Tensor
    ) -> Tensor:  # [tokens, heads, value_dim] float32
        """One layer, of all sequences."""
        mixed, weight, single = mixed.float(), weight.float(), prepared.num_decode
        found = []
        if single and not self._exact:
            found.append(self._decode(prepared, layer, mixed[:single], weight, decay[:single], beta[:single]))
        rows = [slice(row, row + 1) for row in range(single)] if self._exact else []
        first = 0 if self._exact else single
        for number, part in enumerate([*rows, *prepared.chunks], first):
            places = prepared.read[number : number + 1], prepared.written[number : number + 1]
            found.append(self._sequence(places, layer, mixed[part], weight, decay[part], beta[part]))
        return found[0] if len(found) == 1 else torch.cat(found)

    def _decode(
        self, step: StateStep, layer: int, mixed: Tensor, weight: Tensor, decay: Tensor, beta: Tensor
    ) -> Tensor:
        """One token of each sequence, all at once."""
        read, written = step.read[: len(mixed)], step.written[: len(mixed)]
        inputs, matrices = self.cache.inputs[layer], self.cache.matrices[layer]
        y, after = convolve_each(mixed, inputs[read], weight)
        inputs[written] = after
        if step.places and len(mixed) == 1 and step.places[0][0] == step.places[0][1]:
            place = step.places[0][0]
            return recur(matrices[place : place + 1], *heads_of(y, self.cache.delta), decay, beta)
        state = matrices[read]
        found = recur(state, *heads_of(y, self.cache.delta), decay, beta)
        matrices[written] = state
        return found

    def _sequence(
        self,
        places: tuple[Tensor, Tensor],  # [1] int64 each
        layer: int,
        mixed: Tensor,
        weight: Tensor,
        decay: Tensor,
        beta: Tensor,
    ) -> Tensor:
        """Tokens of one sequence."""
        read, written = places
        inputs, matrices = self.cache.inputs[layer], self.cache.matrices[layer]
        if not self._exact:
            before, state, block = inputs[read][0], matrices[read][0], BLOCK[mixed.device.type]
            found = []
            for start in range(0, len(mixed), block):  # all of one stays in a CPU's cache
                part = slice(start, start + block)
                y, before = convolve(mixed[part], before, weight)
                heads = heads_of(y, self.cache.delta)
                y, state = chunked(state, *heads, decay[part], beta[part])
                found.append(y)
            inputs[written], matrices[written] = before, state
            return torch.cat(found)
        before, state = inputs[read], matrices[read]
        found = []
        for row in range(len(mixed)):
            token = slice(row, row + 1)
            y, before = convolve_each(mixed[token], before, weight)
            found.append(recur(state, *heads_of(y, self.cache.delta), decay[token], beta[token]))
        inputs[written], matrices[written] = before, state
        return torch.cat(found)
