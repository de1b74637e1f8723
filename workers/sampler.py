"""From logits to tokens, for a batch of sequences that each want it another way.

In this order: penalties, logit bias, what is forbidden (allowed ids, bad words, stop ids before `min_tokens`,
the grammar's mask), temperature, top-k, top-p, min-p, and one draw.

A token depends on its own logits, its settings, its seed and its place in the sequence, and on nothing else:
not on the other sequences of the batch, nor on the rank. So every rank draws the same one, and a preempted
sequence goes on as if nothing had happened. Of equal logits, of which bfloat16 makes many, the lower token id
comes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ipc.worker_messages import Logprobs, SamplingParams
from workers.logprobs import logprobs
from workers.penalties import Penalties

CANDIDATES = 1024  # sorted first for top-p and min-p; the whole vocabulary only if these do not hold enough
BLOCK_ROWS = 32  # drawn at once: float64 sums over a large vocabulary are big
MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio


@dataclass(slots=True)
class Sampled:
    """What was chosen."""

    tokens: list[int]  # one a row; -1 where nothing is allowed, or a logit is not finite
    logprobs: dict[int, Logprobs] = field(default_factory=dict)  # by row, where they were asked for


@dataclass(slots=True)
class _Slot:
    """A sequence: how it wants to be sampled, and what of its past matters for that."""

    params: SamplingParams
    length: int  # tokens, prompt included: the place of the next one
    output: list[int]
    allowed: Tensor | None  # [vocabulary] bool
    bias: tuple[list[int], list[float]]  # ids and values

    def forbidden(self) -> Iterator[int]:
        """Last tokens of bad words whose other tokens were just written."""
        for word in self.params.bad_words:
            before = len(word) - 1
            if not before or self.output[-before:] == word[:-1]:
                yield word[-1]

    @property
    def too_short(self) -> bool:
        """Whether it may not end yet."""
        return len(self.output) < self.params.min_tokens

    @property
    def filtered(self) -> bool:
        params = self.params
        return bool(params.top_k) or params.top_p < 1 or params.min_p > 0


class Sampler:
    """Chooses the next token of each sequence, by slot.

    Args:
        vocab_size: columns of the logits.
        device: where they are.
    """

    def __init__(self, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self._vocab_size, self._device = vocab_size, torch.device(device)
        self._slots: dict[int, _Slot] = {}
        self._penalties = Penalties(vocab_size, self._device)

    def add(
        self, slot: int, params: SamplingParams, prompt: Sequence[int], output: Sequence[int] = ()
    ) -> None:
        """A sequence enters. `output` is what it wrote before a preemption."""
        allowed = None
        if params.allowed_token_ids:
            allowed = torch.zeros(self._vocab_size, dtype=torch.bool, device=self._device)
            allowed[torch.tensor(params.allowed_token_ids, device=self._device)] = True
        bias = (list(params.logit_bias), list(params.logit_bias.values()))
        self._slots[slot] = _Slot(params, len(prompt) + len(output), list(output), allowed, bias)
        self._penalties.add(slot, params, prompt, output)

    def remove(self, slot: int) -> None:
        """A sequence left."""
        del self._slots[slot]
        self._penalties.remove(slot)

    def sample(self, logits: Tensor, slots: list[int], bitmask: Tensor | None = None) -> Sampled:
        """Choose a token for each row, and remember it.

        Args:
            logits: `[rows, vocabulary]` float32; used up.
            slots: one a row.
            bitmask: `[rows, ceil(vocabulary / 32)]` int32 on the CPU, what the grammars allow: bit i of word
                w stands for token 32 w + i.
        """
        rows = [self._slots[slot] for slot in slots]
        asking = [row for row, slot in enumerate(rows) if slot.params.logprobs is not None]
        plain = logits[self._tensor(asking)] if asking else logits  # a copy, before anything is changed
        self._penalties.apply(logits, slots)
        self._bias(logits, rows)
        self._forbid(logits, rows, bitmask)
        highest, tokens = logits.max(dim=-1)
        for filtered, choose in ((False, _draw), (True, _draw_filtered)):
            chosen = [
                row for row, slot in enumerate(rows) if slot.params.temperature and slot.filtered == filtered
            ]
            for start in range(0, len(chosen), BLOCK_ROWS):
                block = chosen[start : start + BLOCK_ROWS]
                index = self._tensor(block)
                tokens[index] = choose(logits[index], [rows[row] for row in block])
        ids = torch.where(highest.isfinite(), tokens, -1).tolist()
        sampled = Sampled(ids)
        if told := [(place, row) for place, row in enumerate(asking) if ids[row] >= 0]:
            asked = logprobs(
                plain[self._tensor([place for place, _ in told])],
                [ids[row] for _, row in told],
                [rows[row].params.logprobs for _, row in told],
            )
            sampled.logprobs.update((row, entry) for (_, row), entry in zip(told, asked, strict=True))
        # last, when memory cannot run out any more: then nothing was sampled
        self._penalties.record(slots, ids)
        for slot, token in zip(rows, ids, strict=True):
            if token >= 0:
                slot.length += 1
                slot.output.append(token)
        return sampled

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
            added = torch.tensor(values, device=self._device)
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

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


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


def _only(words: Tensor, stop_ids: list[int]) -> bool:
    """Whether a mask (`[words]` int32) allows nothing besides `stop_ids`."""
    left = words.clone()
    for token in stop_ids:
        left[token // 32] &= ~(1 << token % 32) if token % 32 < 31 else 0x7FFFFFFF
    return not bool(left.any())


def _draw(logits: Tensor, slots: list[_Slot]) -> Tensor:  # [rows, vocabulary] -> [rows] int64
    """One point on the line of all probabilities, in the order of the vocabulary."""
    logits = logits / _column([slot.params.temperature for slot in slots], logits.device).float()
    # in float64 the sum over a large vocabulary is exact enough for its smallest probabilities
    sums = torch.softmax(logits, dim=-1).cumsum(dim=-1, dtype=torch.float64)
    point = _points(slots, logits.device) * sums[:, -1:]
    return torch.searchsorted(sums, point, right=True).squeeze(1).clamp_(max=logits.shape[1] - 1)


def _draw_filtered(logits: Tensor, slots: list[_Slot]) -> Tensor:  # [rows, vocabulary] -> [rows] int64
    """One point on the line of the kept probabilities, in descending order.

    Only the largest logits are sorted, and only their values count: a rank is drawn first, then the token is
    looked up that has its value. The order in which a sort leaves equal values thus never matters.
    """
    device, vocabulary = logits.device, logits.shape[1]
    params = [slot.params for slot in slots]
    temperature = _column([each.temperature for each in params], device)
    top_k = _column([min(each.top_k or vocabulary, vocabulary) for each in params], device)
    top_p = _column([each.top_p for each in params], device)
    min_p = _column([each.min_p for each in params], device)
    most = max(each.top_k for each in params)
    if not all(each.top_k for each in params):
        most = max(most, CANDIDATES)
    for count in (min(most, vocabulary), vocabulary):
        values, ids = logits.topk(count, dim=-1)  # [rows, count]
        # relative to the most probable token: 1 is as probable
        weights = ((values - values[:, :1]) / temperature).exp()
        weights.masked_fill_(torch.arange(count, device=device) >= top_k, 0.0)
        sums = weights.cumsum(dim=-1)
        everything = (
            ((logits - values[:, :1]) / temperature.float()).exp_().sum(-1, True, dtype=torch.float64)
        )
        mass = top_p * torch.where(top_k <= count, sums[:, -1:], everything)
        enough = (top_k <= count) | (top_p < 1) & (sums[:, -1:] >= mass) | (weights[:, -1:] < min_p)
        if count == vocabulary or bool(enough.all()):
            break
    last = (sums < mass).sum(dim=-1, keepdim=True).clamp_(max=count - 1)  # the rank that completes the mass
    last = last.minimum((weights >= min_p).logical_and_(weights > 0).sum(dim=-1, keepdim=True) - 1).clamp_(
        min=0
    )
    point = _points(slots, device) * sums.gather(1, last)
    rank = (sums <= point).sum(dim=-1, keepdim=True).minimum(last)
    value = values.gather(1, rank)
    tokens = ids.gather(1, rank)
    equal = values == value
    tied = ((equal.sum(dim=-1, keepdim=True) > 1) | (value == values[:, -1:])).flatten()
    for row in tied.nonzero().flatten().tolist():
        before = int((values[row] > value[row]).sum())
        tokens[row] = (logits[row] == value[row]).nonzero()[int(rank[row]) - before]
    return tokens.squeeze(1)


def _points(slots: list[_Slot], device: torch.device) -> Tensor:  # [rows, 1] float64, in [0, 1)
    return _column([uniform(slot.params.seed, slot.length) for slot in slots], device)


def _column(values: list[float], device: torch.device) -> Tensor:  # [len(values), 1] float64
    return torch.tensor(values, dtype=torch.float64, device=device).unsqueeze(1)
