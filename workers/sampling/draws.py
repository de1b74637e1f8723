"""Draws from logits, the same number of launches whatever is drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.sampling.inputs import Wishes
from workers.sampling.logprobs import chunked, largest, nth_equal

NOTHING, BROKEN = -1, -2  # in place of a token: nothing is allowed, or a logit is not finite
FEW = 64  # logits that are sorted where no row wants more
PLAIN, FILTERED = 1, 2  # ways to draw, besides the highest; a step may have rows of both


def choose(logits: Tensor, wishes: Wishes, ways: int, block_rows: int) -> Tensor:  # [rows] int64
    """A token for each row, by launches that depend on nothing but the arguments: a step may be recorded.

    Args:
        logits: `[rows, vocabulary]` float32.
        wishes: one a row; of those that take the highest logit, the temperature is 0.
        ways: that the other rows are drawn in. Of rows that are filtered, each has a top-k of FEW at most.
        block_rows: that are drawn from at once.
    """
    (most, tokens), few = highest(logits), min(FEW, logits.shape[1])
    for start in range(0, len(logits) if ways else 0, block_rows):
        block = slice(start, start + block_rows)
        own, part = Wishes(*(each[block] for each in wishes)), logits[block]
        greedy = own.temperature == 0
        own = own._replace(temperature=own.temperature.masked_fill(greedy, 1.0))
        drawn = draw_plain(part, own) if ways & PLAIN else tokens[block]
        if ways & FILTERED:
            filtered, _ = draw_filtered(part, own, few, whole=False, looks=False)
            drawn = torch.where((own.top_k <= FEW).squeeze(1), filtered, drawn)
        tokens[block] = torch.where(greedy.squeeze(1), tokens[block], drawn)
    return there(most, tokens)


def highest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The highest logit of each row, and the first token that has it."""
    chunks = chunked(logits, -torch.inf)
    highest, chunk = chunks.amax(dim=2).max(dim=1)
    return highest, chunk * chunks.shape[2] + _chunk(chunks, chunk).max(dim=1).indices


def there(most: Tensor, tokens: Tensor) -> Tensor:  # [rows], [rows] -> [rows] int64
    """The tokens, but for rows without one: there every logit is minus infinity, or one is not finite."""
    return torch.where(most.isfinite(), tokens, torch.where(most == -torch.inf, NOTHING, BROKEN))


def _chunk(chunks: Tensor, number: Tensor) -> Tensor:  # [rows, chunks, size], [rows] -> [rows, size]
    return chunks[torch.arange(len(chunks), device=chunks.device), number]


def _sums(chunks: Tensor) -> Tensor:  # [rows, chunks, size] -> [rows, chunks] float64
    """Running sums at the ends of chunks: in float64, exact enough for the smallest probabilities."""
    return chunks.sum(dim=2, dtype=torch.float64).cumsum(dim=1)


def draw_plain(logits: Tensor, wishes: Wishes) -> Tensor:  # [rows, vocabulary] -> [rows] int64
    """One point on the line of all probabilities, in the order of the vocabulary."""
    chunks = chunked(torch.softmax(logits / wishes.temperature.float(), dim=-1), 0.0)
    sums = _sums(chunks)
    point = wishes.point * sums[:, -1:]
    chunk = torch.searchsorted(sums, point, right=True).clamp_(max=sums.shape[1] - 1)
    point -= torch.where(chunk > 0, sums.gather(1, (chunk - 1).clamp_(min=0)), 0)
    inside = _chunk(chunks, chunk.squeeze(1)).cumsum(dim=1, dtype=torch.float64)
    # rounding may lead past the chunk's end: its last token is the last that has any probability
    last = (inside < inside[:, -1:]).sum(dim=1, keepdim=True)
    token = torch.searchsorted(inside, point, right=True).minimum(last)
    return (chunk * inside.shape[1] + token).squeeze(1)


def draw_filtered(
    logits: Tensor, wishes: Wishes, count: int, whole: bool, looks: bool
) -> tuple[Tensor, Tensor]:
    """One point on the line of the kept probabilities, in descending order.

    Only the largest logits are sorted, and only their values count: a rank is drawn first, then the token is
    looked up that has its value. The order in which a sort leaves equal values thus never matters.

    Args:
        logits: `[rows, vocabulary]`.
        wishes: one a row.
        count: so many logits are sorted, no fewer than any top-k.
        whole: there may be a row with a top-p, and without a top-k: its share is one of all logits.
        looks: for a rank that several equal logits share the token is looked up only where there are such.

    Returns:
        Tokens, and whether `count` was enough for them, each `[rows]`.
    """
    device, vocabulary = logits.device, logits.shape[1]
    temperature, top_k, top_p, min_p, points = wishes
    values, ids = largest(logits, count)  # [rows, count]
    # relative to the most probable token: 1 is as probable
    weights = ((values - values[:, :1]) / temperature).exp()
    weights.masked_fill_(torch.arange(count, device=device) >= top_k, 0.0)
    sums = weights.cumsum(dim=-1)
    everything = sums[:, -1:]
    if whole and count < vocabulary:
        relative = (logits - values[:, :1]).div_(temperature.float()).exp_()
        everything = torch.where(top_k <= count, everything, _sums(chunked(relative, 0.0))[:, -1:])
    mass = torch.where(top_p < 1, top_p * everything, torch.inf)
    enough = (top_k <= count) | (sums[:, -1:] >= mass) | (weights[:, -1:] < min_p)
    last = (sums < mass).sum(dim=-1, keepdim=True).clamp_(max=count - 1)  # the rank that completes the mass
    last = last.minimum((weights >= min_p).logical_and_(weights > 0).sum(dim=-1, keepdim=True) - 1).clamp_(
        min=0
    )
    point = points * sums.gather(1, last)
    rank = (sums <= point).sum(dim=-1, keepdim=True).minimum(last)
    value = values.gather(1, rank)
    tokens = ids.gather(1, rank)
    tied: Tensor | slice = slice(None)
    if looks:
        shared = ((values == value).sum(dim=-1, keepdim=True) > 1) | (value == values[:, -1:])
        tied = (shared & enough).flatten().nonzero().flatten()
    if not looks or len(tied):
        nth = rank - (values > value).sum(dim=-1, keepdim=True)
        tokens[tied] = nth_equal(logits[tied], value[tied], nth[tied])
    return tokens.squeeze(1), enough.squeeze(1)
