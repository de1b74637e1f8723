"""Log-probabilities under the model as it is: before penalties, temperature, filters and masks."""

from __future__ import annotations

import torch
from torch import Tensor

from ipc.worker_messages import Logprobs


def logprobs(logits: Tensor, tokens: list[int], counts: list[int]) -> list[Logprobs]:
    """What stands in each row for the token chosen there.

    Args:
        logits: `[rows, vocabulary]` float32.
        tokens: one a row.
        counts: how many of the most probable tokens to name, one number a row. Equals come by token id.
    """
    chosen = logits.gather(1, torch.tensor(tokens, device=logits.device).unsqueeze(1))
    total = torch.logsumexp(logits, dim=1, keepdim=True)
    ranks = (logits > chosen).sum(dim=1).add_(1).tolist()
    values = (chosen - total).flatten().tolist()
    most = min(max(counts), logits.shape[1])
    top, ids = logits.topk(most, dim=1)
    rows = zip((top - total).tolist(), ids.tolist(), counts, strict=True)
    tops = [
        sorted(zip(ids, values, strict=True), key=lambda pair: (-pair[1], pair[0]))[:count]
        for values, ids, count in rows
    ]
    return [Logprobs(*row) for row in zip(tokens, values, ranks, tops, strict=True)]
