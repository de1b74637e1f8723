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
    chosen = logits.gather(1, torch.tensor(tokens, device=logits.device).unsqueeze(1))
    total = torch.logsumexp(logits, dim=1, keepdim=True)
    values = (chosen - total).flatten().tolist()
    top, ids = largest(logits, min(max(1, *counts), logits.shape[1]))
    ranks = (top > chosen).sum(dim=1).add_(1)
    below = (chosen < top[:, -1:]).flatten().nonzero().flatten()
    ranks[below] = (logits[below] > chosen[below]).sum(dim=1).add_(1)
    rows = zip((top - total).tolist(), ids.tolist(), counts, strict=True)
    tops = [
        sorted(zip(ids, values, strict=True), key=lambda pair: (-pair[1], pair[0]))[:count]
        for values, ids, count in rows
    ]
    return [Logprobs(*row) for row in zip(tokens, values, ranks.tolist(), tops, strict=True)]


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
