"""Which backend of attention serves which device."""

from __future__ import annotations

from typing import Any

from workers.attention.backend import AttentionBackend
from workers.attention.cpu import PagedAttention
from workers.cache.paged import KVCache
from workers.kernels.fused import has_triton


def attention_over(cache: KVCache, *limits: Any, **options: Any) -> AttentionBackend:
    """The backend for the device that `cache` lies on; for the arguments see `PagedAttention`."""
    if has_triton(cache.device):
        from workers.attention.cuda import TritonAttention

        return TritonAttention(cache, *limits, **options)
    return PagedAttention(cache, *limits, **options)
