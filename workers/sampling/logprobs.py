"""Log-probabilities under the model as it is: before penalties, temperature, filters and masks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ipc.worker_messages import Logprobs

CHUNK = 128  # tokens; most vocabularies are padded to a multiple of it


def logprobs(logits: Tensor, tokens: list[int], counts: list[int]) -> list[Logprobs]:
    """What stands in each row for the token chosen there.

    Args:
        logits: `[rows, vocabulary]` float32.
        tokens: one a row.
        counts: how many of the most probable tokens to name, one number a row. Equals come by token id.
    """
    column = torch.tensor(tokens, device=logits.device).unsqueeze(1)
    chosen = logits.gather(1, column)
    relative = torch.log_softmax(logits, dim=1)  # row by row, whatever their number is
    values = relative.gather(1, column).flatten().tolist()
    top, ids = largest(logits, min(max(1, *counts), logits.shape[1]))
    ranks = (top > chosen).sum(dim=1).add_(1)
    below = (chosen < top[:, -1:]).flatten().nonzero().flatten()
    ranks[below] = (logits[below] > chosen[below]).sum(dim=1).add_(1)
    pairs = zip(relative.gather(1, ids).tolist(), ids.tolist(), strict=True)
    tops = [sorted(zip(ids, values, strict=True), key=_order) for values, ids in pairs]
    for row, (entries, count) in enumerate(zip(tops, counts, strict=True)):
        if count and len(entries) < logits.shape[1] and entries[count - 1][1] == entries[-1][1]:
            # there may be more tokens as probable as the last of these, with lower numbers
            equal = (relative[row] == entries[-1][1]).nonzero().flatten()[:count].tolist()
            known = [entry for entry in entries if entry[1] > entries[-1][1]]
            entries[:] = known + [(token, entries[-1][1]) for token in equal]
        del entries[count:]
    return [Logprobs(*row) for row in zip(tokens, values, ranks.tolist(), tops, strict=True)]


def _order(entry: tuple[int, float]) -> tuple[float, int]:
    token, value = entry
    return -value, token


def largest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:  # both [rows, count]
    """The largest of each row in descending order, and their tokens; equals come in any order.

    They are in the chunks that have the largest maxima, and to find these is one fast pass.
    """
    chunks = chunked(logits)  # [rows, chunks, size]
    size = chunks.shape[2]
    if 4 * count > chunks.shape[1]:
        return logits.topk(count, dim=1)
    best = chunks.amax(dim=2).topk(count, dim=1).indices
    among = chunks.gather(1, best.unsqueeze(2).expand(-1, -1, size)).flatten(1)
    values, places = among.topk(count, dim=1)
    return values, best.gather(1, places // size) * size + places % size


def chunked(logits: Tensor) -> Tensor:  # [rows, vocabulary] -> [rows, chunks, size], a view
    return logits.unflatten(1, (-1, math.gcd(logits.shape[1], CHUNK)))
