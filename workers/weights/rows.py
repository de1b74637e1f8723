"""Rows whose numbers stand first, and then the scales of their blocks, in float32: to float32.

Of two numbers in a byte, the first is the lower half. These are the formats of what other programs quantise,
where ggml has none that says the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from workers.checkpoints.blocks import FORMATS

# The quantiles of a normal distribution (https://arxiv.org/abs/2305.14314, appendix E), e2m1, and what
# bitsandbytes calls FP4 (`csrc/kernels.cu`).
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
)
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_BNB = (0.0, 0.0052083333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25)
FP4 = (*_BNB, *(-value for value in _BNB))

NV_BLOCK = FORMATS["NVFP4"].elements


def nibbles(data: Tensor) -> Tensor:  # [..., bytes] uint8 -> [..., 2 * bytes] uint8
    """The lower half of each byte, then the upper one."""
    return torch.stack([data & 15, data >> 4], dim=-1).flatten(-2)


def paired(numbers: Tensor) -> Tensor:  # [..., 2 * bytes] uint8 below 16 -> [..., bytes] uint8
    """The other way round."""
    return numbers[..., ::2] | numbers[..., 1::2] << 4


def joined(*parts: Tensor) -> Tensor:  # each [rows, some] of any type -> [rows, bytes] uint8
    """Rows that have the bytes of `parts` one after the other."""
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=1)


def four_times(scale: Tensor) -> Tensor:  # [rows, 1] -> [rows, 4]
    """What stands behind the numbers of a row that has one scale."""
    return scale.expand(len(scale), 4)


def _floats(data: Tensor) -> Tensor:  # [rows, 4 * n] uint8 -> [rows, n] float32
    return data.contiguous().view(torch.float32)


@cache
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Brought to a GPU once: to bring something there is nothing that a recorded step may do."""
    return torch.tensor(values, dtype=dtype, device=device)


def _scaled(numbers: Tensor, scales: Tensor) -> Tensor:  # [rows, columns], [rows, blocks] float32
    return (numbers.view(*scales.shape, -1) * scales.unsqueeze(-1)).view(len(numbers), -1)


def with_zeros(scales: Tensor, zeros: Tensor) -> Tensor:  # [rows, blocks] float32, below 16 -> int32
    """Scales whose last four bits are zero points: of float16 and bfloat16 they lose nothing, and float32 is
    rounded to 20 bits."""
    return (scales.contiguous().view(torch.int32) + 8 & -16) | zeros.int()


def _int4(name: str, rows: Tensor) -> Tensor:
    columns = FORMATS[name].columns(rows.shape[1])
    numbers = nibbles(rows[:, : columns // 2]).float()
    words = rows[:, columns // 2 :].contiguous().view(torch.int32)
    scales, zeros = (words & -16).view(torch.float32), (words & 15).float()
    return _scaled((numbers.view(*zeros.shape, -1) - zeros.unsqueeze(-1)).view(len(rows), -1), scales)


def _looked_up(name: str, table: tuple[float, ...], rows: Tensor) -> Tensor:
    columns = FORMATS[name].columns(rows.shape[1])
    values = constant(table, torch.float32, rows.device)[nibbles(rows[:, : columns // 2]).int()]
    return _scaled(values, _floats(rows[:, columns // 2 :]))


def _nvfp4(rows: Tensor) -> Tensor:
    columns = FORMATS["NVFP4"].columns(rows.shape[1])
    end = columns // 2 + columns // NV_BLOCK
    values = constant(E2M1, torch.float32, rows.device)[nibbles(rows[:, : columns // 2]).int()]
    scales = rows[:, columns // 2 : end].contiguous().view(torch.float8_e4m3fn).float()
    return _scaled(values, scales * _floats(rows[:, -4:]))


def _row(kind: torch.dtype, rows: Tensor) -> Tensor:
    return rows[:, :-16].contiguous().view(kind).float() * _floats(rows[:, -4:])


BY_ROW: dict[str, Callable[[Tensor], Tensor]] = {  # [rows, row bytes] uint8 -> [rows, columns] float32
    "INT4_32": lambda rows: _int4("INT4_32", rows),
    "INT4_64": lambda rows: _int4("INT4_64", rows),
    "INT4_128": lambda rows: _int4("INT4_128", rows),
    "INT8_ROW": lambda rows: _row(torch.int8, rows),
    "FP8_ROW": lambda rows: _row(torch.float8_e4m3fn, rows),
    "NVFP4": _nvfp4,
    "NF4_64": lambda rows: _looked_up("NF4_64", NF4, rows),
    "FP4_64": lambda rows: _looked_up("FP4_64", FP4, rows),
}
