"""The memory of the KV pages: keys and values of every layer, in pages of PAGE_SIZE tokens."""

from __future__ import annotations

import logging
import math
import mmap
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ipc.model_settings import KVCacheDtype
from ipc.worker_messages import PAGE_SIZE, CacheGroup
from workers.cache.quantised import CODES, SCALES, Pages, quantise
from workers.cache.reserve import Reserve, reserve
from workers.checkpoints.caches import SCALE_BYTES
from workers.checkpoints.layers import PageShape

logger = logging.getLogger("workers.cache.paged")


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
        pages: that there is memory for.
        padded: there is one page more, which plans never name, for steps that are padded.
        kv_cache_dtype: in 8 bits; None: keys and values are kept in `dtype`.
        most: pages that there may ever be; None: the pool stays as it is.

    Attributes:
        padding: the number of the page of padded steps.
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
        most: int | None = None,
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
        self._page_bytes, self._padded = page * dtype.itemsize, padded
        self._reserve = None if most is None else _reserve((most + padded) * self._page_bytes, device)
        if self._reserve is None:
            self.padding, self.pages = pages, pages
            arena = zeros((pages + padded, page), dtype, device)
        else:
            self.padding = most
            arena = self._reserve.tensor.view(dtype).view(most + padded, page)
            try:
                self.keep(pages)
            except BaseException:
                self._reserve.close()
                raise
        self.layers: dict[int, Tensor] = {}
        self.scales: dict[int, Tensor] = {}
        for group in groups:
            start = 0
            for layer in group.layers:
                blocks, kv_heads, size = shapes[layer]
                end, shape = start + heads[layer] * size, (blocks, kv_heads, PAGE_SIZE)
                part = arena[:, start:end]
                self.layers[layer] = part.unflatten(1, (*shape, size)).transpose(0, 1)
                start += sizes[layer]
                if scale:
                    part = arena[:, end:start].view(SCALES)
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
        """Of the pages that there is memory for."""
        return (self.pages + self._padded) * self._page_bytes

    @property
    def unseen(self) -> int:
        """Bytes of the pool that neither the process nor PyTorch has in its figures."""
        return 0 if self._reserve is None else self._reserve.unseen

    @property
    def resizable(self) -> bool:
        """Whether `keep` can be called."""
        return self._reserve is not None

    def keep(self, pages: int) -> None:
        """Have memory for the first `pages`: those that come are zero, and what others held is lost.

        Raises:
            MemoryError: there is not enough; the pool is as it was.
        """
        self._reserve.keep(pages * self._page_bytes, self._padded * self._page_bytes)
        self.pages = pages

    def close(self) -> None:
        """Give the memory back. Nobody may use the pool any more."""
        self.layers.clear()
        if self._reserve is not None:
            self._reserve.close()


def _reserve(nbytes: int, device: torch.device) -> Reserve | None:
    """Addresses for a pool that may grow and shrink; None where there are none: it stays as it is."""
    try:
        return reserve(nbytes, device)
    except Exception as error:  # whatever a driver says: it is no reason to serve nobody
        logger.warning("the pool cannot be resized device=%s reason=%r", device, error)
        return None


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
