"""From logits to tokens: greedy, or one draw after temperature, top-k and top-p.

A token depends on its own logits, its settings, its seed and its position, and on nothing else: not on the
other requests of the batch, nor on the rank. So every rank draws the same one, and a preempted sequence goes
on as if nothing had happened. Filters are thresholds on the values, because the order of equal logits, of
which bfloat16 makes many, is not the same in a large top-k as in a small one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CANDIDATES = 1024  # sorted first for top-p; the whole vocabulary only if they do not hold enough
MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio


@dataclass(frozen=True, slots=True)
class Draw:
    """How one token is chosen."""

    temperature: float  # 0 is greedy
    top_k: int  # 0 is off
    top_p: float
    seed: int  # unsigned 64 bits
    position: int  # of the new token in its sequence


def sample(logits: Tensor, draws: list[Draw]) -> list[int]:
    """Choose one token per row of `logits` (`[rows, vocabulary]` float32)."""
    tokens = logits.argmax(dim=-1)
    rows = [row for row, draw in enumerate(draws) if draw.temperature > 0]
    if rows:
        index = torch.tensor(rows, device=logits.device)
        tokens[index] = _draw(logits[index], [draws[row] for row in rows])
    return tokens.tolist()


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


def _draw(logits: Tensor, draws: list[Draw]) -> Tensor:  # [rows, vocabulary] -> [rows] int64
    def column(values: list[float], dtype: torch.dtype) -> Tensor:  # [rows, 1]
        return torch.tensor(values, dtype=dtype, device=logits.device).unsqueeze(1)

    logits = logits / column([draw.temperature for draw in draws], torch.float32)
    vocabulary = logits.shape[1]
    if any(0 < draw.top_k < vocabulary for draw in draws):
        kept = column([draw.top_k or vocabulary for draw in draws], torch.int64).clamp_(max=vocabulary)
        logits = _top_k(logits, kept)
    if any(draw.top_p < 1 for draw in draws):
        logits = _top_p(logits, column([draw.top_p for draw in draws], torch.float64))
    # in float64 the sum over a large vocabulary is exact enough for its smallest probabilities
    sums = torch.softmax(logits, dim=-1).cumsum(dim=-1, dtype=torch.float64)
    point = column([uniform(draw.seed, draw.position) for draw in draws], torch.float64) * sums[:, -1:]
    return torch.searchsorted(sums, point, right=True).squeeze(1)


def _top_k(logits: Tensor, kept: Tensor) -> Tensor:
    """Remove what is smaller than the `kept`-th (`[rows, 1]`) largest; all equals of that one stay."""
    limited = kept[kept < logits.shape[1]]
    largest = logits.topk(int(limited.max()), dim=-1).values
    threshold = largest.gather(1, (kept - 1).clamp_(max=largest.shape[1] - 1))
    threshold = threshold.masked_fill(kept == logits.shape[1], -torch.inf)
    return logits.masked_fill(logits < threshold, -torch.inf)


def _top_p(logits: Tensor, mass: Tensor) -> Tensor:
    """Keep the fewest most probable tokens that have the `mass` (`[rows, 1]`) together."""
    total = torch.logsumexp(logits, dim=-1, keepdim=True)
    for candidates in (min(CANDIDATES, logits.shape[1]), logits.shape[1]):
        largest = logits.topk(candidates, dim=-1).values
        sums = (largest - total).exp().cumsum(dim=-1, dtype=torch.float64)
        if candidates == logits.shape[1] or bool((sums[:, -1:] >= mass).logical_or(mass >= 1).all()):
            break
    last = (sums < mass).sum(dim=-1, keepdim=True).clamp_(max=candidates - 1)
    threshold = largest.gather(1, last).masked_fill(mass >= 1, -torch.inf)
    return logits.masked_fill(logits < threshold, -torch.inf)
