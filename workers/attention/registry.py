"""Which backend of attention serves which device."""

from __future__ import annotations

from typing import Any

from workers.attention.backend import AttentionBackend
from workers.attention.cpu import PagedAttention
from workers.cache.paged import KVCache


def attention_over(cache: KVCache, *limits: Any, **options: Any) -> AttentionBackend:
    """The backend for the device that `cache` lies on; for the arguments see `PagedAttention`."""
    if cache.device.type == "cuda":
        from workers.attention.cuda import TritonAttention  # Triton comes with torch where there is CUDA

        return TritonAttention(cache, *limits, **options)
    return PagedAttention(cache, *limits, **options)
