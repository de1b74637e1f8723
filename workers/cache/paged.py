"""The memory of the KV pages: keys and values of every layer, in pages of PAGE_SIZE tokens."""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ipc.worker_messages import PAGE_SIZE, CacheGroup
from workers.cache.quantised import CODES, SCALES, Pages, quantise
from workers.checkpoints.caches import SCALE_BYTES, KVCacheDtype
from workers.checkpoints.layers import PageShape


class KVCache:
    """Pages that serve every group of layers: where one has fewer layers than another, a part is unused.

    A page has a part for each layer of the group that has it. A part is one block of keys and one of values,
    `[kv_heads, PAGE_SIZE, head_dim]`, so gathering pages is copying blocks. Of latent vectors there is one
    block, for they are both. Behind blocks in 8 bits are their scales, `[blocks, kv_heads, PAGE_SIZE]`.

    Whoever attends over whole pages multiplies the unwritten rest of a last page with a weight of zero, and
    zero times what another sequence left there is NaN if that was not finite: so a page that is taken is
    cleared, unless it is filled at once.

    Args:
        shapes: by the number of a layer; the layers of a group are alike in their sum.
        padded: there is one page more, after those that plans name, for steps that are padded.
        kv_cache_dtype: in 8 bits; None: keys and values are kept in `dtype`.

    Attributes:
        groups: as the tables of plans have them.
        group_of: the number of each layer's group.
        layers: what each layer sees of the pages, `[blocks, pages, kv_heads, PAGE_SIZE, head_dim]`.
        scales: of the layers, where they are in 8 bits, `[blocks, pages, kv_heads, PAGE_SIZE]`.
    """

    def __init__(
        self,
        groups: Sequence[CacheGroup],
        shapes: Mapping[int, PageShape],
        *,
        pages: int,
        dtype: torch.dtype,
        device: torch.device,
        padded: bool = False,
        kv_cache_dtype: KVCacheDtype | None = None,
    ) -> None:
        self.groups = list(groups)
        self.group_of = {layer: number for number, group in enumerate(groups) for layer in group.layers}
        if kv_cache_dtype is not None:
            dtype = CODES[kv_cache_dtype]
        scale = 0 if kv_cache_dtype is None else SCALE_BYTES  # in elements of a byte
        heads = {layer: shapes[layer].blocks * shapes[layer].heads * PAGE_SIZE for layer in self.group_of}
        sizes = {layer: count * (shapes[layer].size + scale) for layer, count in heads.items()}
        page = max(sum(sizes[layer] for layer in group.layers) for group in groups)
        self.device = device
        self._arena = zeros((pages + padded, page), dtype, device)
        self.layers: dict[int, Tensor] = {}
        self.scales: dict[int, Tensor] = {}
        for group in groups:
            start = 0
            for layer in group.layers:
                blocks, kv_heads, size = shapes[layer]
                end, shape = start + heads[layer] * size, (blocks, kv_heads, PAGE_SIZE)
                part = self._arena[:, start:end]
                self.layers[layer] = part.unflatten(1, (*shape, size)).transpose(0, 1)
                start += sizes[layer]
                if scale:
                    part = self._arena[:, end:start].view(SCALES)
                    self.scales[layer] = part.unflatten(1, shape).transpose(0, 1)

    def keys(self, layer: int) -> Pages:
        """What attention multiplies queries with."""
        scales = self.scales.get(layer)
        return Pages(self.layers[layer][0], None if scales is None else scales[0])

    def values(self, layer: int, size: int) -> Pages:
        """What it adds up: the first `size` elements of each."""
        scales = self.scales.get(layer)
        return Pages(self.layers[layer][-1][..., :size], None if scales is None else scales[-1])

    @property
    def nbytes(self) -> int:
        return self._arena.nbytes


def write_kv(kv: Tensor, keys: Tensor, values: Tensor | None, pages: Tensor, places: Tensor) -> None:
    """Put keys and values `[tokens, kv_heads, head_dim]` into one layer's pool.

    Args:
        kv: `[blocks, pages, kv_heads, PAGE_SIZE, head_dim]`.
        values: None, where they are in the keys.
        pages: `[tokens]` int64, the page of each token.
        places: `[tokens]` int64, its place in the page.
    """
    kv[0, pages, :, places] = keys
    if values is not None:
        kv[1, pages, :, places] = values


def write_codes(
    kv: Tensor, scales: Tensor, keys: Tensor, values: Tensor | None, pages: Tensor, places: Tensor
) -> None:
    """The same in 8 bits.

    Args:
        scales: `[blocks, pages, kv_heads, PAGE_SIZE]`.
    """
    for codes, beside, x in zip(kv, scales, (keys, values), strict=False):
        if x is not None:
            codes[pages, :, places], beside[pages, :, places] = quantise(x, kv.dtype)


def clear(kv: Tensor, pages: list[int]) -> None:
    """Let nothing be left in these pages of one layer's pool, or of its scales."""
    for page in pages:  # one by one: there are few, and an index over them takes longer on a CPU
        kv[:, page].zero_()


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that cost nothing until they are written: a pool is big, and `torch.zeros` touches all of it."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
