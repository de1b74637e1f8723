"""What changes logits before anything is drawn from them, penalties aside: biases, and what may not come."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.sampling.inputs import sent
from workers.sampling.slot import SamplingSlot


def add_biases(logits: Tensor, rows: list[SamplingSlot]) -> None:  # [rows, vocabulary] float32
    """Add to each row what its sequence wants its logits to be more."""
    at: list[int] = []
    ids: list[int] = []
    values: list[float] = []
    for row, slot in enumerate(rows):
        if slot.bias[0]:
            at += [row] * len(slot.bias[0])
            ids += slot.bias[0]
            values += slot.bias[1]
    if at:
        device = logits.device
        added = sent(values, device, torch.float32)
        logits.index_put_((sent(at, device), sent(ids, device)), added, accumulate=True)


def forbid(logits: Tensor, rows: list[SamplingSlot], bitmask: Tensor | None) -> None:
    """Set the logits of what may not come to minus infinity.

    Args:
        logits: `[rows, vocabulary]` float32.
        bitmask: what the grammars allow (`Sampler.launch`).
    """
    limited = [row for row, slot in enumerate(rows) if slot.allowed is not None]
    if limited:
        _leave(logits, limited, torch.stack([rows[row].allowed for row in limited]))
    pairs = [(row, token) for row, slot in enumerate(rows) for token in slot.forbidden()]
    masked: set[int] = set()
    if bitmask is not None:
        masked = set((bitmask != -1).any(dim=1).nonzero().flatten().tolist())
    if masked:
        numbers = sorted(masked)
        _leave(logits, numbers, _allowed(bitmask[torch.tensor(numbers)], logits))
    for row, slot in enumerate(rows):
        # a grammar that allows nothing but the end is at its end: no minimum can change that
        if slot.too_short and not (row in masked and _only(bitmask[row], slot.params.stop_ids)):
            pairs += [(row, token) for token in slot.params.stop_ids]
    if pairs:
        at, ids = (sent(list(column), logits.device) for column in zip(*pairs, strict=True))
        logits[at, ids] = -torch.inf


def _leave(logits: Tensor, rows: list[int], allowed: Tensor) -> None:
    """Let nothing come in these rows but what is `allowed`: `[len(rows), vocabulary]` bool."""
    index = sent(rows, logits.device)
    logits[index] = logits[index].masked_fill(~allowed, -torch.inf)


def _allowed(bitmask: Tensor, logits: Tensor) -> Tensor:  # [n, words] int32 -> [n, vocabulary] bool
    """A bit a token, where the logits are."""
    words = bitmask.to(logits.device, non_blocking=True)
    bits = torch.arange(32, dtype=torch.int32, device=logits.device)
    return (words.unsqueeze(2) >> bits & 1).flatten(1)[:, : logits.shape[1]].bool()


def _only(words: Tensor, stop_ids: list[int]) -> bool:
    """Whether a mask (`[words]` int32) allows nothing besides `stop_ids`."""
    left = words.clone()
    for token in stop_ids:
        left[token // 32] &= ~(1 << token % 32) if token % 32 < 31 else 0x7FFFFFFF
    return not bool(left.any())
