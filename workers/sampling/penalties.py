"""Penalties for what a sequence has in it already."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ipc.worker_messages import SamplingParams
from workers.sampling.inputs import sent


class NGrams:
    """Which tokens would repeat a run of `size` tokens that a sequence has in it already."""

    def __init__(self, size: int, tokens: Iterable[int]) -> None:
        self._followers: dict[tuple[int, ...], set[int]] = {}  # by the `size - 1` tokens before
        self._last: deque[int] = deque(maxlen=size - 1)
        self._short = size - 1  # tokens until the first run is complete
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        """The sequence goes on with a token."""
        if self._short:
            self._short -= 1
        else:
            self._followers.setdefault(tuple(self._last), set()).add(token)
        self._last.append(token)

    def repeating(self) -> Iterable[int]:
        """The tokens that may not come next."""
        return () if self._short else self._followers.get(tuple(self._last), ())


class Penalties:
    """How often each token stands in the sequences that are penalised, and what that does to their logits.

    The repetition penalty (Keskar et al. 2019) divides a positive logit and multiplies a negative one, of all
    tokens in prompt and output. From the others' logits the frequency penalty takes its value once for each
    time that the output has the token, and the presence penalty takes its value once.

    Args:
        vocab_size: columns of the logits.
        block_rows: of logits that are changed at once.
    """

    def __init__(self, vocab_size: int, device: torch.device, block_rows: int) -> None:
        self._device, self._block_rows = device, block_rows
        self._places: dict[int, int] = {}  # slot -> row of the tensors below
        self._given: dict[int, tuple[float, float, float]] = {}  # slot -> its row of the last one
        self._free: list[int] = []
        self._counts = torch.zeros(0, vocab_size, dtype=torch.int16, device=device)  # in the output
        self._seen = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)  # in prompt or output
        self._strengths = torch.zeros(0, 3, device=device)  # repetition, presence, frequency

    def __contains__(self, slot: int) -> bool:
        return slot in self._places

    def add(self, slot: int, params: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> None:
        """A sequence enters; one without penalties is not kept."""
        strengths = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
        if strengths == (1.0, 0.0, 0.0):
            return
        if not self._free:
            self._grow()
        place = self._places[slot] = self._free.pop()
        self._given[slot] = strengths
        self._strengths[place] = sent(strengths, self._device, torch.float32)
        self._counts[place] = 0
        self._seen[place] = False
        written = self._index(list(output))
        ones = torch.ones_like(written, dtype=torch.int16)
        self._counts[place].index_add_(0, written, ones)
        self._seen[place, written] = True
        self._seen[place, self._index(list(prompt))] = True

    def expect(self, sequences: int) -> None:
        """Have room for so many, which stays."""
        while len(self._counts) < sequences:
            self._grow()

    @property
    def nbytes(self) -> int:
        return self._counts.nbytes + self._seen.nbytes + self._strengths.nbytes

    def remove(self, slot: int) -> None:
        """A sequence left, penalised or not."""
        if (place := self._places.pop(slot, None)) is not None:
            self._free.append(place)
            del self._given[slot]

    def apply(self, logits: Tensor, slots: list[int]) -> None:  # [rows, vocabulary], changed in place
        """Penalise the rows, which belong to `slots`."""
        rows = [row for row, slot in enumerate(slots) if slot in self._places]
        for start in range(0, len(rows), self._block_rows):
            block = rows[start : start + self._block_rows]
            index = self._index(block)
            logits[index] = self._penalised(logits[index], [slots[row] for row in block])

    def _penalised(self, logits: Tensor, slots: list[int]) -> Tensor:  # [slots, vocabulary]
        """The logits as the settings change them."""
        places = self._index([self._places[slot] for slot in slots])
        repetition, presence, frequency = self._strengths[places].unsqueeze(2).unbind(1)  # each [slots, 1]
        if any(self._given[slot][0] != 1 for slot in slots):
            repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
            logits = torch.where(self._seen[places], repeated, logits)
        if any(self._given[slot][1:] != (0, 0) for slot in slots):
            counts = self._counts[places].float()
            logits -= presence * (counts > 0)
            logits -= counts.mul_(frequency)
        return logits

    def record(self, slots: list[int], tokens: Tensor) -> None:  # [slots] int64
        """Each of these sequences goes on with a token, where it is one: below 0 is none."""
        rows = [row for row, slot in enumerate(slots) if slot in self._places]
        if not rows:
            return
        places = self._index([self._places[slots[row]] for row in rows])
        written = tokens if len(rows) == len(slots) else tokens[self._index(rows)]
        there, written = written >= 0, written.clamp(min=0)
        self._counts[places, written] += there  # no sequence stands in a step twice
        self._seen[places, written] |= there

    def _grow(self) -> None:
        """Make room for as many again."""
        size = len(self._counts)
        more = max(4, size)
        self._counts, self._seen, self._strengths = (
            torch.cat([held, held.new_zeros(more, held.shape[1])])
            for held in (self._counts, self._seen, self._strengths)
        )
        self._free += range(size, size + more)

    def _index(self, values: list[int]) -> Tensor:
        return sent(values, self._device)
