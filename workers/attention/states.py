"""What the model runner and the models ask of layers that keep a state, and how that is done in torch."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ipc.worker_messages import PAGE_SIZE
from workers.attention.backend import Attend
from workers.attention.rules import rule_of
from workers.cache.state import StateCache
from workers.kernels.gated_delta import convolve, convolve_each
from workers.step.batch import Segment

# Tokens of one sequence that are convolved at once: few stay in a CPU's cache, many are few launches.
BLOCK = {"cpu": 128, "cuda": 2048}


class Recur(Protocol):
    """What a model calls in each layer that keeps a state."""

    def __call__(
        self,
        layer: int,
        mixed: Tensor,  # [tokens, channels]: queries, keys and values, as they go into the convolution
        weight: Tensor,  # [channels, kernel], of that
        decay: Tensor,  # [tokens, heads] float32: the logarithm
        beta: Tensor,  # the same
        bias: Tensor | None = None,  # [channels], of the convolution
        skip: Tensor | None = None,  # [heads] float32: how much of the values is added to what is read
    ) -> Tensor:  # [tokens, heads, value_dim] float32
        ...


class Mixing(NamedTuple):
    """What a model with layers of both kinds is called with, in the place of `Attend`."""

    attend: Attend
    recur: Recur

    def __call__(self, *given: Any) -> Tensor:
        return self.attend(*given)


class StateBackend(Protocol):
    """The tokens of a step through the states of their sequences; asked as `AttentionBackend` is.

    Of a sequence with drafts a step leaves the state after the token before them, for a state cannot be cut
    back. What its drafts bring into each layer is kept meanwhile, until `adopt` is told which were right.
    """

    sizes: dict[str, int]
    capturable: bool  # as of `AttentionBackend`

    def arrays(self, segments: Sequence[Segment]) -> dict[str, array[int]]: ...

    def prepare(self, segments: Sequence[Segment], tensors: dict[str, Tensor]) -> Any: ...

    def run(
        self,
        prepared: Any,
        layer: int,
        mixed: Tensor,
        weight: Tensor,
        decay: Tensor,
        beta: Tensor,
        bias: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> Tensor:
        """In each layer: change the states by the new tokens, and say what these read (see `Recur`)."""
        ...

    def adopt(self, right: Sequence[int]) -> None:
        """Let drafts of the last step that had some into the states of their sequences, in all layers.

        Where that fails for want of memory, it goes on with what is left when it is called again.

        Args:
            right: how many of each segment with drafts, in their order.
        """
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


class Guess(NamedTuple):
    """What the rows of sequences with drafts bring into the matrices of a layer."""

    y: Tensor  # [rows, channels] float32, after the convolution
    decay: Tensor  # [rows, heads] float32
    beta: Tensor  # the same


@dataclass(slots=True)
class Drafted:
    """What a step keeps of its sequences with drafts, whose rows follow each other.

    That is a row in every layer for each of their tokens. A state after each of them, of which one could be
    chosen afterwards, would be some forty times as much, and would have to be written.
    """

    rows: slice  # of the step
    firsts: list[int]  # which of these are the first drafts of each sequence
    states: list[int]  # of each, the number of its state, which the token before its drafts left
    # of each layer, until they are adopted
    inputs: dict[int, Tensor] = field(default_factory=dict)  # `[rows, channels]`, as in `Recur`
    layers: dict[int, Guess] = field(default_factory=dict)  # none, where it is a convolution alone

    @classmethod
    def of(cls, segments: Sequence[Segment], group: int) -> Drafted | None:
        """None: there are no drafts. For `group` see `states_of`."""
        segments = [segment for segment in segments if segment.drafts]
        if not segments:
            return None
        start = segments[0].rows.start
        firsts = [segment.rows.stop - segment.drafts - start for segment in segments]
        states = [segment.slot.tables[group][(segment.end - 1) // PAGE_SIZE] for segment in segments]
        return cls(slice(start, segments[-1].rows.stop), firsts, states)

    def keep(self, layer: int, mixed: Tensor, y: Tensor, decay: Tensor, beta: Tensor) -> None:
        """Of a step's rows, these. `y` has no others."""
        self.keep_inputs(layer, mixed)
        rows = y, decay[self.rows], beta[self.rows]
        self.layers[layer] = Guess(*(each.clone(memory_format=torch.contiguous_format) for each in rows))

    def keep_inputs(self, layer: int, x: Tensor) -> None:
        """What the rows of a step bring into its convolution."""
        self.inputs[layer] = x[self.rows].clone(memory_format=torch.contiguous_format)


class Weights(NamedTuple):
    """What a layer has for all tokens, in float32."""

    convolution: Tensor  # [channels, kernel]
    bias: Tensor | None  # [channels], of that
    skip: Tensor | None  # [heads, 1]


@dataclass(slots=True)
class StateStep:
    """A step, as all layers with a state see it: sequences with one token, with drafts, and others."""

    read: Tensor  # [sequences] int64: the states that their tokens begin with
    written: Tensor  # the same: where the states after their tokens go
    num_decode: int  # sequences with one token
    checked: list[slice]  # rows of the step, of each of those with drafts
    chunks: list[slice]  # the same, of each of the others
    places: list[tuple[int, int]]  # what `read` and `written` say, for a CPU, which need not copy
    guesses: Drafted | None


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
        self._rule = rule_of(cache.shape)
        self.sizes = {"states_read": max_segments, "states_written": max_segments}
        self._guesses: Drafted | None = None  # of the last step that had some

    def arrays(self, segments: Sequence[Segment]) -> dict[str, array[int]]:
        """Which state each sequence begins with, and which it leaves."""
        read, written = states_of(segments, self._group, self.cache.zero)
        return {"states_read": read, "states_written": written}

    def prepare(self, segments: Sequence[Segment], tensors: dict[str, Tensor]) -> StateStep:
        """Of the same segments, and their arrays on the device."""
        several = [segment for segment in segments if len(segment.rows) > 1]
        arrays = self.arrays(segments).values() if tensors["states_read"].device.type == "cpu" else ((), ())
        self._guesses = Drafted.of(several, self._group)
        return StateStep(
            tensors["states_read"],
            tensors["states_written"],
            len(segments) - len(several),
            [slice(each.rows.start, each.rows.stop) for each in several if each.drafts],
            [slice(each.rows.start, each.rows.stop) for each in several if not each.drafts],
            list(zip(*arrays, strict=True)),
            self._guesses,
        )

    def run(
        self,
        prepared: StateStep,
        layer: int,
        mixed: Tensor,
        weight: Tensor,
        decay: Tensor,
        beta: Tensor,
        bias: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> Tensor:  # [tokens, heads, value_dim] float32
        """One layer, of all sequences."""
        mixed, single = mixed.float(), prepared.num_decode
        weights = Weights(
            weight.float(), None if bias is None else bias.float(), None if skip is None else skip[:, None]
        )
        out = mixed.new_empty(len(mixed), *self.cache.shape.results)
        convolved, number = [], 0
        if single and not self._exact:
            given = mixed[:single], weights, decay[:single], beta[:single]
            out[:single] = self._decode(prepared, layer, *given)
            number = single
        alone = [slice(row, row + 1) for row in range(number, single)]
        for part in (*alone, *prepared.checked, *prepared.chunks):
            places = prepared.read[number : number + 1], prepared.written[number : number + 1]
            given = places, layer, mixed[part], weights, decay[part], beta[part], out[part]
            if single <= number < single + len(prepared.checked):
                self._one_by_one(*given, convolved)
            elif self._exact:
                self._one_by_one(*given)
            else:
                self._chunk(*given)
            number += 1
        if prepared.guesses is not None:
            prepared.guesses.keep(layer, mixed, torch.cat(convolved), decay, beta)
        return out

    def adopt(self, right: Sequence[int]) -> None:
        """Draft after draft, as a step takes them."""
        guesses = self._guesses
        states = torch.tensor(guesses.states, device=self.cache.device)
        drafts = [slice(first, first + count) for first, count in zip(guesses.firsts, right, strict=True)]
        for layer, mixed in [*guesses.inputs.items()]:
            kept = self.cache.inputs[layer]
            after = [
                torch.cat((before, mixed[rows]))[rows.stop - rows.start :]
                for before, rows in zip(kept[states], drafts, strict=True)
            ]
            kept[states] = torch.stack(after)
            del guesses.inputs[layer]
        for layer, (y, decay, beta) in [*guesses.layers.items()]:
            matrices = self.cache.matrices[layer][states]
            for state, rows in zip(matrices.split(1), drafts, strict=True):
                for row in range(rows.start, rows.stop):
                    token = slice(row, row + 1)
                    self._rule.recur(state, y[token], decay[token], beta[token])
            self.cache.matrices[layer][states] = matrices
            del guesses.layers[layer]

    def _decode(
        self, step: StateStep, layer: int, mixed: Tensor, weights: Weights, decay: Tensor, beta: Tensor
    ) -> Tensor:
        """One token of each sequence, all at once."""
        read, written = step.read[: len(mixed)], step.written[: len(mixed)]
        inputs, matrices = self.cache.inputs[layer], self.cache.matrices[layer]
        y, after = convolve_each(mixed, inputs[read], weights.convolution, weights.bias)
        inputs[written] = after
        if step.places and len(mixed) == 1 and step.places[0][0] == step.places[0][1]:
            place = step.places[0][0]
            return self._recur(matrices[place : place + 1], y, decay, beta, weights)
        state = matrices[read]
        found = self._recur(state, y, decay, beta, weights)
        matrices[written] = state
        return found

    def _recur(self, state: Tensor, y: Tensor, decay: Tensor, beta: Tensor, weights: Weights) -> Tensor:
        found = self._rule.recur(state, y, decay, beta)
        return found if weights.skip is None else found.addcmul_(self._rule.inputs(y), weights.skip)

    def _chunk(
        self,
        places: tuple[Tensor, Tensor],  # [1] int64 each
        layer: int,
        mixed: Tensor,
        weights: Weights,
        decay: Tensor,
        beta: Tensor,
        out: Tensor,
    ) -> None:
        """Tokens of one sequence, many at once; `out` takes what they read."""
        read, written = places
        inputs, matrices = self.cache.inputs[layer], self.cache.matrices[layer]
        before, state, block = inputs[read][0], matrices[read][0], BLOCK[mixed.device.type]
        for start in range(0, len(mixed), block):  # all of one stays in a CPU's cache
            part = slice(start, start + block)
            y, before = convolve(mixed[part], before, weights.convolution, weights.bias)
            self._rule.chunked(state, y, decay[part], beta[part], out[part])
            if weights.skip is not None:
                out[part].addcmul_(self._rule.inputs(y), weights.skip)
            del y  # not to be there while the next block's are made
        inputs[written], matrices[written] = before, state

    def _one_by_one(
        self,
        places: tuple[Tensor, Tensor],  # [1] int64 each
        layer: int,
        mixed: Tensor,
        weights: Weights,
        decay: Tensor,
        beta: Tensor,
        out: Tensor,
        convolved: list[Tensor] | None = None,
    ) -> None:
        """Tokens of one sequence, one after the other; `out` takes what they read.

        Args:
            convolved: where they are one and its drafts: takes what comes out of the convolution.
        """
        read, written = places
        inputs, matrices = self.cache.inputs[layer], self.cache.matrices[layer]
        before, state = inputs[read], matrices[read]
        last = len(mixed) - 1 if convolved is None else 0
        for row in range(len(mixed)):
            token = slice(row, row + 1)
            y, before = convolve_each(mixed[token], before, weights.convolution, weights.bias)
            out[token] = self._recur(state, y, decay[token], beta[token], weights)
            if convolved is not None:
                convolved.append(y)
            if row == last:
                inputs[written], matrices[written] = before, state
