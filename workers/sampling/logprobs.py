"""Log-probabilities under the model as it is: before penalties, temperature, filters and masks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ipc.worker_messages import Logprobs
from workers.sampling.inputs import sent

AT_ONCE = 8  # rows that are copied to be looked at
CHUNK = 128  # tokens; most vocabularies are padded to a multiple of it
FEWEST = 16  # tokens of a chunk; a vocabulary that has none so large, as with tokens added, is padded here


def logprobs(logits: Tensor, tokens: list[int], counts: list[int]) -> list[Logprobs]:
    """What stands in each row for the token chosen there.

    Args:
        logits: `[rows, vocabulary]` float32.
        tokens: one a row.
        counts: how many of the most probable tokens to name, one number a row. Equals come by token id.
    """
    column = sent(tokens, logits.device)
    rows = measured(logits, column, max(counts), looks=logits.device.type == "cpu").tolist()
    return [named(*row) for row in zip(rows, tokens, counts, strict=True)]


def measured(logits: Tensor, tokens: Tensor, count: int, looks: bool) -> Tensor:
    """What `named` makes log-probabilities of.

    Args:
        logits: `[rows, vocabulary]` float32.
        tokens: `[rows]` int64, from 0.
        count: the most probable tokens to name in any row.
        looks: at numbers on the way, to leave out what is seldom needed. On a GPU that would be a wait.

    Returns:
        `[rows, 2 + 3 * n]` float64: log-probability and rank of the token; log-probabilities and ids of the n
        most probable ones, one more than `count` where there are so many; and the lowest ids of those that
        are as probable as the last of these.
    """
    chosen = logits.gather(1, tokens.unsqueeze(1))
    relative = torch.log_softmax(logits, dim=1)  # row by row, whatever their number is
    top, ids = largest(logits, min(count + 1, logits.shape[1]))
    if looks:
        ranks = (top > chosen).sum(dim=1).add_(1)
        below = (chosen < top[:, -1:]).flatten().nonzero().flatten()
        for rows in below.split(AT_ONCE):
            ranks[rows] = (logits[rows] > chosen[rows]).sum(dim=1).add_(1)
    else:
        ranks = (logits > chosen).sum(dim=1).add_(1)
    values = relative.gather(1, ids)
    equal = torch.zeros_like(ids)
    nth = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
    if looks:
        tied = (values[:, -2:-1] == values[:, -1:]).flatten().nonzero().flatten()
        for rows in tied.split(AT_ONCE):
            equal[rows] = nth_equal(relative[rows], values[rows, -1:], nth)
    else:
        equal = nth_equal(relative, values[:, -1:], nth)
    parts = (relative.gather(1, tokens.unsqueeze(1)), ranks.unsqueeze(1), values, ids, equal)
    return torch.cat([part.double() for part in parts], dim=1)


def named(row: list[float], token: int, count: int) -> Logprobs:
    """One row of `measured`, with its `count` most probable tokens."""
    most = (len(row) - 2) // 3
    values, ids, equal = row[2 : 2 + most], row[2 + most : 2 + 2 * most], row[2 + 2 * most :]
    top = sorted(zip(map(int, ids), values, strict=True), key=lambda entry: (-entry[1], entry[0]))
    if count < most and values[count - 1] == values[-1]:
        # there may be more tokens as probable as the last of these, with lower ids
        last = values[-1]
        top = [entry for entry in top if entry[1] > last] + [(int(token), last) for token in equal]
    return Logprobs(token, row[0], int(row[1]), top[:count])


def largest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:  # both [rows, count]
    """The largest of each row in descending order, and their tokens; equals come in any order.

    They are in the chunks that have the largest maxima, and to find these is one fast pass.
    """
    chunks = chunked(logits, -math.inf)  # [rows, chunks, size]
    size = chunks.shape[2]
    if 4 * count > chunks.shape[1]:
        return logits.topk(count, dim=1)
    best = chunks.amax(dim=2).topk(count, dim=1).indices
    among = chunks.gather(1, best.unsqueeze(2).expand(-1, -1, size)).flatten(1)
    values, places = among.topk(count, dim=1)
    return values, _inside(logits, chunks, best.gather(1, places // size) * size + places % size)


def chunked(x: Tensor, fill: float) -> Tensor:  # [rows, vocabulary] -> [rows, chunks, size]
    """A view, or where the vocabulary has no chunks a copy, of which the last chunk ends with `fill`."""
    size = math.gcd(x.shape[1], CHUNK)
    if size < FEWEST:
        x, size = F.pad(x, (0, -x.shape[1] % CHUNK), value=fill), CHUNK
    return x.unflatten(1, (-1, size))


def _inside(x: Tensor, chunks: Tensor, tokens: Tensor) -> Tensor:
    """The tokens, but what is padded is none: it is found where nothing else is left."""
    same = chunks.shape[1] * chunks.shape[2] == x.shape[1]
    return tokens if same else tokens.clamp_(max=x.shape[1] - 1)


def nth_equal(x: Tensor, value: Tensor, nth: Tensor) -> Tensor:
    """Where in each row of `x` the elements equal to `value` are.

    Args:
        x: `[rows, vocabulary]`.
        value: `[rows, 1]`.
        nth: `[rows or 1, n]` int64: which of them, from 0; of one that is not there, what comes back is no
            more than some place of the row.

    Returns:
        `[rows, n]` int64.
    """
    chunks = chunked(x == value, False)
    sums = chunks.sum(dim=2).cumsum(dim=1)
    nth = nth.expand(len(x), -1).contiguous()
    chunk = torch.searchsorted(sums, nth, right=True).clamp_(max=sums.shape[1] - 1)
    left = nth - torch.where(chunk > 0, sums.gather(1, (chunk - 1).clamp_(min=0)), 0)
    inside = chunks.gather(1, chunk.unsqueeze(2).expand(-1, -1, chunks.shape[2])).cumsum(dim=2)
    place = (inside <= left.unsqueeze(2)).sum(dim=2).clamp_(max=chunks.shape[2] - 1)
    return _inside(x, chunks, chunk * chunks.shape[2] + place)
