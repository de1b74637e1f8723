"""From logits to tokens, for a batch of sequences that each want it another way.

In this order: penalties, logit bias, what is forbidden (allowed ids, bad words, repeated runs, stop ids
before `min_tokens`, the grammar's mask), temperature, top-k, top-p, min-p, and one draw.

A token depends on its own logits, its settings, its seed and its place in the sequence, and on nothing else:
not on the other sequences of the batch. So a preempted sequence goes on as if nothing had happened. Of equal
logits, of which bfloat16 makes many, the lower token id comes first.

The host waits for the device once, for the tokens and what is told with them, and need not do so at once:
`launch` has them chosen, and counted for penalties, so that the next can be chosen before these are known. On
a CPU, where a look at a number costs nothing, less is computed: no more logits are sorted than turn out to be
needed.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ipc.worker_messages import SamplingParams
from workers.sampling.draws import FEW, FILTERED, PLAIN, draw_filtered, draw_plain, highest, there
from workers.sampling.edits import add_biases, forbid
from workers.sampling.inputs import Wishes, fetched, sent, wish
from workers.sampling.logprobs import measured
from workers.sampling.penalties import NGrams, Penalties
from workers.sampling.sampled import Launched, Sampled, outcome
from workers.sampling.slot import SamplingSlot

CANDIDATES = 1024  # sorted for top-p and min-p if FEW do not hold enough; then 32 times as many, then all
# Logits of the rows that are drawn at once: what is computed for whole vocabularies is big. On a CPU a tensor
# over 32 MB is new memory each time, which costs more than its use.
BLOCK_LOGITS = {"cpu": 5 << 18, "cuda": 5 << 20}
GREEDY = SamplingParams(0.0)
NO_DRAFTS: Mapping[int, Sequence[int]] = {}


class Sampler:
    """Chooses the next token of each sequence, by slot.

    Args:
        vocab_size: columns of the logits.
        device: where they are.

    Attributes:
        block_rows: of logits that are drawn from at once.
        looks: it looks at numbers on the way to its tokens.
    """

    def __init__(self, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self._vocab_size, self._device = vocab_size, torch.device(device)
        self.block_rows = max(1, BLOCK_LOGITS[self._device.type] // vocab_size)
        self.looks = self._device.type == "cpu"
        self._slots: dict[int, SamplingSlot] = {}
        self._penalties = Penalties(vocab_size, self._device, self.block_rows)

    def add(
        self, slot: int, params: SamplingParams, prompt: Sequence[int], output: Sequence[int] = ()
    ) -> None:
        """A sequence enters. `output` is what it wrote before a preemption."""
        allowed = None
        if params.allowed_token_ids:
            allowed = torch.zeros(self._vocab_size, dtype=torch.bool, device=self._device)
            allowed[self._tensor(params.allowed_token_ids)] = True
        bias = (list(params.logit_bias), list(params.logit_bias.values()))
        ngrams = NGrams(params.no_repeat_ngram, chain(prompt, output)) if params.no_repeat_ngram else None
        length = len(prompt) + len(output)
        self._slots[slot] = SamplingSlot(params, len(prompt), length, list(output), allowed, bias, ngrams)
        self._penalties.add(slot, params, prompt, output)

    def expect(self, sequences: int) -> None:
        """Have the memory that so many take which are penalised."""
        self._penalties.expect(sequences)

    @property
    def nbytes(self) -> int:
        """Bytes that it keeps from one step to the next."""
        return self._penalties.nbytes

    def remove(self, slot: int) -> None:
        """A sequence left, or an `add` of it failed."""
        self._slots.pop(slot, None)
        self._penalties.remove(slot)

    def sample(self, logits: Tensor, slots: list[int], bitmask: Tensor | None = None) -> Sampled:
        """Choose a token for each row, and remember it; for the arguments see `launch`."""
        return self.launch(logits, slots, bitmask).result()

    def launch(
        self,
        logits: Tensor,
        slots: list[int],
        bitmask: Tensor | None = None,
        drafts: Mapping[int, Sequence[int]] = NO_DRAFTS,
        made: Tensor | None = None,
        then: Callable[[Tensor], object] | None = None,
    ) -> Launched:
        """Let a token be chosen for each row.

        Args:
            logits: `[rows, vocabulary]` float32; used up.
            slots: one a row. One with drafts stands in as many rows more, which follow each other.
            bitmask: `[rows, ceil(vocabulary / 32)]` int32 on the CPU, what the grammars allow: bit i of word
                w stands for token 32 w + i.
            drafts: what the rows behind the first one of a slot take for the tokens before them. What is
                sampled there is the sequence's own as long as they are right, and is not told otherwise.
                Only of sequences without penalties, a grammar, and what else looks at the tokens before.
            made: `[drafts]` int64, the drafts in the order of the rows, where only the device knows them.
            then: is given the tokens before they count: if it fails, nothing was sampled.
        """
        rows = self._rows(slots, drafts)
        asking = [row for row, slot in enumerate(rows) if slot.params.logprobs is not None]
        edited = bitmask is not None or any(slot in self._penalties for slot in slots)
        if asking and (edited or any(slot.edited for slot in rows)):
            plain = logits[self._tensor(asking)]  # a copy, before anything is changed
        else:
            plain = self._take(logits, asking)
        self._penalties.apply(logits, slots)
        add_biases(logits, rows)
        forbid(logits, rows, bitmask)
        most, tokens = highest(logits)
        self._draw(logits, rows, tokens)
        chosen = there(most, tokens)
        result = self._collect(chosen, plain, asking, rows, bool(drafts), made)
        if then is not None:
            then(chosen)
        # last, when memory cannot run out any more: then nothing was sampled
        self._penalties.record(slots, chosen)
        for slot in rows:
            slot.length += 1
        ahead = not drafts and bitmask is None and not any(slot.looks_back for slot in rows)
        return Launched(chosen, ahead, result)

    def _rows(self, slots: list[int], drafts: Mapping[int, Sequence[int]]) -> list[SamplingSlot]:
        """What each row is sampled by: a sequence, or one as it is if its drafts are right so far."""
        if not drafts:
            return [self._slots[slot] for slot in slots]
        rows: list[SamplingSlot] = []
        for number in dict.fromkeys(slots):
            slot = self._slots[number]
            rows.append(slot)
            for place, draft in enumerate(drafts.get(number, ()), slot.length + 1):
                rows.append(replace(slot, length=place, behind=draft))
        return rows

    def ways(self, slots: list[int]) -> int | None:
        """How these are drawn (`draws.choose`); None: not without their logits being changed, or told of."""
        found = 0
        for number in slots:
            slot = self._slots[number]
            params = slot.params
            if params.logprobs is not None or number in self._penalties or slot.edited:
                return None
            if params.temperature and slot.filtered:
                if not 0 < params.top_k <= FEW:
                    return None
                found |= FILTERED
            elif params.temperature:
                found |= PLAIN
        return found

    def wishes(self, slots: list[int], rows: int) -> array[float]:
        """For `Wishes.of`, of these and of so many rows in all; the others are greedy."""
        found = [self._wish(self._slots[number]) for number in slots]
        found += [wish(GREEDY, 0, self._vocab_size)] * (rows - len(slots))
        return array("d", chain(*zip(*found, strict=True)))

    def chosen(self, tokens: Tensor, slots: list[int]) -> Launched:
        """Tokens that were chosen elsewhere, by `draws.choose`.

        Args:
            tokens: `[len(slots)]` int64.
        """
        rows = [self._slots[slot] for slot in slots]
        result = partial(outcome, rows, fetched(tokens))
        for slot in rows:
            slot.length += 1
        return Launched(tokens, True, result)

    def _collect(
        self,
        chosen: Tensor,
        plain: Tensor,
        asking: list[int],
        rows: list[SamplingSlot],
        drafted: bool,
        made: Tensor | None,
    ) -> Callable[[], Sampled]:
        """What waits for the tokens, and for the log-probabilities of the rows that ask.

        Args:
            chosen: `[rows]` int64.
            plain: `[asking, vocabulary]`, the logits of these rows as they were.
        """
        count, tokens = 0 if made is None else len(made), chosen
        if made is not None:
            tokens = torch.cat((chosen, made))
        if not asking:
            return partial(outcome, rows, fetched(tokens), drafted=drafted, made=count)
        most, found = max(rows[row].params.logprobs for row in asking), [tokens.double()]
        for block in self._blocks([*enumerate(asking)]):
            places, numbers = (list(column) for column in zip(*block, strict=True))
            tokens = chosen[self._tensor(numbers)].clamp_(min=0)
            found.append(measured(self._take(plain, places), tokens, most, self.looks).flatten())
        return partial(outcome, rows, fetched(torch.cat(found)), asking, drafted, count)

    def _draw(self, logits: Tensor, rows: list[SamplingSlot], tokens: Tensor) -> None:
        """Replace the tokens of the rows that are not greedy."""
        drawn = [row for row, slot in enumerate(rows) if slot.params.temperature]
        for block in self._blocks([row for row in drawn if not rows[row].filtered]):
            wishes = self._wishes([rows[row] for row in block])
            tokens[self._tensor(block)] = draw_plain(self._take(logits, block), wishes)
        left = [row for row in drawn if rows[row].filtered]
        for candidates in (FEW, CANDIDATES, 32 * CANDIDATES, self._vocab_size):
            count = min(candidates, self._vocab_size)
            wide = [row for row in left if count < self._least(rows[row].params)]
            for block in self._blocks(sorted(set(left).difference(wide))):
                drawn = [rows[row] for row in block]
                whole = any(each.params.top_p < 1 and not each.params.top_k for each in drawn)
                found, enough = draw_filtered(
                    self._take(logits, block), self._wishes(drawn), count, whole, self.looks
                )
                tokens[self._tensor(block)] = found
                if self.looks:
                    wide += [row for row, done in zip(block, enough.tolist(), strict=True) if not done]
            left = wide

    def _wishes(self, slots: list[SamplingSlot]) -> Wishes:
        rows = [self._wish(slot) for slot in slots]
        return Wishes.of(sent([*chain(*zip(*rows, strict=True))], self._device, torch.float64))

    def _wish(self, slot: SamplingSlot) -> tuple[float, ...]:
        return wish(slot.params, slot.length, self._vocab_size)

    def _least(self, params: SamplingParams) -> int:
        """Logits to sort that may be enough; where nobody looks whether they were, that are enough."""
        return min(params.top_k or (0 if self.looks else self._vocab_size), self._vocab_size)

    def _blocks(self, rows: list[Any]) -> Iterator[list[Any]]:
        return (rows[start : start + self.block_rows] for start in range(0, len(rows), self.block_rows))

    def _take(self, logits: Tensor, rows: list[int]) -> Tensor:  # [len(rows), vocabulary]
        """Some rows, in ascending order: not a copy where they follow each other."""
        if rows and rows[-1] - rows[0] == len(rows) - 1:
            return logits[rows[0] : rows[-1] + 1]
        return logits[self._tensor(rows)]

    def _tensor(self, values: list[int]) -> Tensor:
        return sent(values, self._device)
