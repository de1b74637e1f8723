"""ggml's i-quants: blocks of 256 that name entries of a codebook, with signs and scales beside them.

The codebooks themselves are those of the `gguf` package. Functions are as in `dequantise`.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

DELTA = 0.125  # by which all of a group in IQ1 are shifted


@cache
def _codebook(name: str, device: torch.device) -> Tensor:  # [entries, elements of an entry] float32
    from gguf import quants

    kind = getattr(quants, name)
    kind.init_grid()
    return torch.from_numpy(kind.grid.reshape(kind.grid_shape)).float().to(device)


@cache
def _signs(device: torch.device) -> Tensor:  # [128, 8] float32
    """Of every seven bits their signs, and an eighth that makes the number of minuses even."""
    seven = torch.arange(128).unsqueeze(-1) >> torch.arange(7) & 1
    return 1.0 - 2.0 * torch.cat([seven, seven.sum(-1, keepdim=True) & 1], dim=-1).to(device)


def _spread(data: Tensor, step: int, count: int) -> Tensor:  # [n, count * length] of the type of `data`
    """Of each number the bits from 0, `step`, 2 * `step`, ... on."""
    shifts = torch.arange(0, step * count, step, dtype=data.dtype, device=data.device)
    return (data.unsqueeze(-1) >> shifts).reshape(len(data), -1)


def _words(blocks: Tensor, kind: torch.dtype) -> Tensor:  # int32 of unsigned 16 bits, int64 of 32
    wide, mask = (torch.int32, 0xFFFF) if kind == torch.int16 else (torch.int64, 0xFFFFFFFF)
    return blocks.contiguous().view(kind).to(wide) & mask


def half(blocks: Tensor, at: int) -> Tensor:  # [n, 1] float32
    """The float16 at that byte of each block."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _by_bit(signs: Tensor) -> Tensor:  # [n, bytes] uint8 -> [n, 8 * bytes] float32
    return 1.0 - 2.0 * (_spread(signs, 1, 8) & 1).float()


def _entries(name: str, numbers: Tensor) -> Tensor:  # [n, count] -> [n, count * elements of an entry]
    return _codebook(name, numbers.device)[numbers.long()].flatten(1)


def _scaled(scales: Tensor, entries: Tensor, signs: Tensor) -> Tensor:
    """Entries by groups of equal size, a scale for each."""
    groups = entries.view(len(entries), scales.shape[1], -1)
    return (scales.unsqueeze(-1) * groups * signs.view(groups.shape)).flatten(1)


def _four_bits(scales: Tensor) -> Tensor:
    return (_spread(scales, 4, 2) & 15).float()


def _iq2_xxs(blocks: Tensor) -> Tensor:
    numbers = blocks[:, 2:].reshape(len(blocks), 8, 8)
    words = _words(numbers[:, :, 4:], torch.int32).flatten(1)
    scales = half(blocks, 0) * (0.5 + (words >> 28).float()) * 0.25
    signs = _signs(blocks.device)[_spread(words, 7, 4) & 127]
    return _scaled(scales, _entries("IQ2_XXS", numbers[:, :, :4].flatten(1)), signs)


def _iq2_xs(blocks: Tensor) -> Tensor:
    words = _words(blocks[:, 2:66], torch.int16)
    scales = half(blocks, 0) * (0.5 + _four_bits(blocks[:, 66:])) * 0.25
    return _scaled(scales, _entries("IQ2_XS", words & 511), _signs(blocks.device)[words >> 9])


def _iq2_s(blocks: Tensor) -> Tensor:
    numbers = blocks[:, 2:34].int() | (_spread(blocks[:, 66:74], 2, 4) & 3).int() << 8
    scales = half(blocks, 0) * (0.5 + _four_bits(blocks[:, 74:])) * 0.25
    return _scaled(scales, _entries("IQ2_S", numbers), _by_bit(blocks[:, 34:66]))


def _iq3_xxs(blocks: Tensor) -> Tensor:
    words = _words(blocks[:, 66:], torch.int32)
    scales = half(blocks, 0) * (0.5 + (words >> 28).float()) * 0.5
    signs = _signs(blocks.device)[_spread(words, 7, 4) & 127]
    return _scaled(scales, _entries("IQ3_XXS", blocks[:, 2:66]), signs)


def _iq3_s(blocks: Tensor) -> Tensor:
    numbers = blocks[:, 2:66].int() | (_spread(blocks[:, 66:74], 1, 8) & 1).int() << 8
    scales = half(blocks, 0) * (1 + 2 * _four_bits(blocks[:, 106:]))
    return _scaled(scales, _entries("IQ3_S", numbers), _by_bit(blocks[:, 74:106]))


def _iq1_s(blocks: Tensor) -> Tensor:
    words = _words(blocks[:, 34:], torch.int16)
    scales = half(blocks, 0) * (2 * (words >> 12 & 7) + 1).float()
    delta = torch.where(words & 0x8000 == 0, DELTA, -DELTA)
    numbers = blocks[:, 2:34].int() | (_spread(words, 3, 4) & 7) << 8
    groups = _entries("IQ1_S", numbers).view(-1, 8, 32)
    return (scales.unsqueeze(-1) * (groups + delta.unsqueeze(-1))).flatten(1)


def _iq1_m(blocks: Tensor) -> Tensor:
    words = _words(blocks[:, 48:], torch.int16)
    tops = words >> 12 << torch.arange(0, 16, 4, dtype=torch.int32, device=blocks.device)
    d = tops.sum(1, keepdim=True).to(torch.int16).view(torch.float16).float()  # in four pieces
    scales = d * (2 * (_spread(words, 3, 4) & 7) + 1).float()
    high = _spread(blocks[:, 32:48], 4, 2)
    numbers = blocks[:, :32].int() | (high & 7).int() << 8
    delta = torch.where(high & 8 == 0, DELTA, -DELTA).view(-1, 16, 2, 1)
    groups = _entries("IQ1_M", numbers).view(-1, 16, 2, 8)
    return (scales.view(-1, 16, 1, 1) * (groups + delta)).flatten(1)


BY_BLOCK = {
    "IQ1_S": _iq1_s,
    "IQ1_M": _iq1_m,
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ2_S": _iq2_s,
    "IQ3_XXS": _iq3_xxs,
    "IQ3_S": _iq3_s,
}
