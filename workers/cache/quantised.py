"""Keys and values in 8 bits: codes, and a scale for each head of each token.

A head is divided by its scale and rounded once, when it is written. Whoever attends sees what was kept, the
tokens of the same step included: so neither a prompt in parts, nor pages that others share, nor a second
computation change an answer. A scale is of the head's own numbers alone, so ranks that share heads keep the
same ones.

* `int8`: whole numbers, of which the greatest of a head is 127.
* `fp8`: e4m3 of the OCP (https://arxiv.org/abs/2209.05433), of which the greatest is 448. Three bits of
  mantissa wherever a number lies, and so fewer for the greatest, which count most: it loses more.

Where a head has a number that is not finite, its scale has none, and neither has what is read of it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ipc.model_settings import KVCacheDtype

# As which type codes lie in memory: the bits of e4m3 as bytes, for a card need not know the type.
CODES: dict[KVCacheDtype, torch.dtype] = {"int8": torch.int8, "fp8": torch.uint8}
MOST: dict[torch.dtype, float] = {torch.int8: 127.0, torch.uint8: 448.0}  # that a code stands for
SCALES = torch.float16


def quantise(x: Tensor, codes: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes of that type, and the scales of the last dimension: `[..., size]` and `[...]`."""
    x = x.float()
    scales = (x.abs().amax(-1) * (1 / MOST[codes])).to(SCALES)
    wide = scales.float().unsqueeze(-1)
    x = torch.where(wide > 0, x * wide.reciprocal(), 0.0).clamp_(-MOST[codes], MOST[codes])
    if codes == torch.uint8:
        return x.to(torch.float8_e4m3fn).view(codes), scales
    return x.round_().nan_to_num_(0.0).to(codes), scales


def dequantise(codes: Tensor, scales: Tensor) -> Tensor:
    """What they stand for, in float32: `[..., size]` of `[..., size]` and `[...]`."""
    x = codes.view(torch.float8_e4m3fn) if codes.dtype == torch.uint8 else codes
    return x.float().mul_(scales.float().unsqueeze(-1))


class Pages(NamedTuple):
    """Keys of a layer in all pages, or values."""

    kept: Tensor  # [pages, kv_heads, PAGE_SIZE, size]
    scales: Tensor | None = None  # [pages, kv_heads, PAGE_SIZE]; None: they are kept as they are

    def gathered(self, pages: Tensor, dtype: torch.dtype) -> Tensor:  # [pages, kv_heads, PAGE_SIZE, size]
        """Some of the pages, in that type."""
        return self._taken(pages).to(dtype)

    def by_head(self, pages: Tensor, dtype: torch.dtype) -> Tensor:  # [kv_heads, pages * PAGE_SIZE, size]
        """The same, one page behind the other for each head."""
        return self._taken(pages).transpose(0, 1).flatten(1, 2).to(dtype)

    def _taken(self, pages: Tensor) -> Tensor:
        """Along the first dimension, for along any other PyTorch copies all pages there are first."""
        taken = self.kept.index_select(0, pages)
        return taken if self.scales is None else dequantise(taken, self.scales.index_select(0, pages))
