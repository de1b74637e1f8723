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
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ipc.worker_messages import Logprobs, SamplingParams
from workers.sampling.draws import (
    BROKEN,
    FEW,
    FILTERED,
    NOTHING,
    PLAIN,
    draw_filtered,
    draw_plain,
    highest,
    there,
)
from workers.sampling.inputs import Wishes, fetched, sent
from workers.sampling.logprobs import measured, named
from workers.sampling.penalties import NGrams, Penalties
from workers.step.plan import UNKNOWN

CANDIDATES = 1024  # sorted for top-p and min-p if FEW do not hold enough; then 32 times as many, then all
# Logits of the rows that are drawn at once: what is computed for whole vocabularies is big. On a CPU a tensor
# over 32 MB is new memory each time, which costs more than its use.
BLOCK_LOGITS = {"cpu": 5 << 18, "cuda": 5 << 20}
GREEDY = SamplingParams(0.0)
MASK = (1 << 64) - 1
NO_DRAFTS: Mapping[int, Sequence[int]] = {}
GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio


@dataclass(slots=True)
class Sampled:
    """What was chosen."""

    tokens: list[int]  # one a row that counts; -1 where nothing is allowed, or a logit is not finite
    broken: set[int] = field(default_factory=set)  # of those without a token, those of the latter kind
    logprobs: dict[int, Logprobs] = field(default_factory=dict)  # by index, where they were asked for
    drafts: list[int] = field(default_factory=list)  # that only the device knew


@dataclass(slots=True)
class Launched:
    """What is being chosen."""

    tokens: Tensor  # [rows] int64, where the logits are; below 0: none (`NOTHING`, `BROKEN`)
    ahead: bool  # the next tokens of these sequences can be chosen before these are known
    result: Callable[[], Sampled]  # waits for them; to be called once


@dataclass(slots=True)
class _Slot:
    """A sequence: how it wants to be sampled, and what of its past matters for that."""

    params: SamplingParams
    prompt_len: int
    length: int  # tokens, prompt included: the place of the next one
    output: list[int]  # as far as it is known
    allowed: Tensor | None  # [vocabulary] bool
    bias: tuple[list[int], list[float]]  # ids and values
    ngrams: NGrams | None  # of prompt and output, where none may come twice
    behind: int | None = None  # the draft before it, if this is not a sequence but a place behind a draft

    def forbidden(self) -> Iterator[int]:
        """What may not come next: the ends of bad words, of runs that were there, and what begins nothing."""
        for word in self.params.bad_words:
            before = len(word) - 1
            if not before or self.output[-before:] == word[:-1]:
                yield word[-1]
        if self.length == self.prompt_len:
            yield from self.params.begin_suppress_ids
        if self.ngrams is not None:
            yield from self.ngrams.repeating()

    def push(self, token: int) -> None:
        """It is known with which token it goes on."""
        self.output.append(token)
        if self.ngrams is not None:
            self.ngrams.push(token)

    @property
    def looks_back(self) -> bool:
        """Whether what comes next depends on tokens that have to be known."""
        return self.ngrams is not None or any(len(word) > 1 for word in self.params.bad_words)

    @property
    def too_short(self) -> bool:
        """Whether it may not end yet."""
        return self.length - self.prompt_len < self.params.min_tokens

    @property
    def edited(self) -> bool:
        """Whether its logits may change, penalties and grammar aside."""
        params = self.params
        return bool(
            params.logit_bias
            or params.allowed_token_ids
            or params.bad_words
            or self.too_short
            or self.ngrams is not None
            or (params.begin_suppress_ids and self.length == self.prompt_len)
        )

    @property
    def filtered(self) -> bool:
        params = self.params
        return bool(params.top_k) or params.top_p < 1 or params.min_p > 0


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
        self._slots: dict[int, _Slot] = {}
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
        self._slots[slot] = _Slot(params, len(prompt), length, list(output), allowed, bias, ngrams)
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
        self._bias(logits, rows)
        self._forbid(logits, rows, bitmask)
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

    def _rows(self, slots: list[int], drafts: Mapping[int, Sequence[int]]) -> list[_Slot]:
        """What each row is sampled by: a sequence, or one as it is if its drafts are right so far."""
        if not drafts:
            return [self._slots[slot] for slot in slots]
        rows: list[_Slot] = []
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
        result = partial(_sampled, rows, fetched(tokens))
        for slot in rows:
            slot.length += 1
        return Launched(tokens, True, result)

    def _collect(
        self,
        chosen: Tensor,
        plain: Tensor,
        asking: list[int],
        rows: list[_Slot],
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
            return partial(_sampled, rows, fetched(tokens), drafted=drafted, made=count)
        most, found = max(rows[row].params.logprobs for row in asking), [tokens.double()]
        for block in self._blocks([*enumerate(asking)]):
            places, numbers = (list(column) for column in zip(*block, strict=True))
            tokens = chosen[self._tensor(numbers)].clamp_(min=0)
            found.append(measured(self._take(plain, places), tokens, most, self.looks).flatten())
        return partial(_sampled, rows, fetched(torch.cat(found)), asking, drafted, count)

    def _draw(self, logits: Tensor, rows: list[_Slot], tokens: Tensor) -> None:
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

    def _wishes(self, slots: list[_Slot]) -> Wishes:
        rows = [self._wish(slot) for slot in slots]
        return Wishes.of(sent([*chain(*zip(*rows, strict=True))], self._device, torch.float64))

    def _wish(self, slot: _Slot) -> tuple[float, ...]:
        return wish(slot.params, slot.length, self._vocab_size)

    def _least(self, params: SamplingParams) -> int:
        """Logits to sort that may be enough; where nobody looks whether they were, that are enough."""
        return min(params.top_k or (0 if self.looks else self._vocab_size), self._vocab_size)

    def _bias(self, logits: Tensor, rows: list[_Slot]) -> None:
        at: list[int] = []
        ids: list[int] = []
        values: list[float] = []
        for row, slot in enumerate(rows):
            if slot.bias[0]:
                at += [row] * len(slot.bias[0])
                ids += slot.bias[0]
                values += slot.bias[1]
        if at:
            added = sent(values, self._device, torch.float32)
            logits.index_put_((self._tensor(at), self._tensor(ids)), added, accumulate=True)

    def _forbid(self, logits: Tensor, rows: list[_Slot], bitmask: Tensor | None) -> None:
        """Set the logits of what may not come to minus infinity."""
        limited = [row for row, slot in enumerate(rows) if slot.allowed is not None]
        if limited:
            index = self._tensor(limited)
            allowed = torch.stack([rows[row].allowed for row in limited])
            logits[index] = logits[index].masked_fill(~allowed, -torch.inf)
        pairs = [(row, token) for row, slot in enumerate(rows) for token in slot.forbidden()]
        masked: set[int] = set()
        if bitmask is not None:
            masked = set((bitmask != -1).any(dim=1).nonzero().flatten().tolist())
            self._mask(logits, sorted(masked), bitmask)
        for row, slot in enumerate(rows):
            # a grammar that allows nothing but the end is at its end: no minimum can change that
            if slot.too_short and not (row in masked and _only(bitmask[row], slot.params.stop_ids)):
                pairs += [(row, token) for token in slot.params.stop_ids]
        if pairs:
            at, ids = (self._tensor(list(column)) for column in zip(*pairs, strict=True))
            logits[at, ids] = -torch.inf

    def _mask(self, logits: Tensor, rows: list[int], bitmask: Tensor) -> None:
        if not rows:
            return
        words = bitmask[torch.tensor(rows)].to(self._device, non_blocking=True)
        bits = torch.arange(32, dtype=torch.int32, device=self._device)
        allowed = (words.unsqueeze(2) >> bits & 1).flatten(1)[:, : self._vocab_size].bool()
        index = self._tensor(rows)
        logits[index] = logits[index].masked_fill(~allowed, -torch.inf)

    def _blocks(self, rows: list[Any]) -> Iterator[list[Any]]:
        return (rows[start : start + self.block_rows] for start in range(0, len(rows), self.block_rows))

    def _take(self, logits: Tensor, rows: list[int]) -> Tensor:  # [len(rows), vocabulary]
        """Some rows, in ascending order: not a copy where they follow each other."""
        if rows and rows[-1] - rows[0] == len(rows) - 1:
            return logits[rows[0] : rows[-1] + 1]
        return logits[self._tensor(rows)]

    def _tensor(self, values: list[int]) -> Tensor:
        return sent(values, self._device)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), the same for the same arguments anywhere: a counter-based generator.

    SplitMix64 (Steele et al. 2014) of the position, on a stream that is the seed's own.
    """
    return (_mix(_mix(seed + GOLDEN) + position * GOLDEN) >> 16) / (1 << 48)


def _mix(x: int) -> int:
    x &= MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def _kept(rows: list[_Slot], chosen: list[int]) -> dict[int, _Slot]:
    """The rows that count, in their order, and the sequences that they are of: those up to the first draft
    that is wrong.

    Where a row behind a draft is not finite, right or not, its keys and values may not be either, and what
    attends beside them, or will, may have taken that over: then the first row of its sequence is `BROKEN`.
    """
    if BROKEN in chosen:
        own = 0
        for row, slot in enumerate(rows):
            if slot.behind is None:
                own = row
            elif chosen[row] == BROKEN:
                chosen[own] = BROKEN
    kept: dict[int, _Slot] = {}
    sequence, last = rows[0], NOTHING  # the token of the row before, if that counts
    for row, slot in enumerate(rows):
        if slot.behind is None:
            sequence = slot
        elif slot.behind == last:
            sequence.length += 1
        else:
            last = NOTHING
            continue
        kept[row], last = sequence, chosen[row]
    return kept


def _learnt(rows: list[_Slot], drafts: list[float]) -> list[int]:
    """What the drafts turned out to be. One that ends its sequence, behind which nothing may count, is as
    good as a wrong one: the token itself is sampled before it."""
    known: list[int] = []
    for row, draft in zip((row for row in rows if row.behind is not None), drafts, strict=True):
        row.behind = UNKNOWN if draft in row.params.stop_ids else int(draft)
        known.append(row.behind)
    return known


def _sampled(
    rows: list[_Slot],
    fetch: Callable[[], list[float]],
    asking: Sequence[int] = (),
    drafted: bool = False,
    made: int = 0,
) -> Sampled:
    """What came of a launch; its sequences get to know their tokens, behind which some drafts are told."""
    told = fetch()
    drafts = _learnt(rows, told[len(rows) : len(rows) + made]) if made else []
    del told[len(rows) : len(rows) + made]
    tokens = told[: len(rows)] if not asking else [*map(int, told[: len(rows)])]
    slots, places = rows, range(len(rows))  # where in what counts each row stands
    if drafted:
        kept = _kept(rows, tokens)
        slots, places = list(kept.values()), {row: place for place, row in enumerate(kept)}
        tokens = [tokens[row] for row in kept]
    sampled = Sampled(tokens, drafts=drafts)
    for place, (slot, token) in enumerate(zip(slots, tokens, strict=True)):
        if token >= 0:
            slot.push(token)
        else:
            tokens[place] = -1
            if token == BROKEN:
                sampled.broken.add(place)
    if asking:
        width = (len(told) - len(rows)) // len(asking)
        for row, start in zip(asking, range(len(rows), len(told), width), strict=True):
            if row in places and (token := tokens[places[row]]) >= 0:
                entry = named(told[start : start + width], token, rows[row].params.logprobs)
                sampled.logprobs[places[row]] = entry
    return sampled


def wish(params: SamplingParams, length: int, vocabulary: int) -> tuple[float, float, float, float, float]:
    """What a row of `Wishes` has for a sequence of so many tokens; of one that is greedy little counts."""
    if not params.temperature:
        return 0.0, 0.0, 1.0, 0.0, 0.0
    top_k = min(params.top_k or vocabulary, vocabulary)
    return params.temperature, top_k, params.top_p, params.min_p, uniform(params.seed, length)


def _only(words: Tensor, stop_ids: list[int]) -> bool:
    """Whether a mask (`[words]` int32) allows nothing besides `stop_ids`."""
    left = words.clone()
    for token in stop_ids:
        left[token // 32] &= ~(1 << token % 32) if token % 32 < 31 else 0x7FFFFFFF
    return not bool(left.any())
