"""The memory of the KV pages: keys and values of every layer, in pages of PAGE_SIZE tokens."""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

from ipc.worker_messages import PAGE_SIZE


class KVCache:
    """One pool a layer, `[2, pages, kv_heads, PAGE_SIZE, head_dim]`: keys, then values.

    A page is contiguous in a pool, so gathering pages is copying blocks. Whoever attends over whole pages
    multiplies the unwritten rest of a last page with a weight of zero, and zero times what another sequence
    left there is NaN if that was not finite: so a page that is taken is cleared, unless it is filled at once.
    """

    def __init__(
        self,
        *,
        layers: int,
        pages: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (2, pages, kv_heads, PAGE_SIZE, head_dim)
        self.layers = [_zeros(shape, dtype, device) for _ in range(layers)]

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)


def write_kv(kv: Tensor, keys: Tensor, values: Tensor, pages: Tensor, places: Tensor) -> None:
    """Put keys and values `[tokens, kv_heads, head_dim]` into one layer's pool.

    Args:
        kv: `[2, pages, kv_heads, PAGE_SIZE, head_dim]`.
        pages: `[tokens]` int64, the page of each token.
        places: `[tokens]` int64, its place in the page.
    """
    kv[0, pages, :, places] = keys
    kv[1, pages, :, places] = values


def clear(kv: Tensor, pages: list[int]) -> None:
    """Let nothing be left in these pages of one layer's pool."""
    for page in pages:  # one by one: there are few, and an index over them takes longer on a CPU
        kv[:, page].zero_()


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that cost nothing until they are written: a pool is big, and `torch.zeros` touches all of it."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
