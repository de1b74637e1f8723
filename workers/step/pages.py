"""How tokens fill pages: what the scheduler plans by, and the engine stores by."""

from __future__ import annotations

from ipc.worker_messages import PAGE_SIZE


def pages_for(num_tokens: int) -> int:
    """The number of pages that hold the keys and values of `num_tokens` tokens."""
    return -(-num_tokens // PAGE_SIZE)
