"""The memory of the KV pages: keys and values of every layer, in pages of PAGE_SIZE tokens."""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ipc.worker_messages import PAGE_SIZE, CacheGroup
from workers.checkpoints.layers import PageShape


class KVCache:
    """Pages that serve every group of layers: where one has fewer layers than another, a part is unused.

    A page has a part for each layer of the group that has it. A part is one block of keys and one of values,
    `[kv_heads, PAGE_SIZE, head_dim]`, so gathering pages is copying blocks. Of latent vectors there is one
    block, for they are both.

    Whoever attends over whole pages multiplies the unwritten rest of a last page with a weight of zero, and
    zero times what another sequence left there is NaN if that was not finite: so a page that is taken is
    cleared, unless it is filled at once.

    Args:
        shapes: by the number of a layer; the layers of a group are alike in their sum.
        padded: there is one page more, after those that plans name, for steps that are padded.

    Attributes:
        groups: as the tables of plans have them.
        group_of: the number of each layer's group.
        layers: what each layer sees of the pages, `[blocks, pages, kv_heads, PAGE_SIZE, head_dim]`.
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
    ) -> None:
        self.groups = list(groups)
        self.group_of = {layer: number for number, group in enumerate(groups) for layer in group.layers}
        sizes = {layer: PAGE_SIZE * math.prod(shapes[layer]) for layer in self.group_of}
        page = max(sum(sizes[layer] for layer in group.layers) for group in groups)
        self.device = device
        self._arena = zeros((pages + padded, page), dtype, device)
        self.layers: dict[int, Tensor] = {}
        for group in groups:
            start = 0
            for layer in group.layers:
                blocks, heads, size = shapes[layer]
                part = self._arena[:, start : start + sizes[layer]]
                self.layers[layer] = part.unflatten(1, (blocks, heads, PAGE_SIZE, size)).transpose(0, 1)
                start += sizes[layer]

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


def clear(kv: Tensor, pages: list[int]) -> None:
    """Let nothing be left in these pages of one layer's pool."""
    for page in pages:  # one by one: there are few, and an index over them takes longer on a CPU
        kv[:, page].zero_()


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that cost nothing until they are written: a pool is big, and `torch.zeros` touches all of it."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
