"""What the bytes of a block say: to float32, exactly as ggml's reference has it (`ggml-quants.c`).

Each function takes blocks `[n, nbytes]` uint8, on any device, and gives their elements `[n, elements]`.
Formats whose rows share something, or do not lie in blocks, have a function of whole rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from workers.checkpoints.blocks import FORMATS
from workers.weights import codebooks
from workers.weights import rows as scaled_rows
from workers.weights.codebooks import half
from workers.weights.rows import constant

ByBlock = Callable[[Tensor], Tensor]  # [n, nbytes] uint8 -> [n, elements] float32
ByRow = Callable[[Tensor], Tensor]  # [rows, row bytes] uint8 -> [rows, columns] float32


def dequantise(name: str, rows: Tensor) -> Tensor:  # [rows, row bytes] uint8 -> [rows, columns] float32
    """Rows in the format of that name."""
    if name in BY_ROW:
        return BY_ROW[name](rows)
    form = FORMATS[name]
    blocks = rows.reshape(-1, form.nbytes)
    return BY_BLOCK[name](blocks).view(len(rows), form.columns(rows.shape[1]))


def _split(data: Tensor, width: int, *shifts: int) -> Tensor:  # [n, parts, len(shifts), width] uint8
    """Each run of `width` bytes, shifted right by each of `shifts`."""
    by = constant(shifts, torch.uint8, data.device).view(-1, 1)
    return data.reshape(len(data), -1, 1, width) >> by


def _nibbles(data: Tensor, width: int) -> Tensor:  # [n, 2 * bytes] uint8
    """The low halves of each run of `width` bytes, and then the high ones."""
    return (_split(data, width, 0, 4) & 15).reshape(len(data), -1)


def _bits(data: Tensor) -> Tensor:  # [n, 8 * bytes] uint8, the lowest first
    return (data.unsqueeze(-1) >> _counting(8, data) & 1).reshape(len(data), -1)


def _counting(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=torch.uint8, device=like.device)


def _f32(blocks: Tensor) -> Tensor:
    return blocks.contiguous().view(torch.float32)


def _f16(blocks: Tensor) -> Tensor:
    return blocks.contiguous().view(torch.float16).float()


def _bf16(blocks: Tensor) -> Tensor:
    return blocks.contiguous().view(torch.bfloat16).float()


def _q4_0(blocks: Tensor) -> Tensor:
    return half(blocks, 0) * (_nibbles(blocks[:, 2:], 16).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return half(blocks, 0) * _nibbles(blocks[:, 4:], 16).float() + half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    q = _nibbles(blocks[:, 6:], 16) | _bits(blocks[:, 2:6]) << 4
    return half(blocks, 0) * (q.float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    q = _nibbles(blocks[:, 8:], 16) | _bits(blocks[:, 4:8]) << 4
    return half(blocks, 0) * q.float() + half(blocks, 2)


def _q1_0(blocks: Tensor) -> Tensor:
    return half(blocks, 0) * (_bits(blocks[:, 2:]).float() * 2 - 1)


def _q2_0(blocks: Tensor) -> Tensor:
    q = (blocks[:, 2:].unsqueeze(-1) >> 2 * _counting(4, blocks) & 3).reshape(-1, 64)
    return half(blocks, 0) * (q.float() - 1)


def _q8_0(blocks: Tensor) -> Tensor:
    return half(blocks, 0) * blocks[:, 2:].view(torch.int8).float()


def _q2_k(blocks: Tensor) -> Tensor:
    scales, d, least = blocks[:, :16], half(blocks, 80), half(blocks, 82)
    q = (_split(blocks[:, 16:80], 32, 0, 2, 4, 6) & 3).reshape(-1, 16, 16).float()
    scaled = (d * (scales & 15).float()).unsqueeze(-1) * q
    return (scaled - (least * (scales >> 4).float()).unsqueeze(-1)).view(-1, 256)


def _q3_k(blocks: Tensor) -> Tensor:
    low = (_split(blocks[:, 96:104], 8, 0, 4) & 15).reshape(-1, 16)
    high = (_split(blocks[:, 104:108], 4, 0, 2, 4, 6) & 3).reshape(-1, 16)
    scales = (low | high << 4).float() - 32
    q = (_split(blocks[:, 32:96], 32, 0, 2, 4, 6) & 3).reshape(-1, 16, 16).float()
    is_low = (_split(blocks[:, :32], 32, *range(8)) & 1 ^ 1).reshape(-1, 16, 16).float()
    return ((half(blocks, 108) * scales).unsqueeze(-1) * (q - 4 * is_low)).view(-1, 256)


def _six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:  # [n, 12] uint8 -> [n, 8] float32 both
    """The scales and the minima of Q4_K and Q5_K: four whole ones of each, then four in pieces."""
    d, m, pieces = packed.view(-1, 3, 4).unbind(1)
    scales = torch.cat([d & 63, pieces & 15 | d >> 2 & 48], dim=1)
    minima = torch.cat([m & 63, pieces >> 4 | m >> 2 & 48], dim=1)
    return scales.float(), minima.float()


def _q4_k(blocks: Tensor) -> Tensor:
    scales, minima = _six_bits(blocks[:, 4:16].contiguous())
    q = _nibbles(blocks[:, 16:], 32).view(-1, 8, 32).float()
    scaled = (half(blocks, 0) * scales).unsqueeze(-1) * q
    return (scaled - (half(blocks, 2) * minima).unsqueeze(-1)).view(-1, 256)


def _q5_k(blocks: Tensor) -> Tensor:
    scales, minima = _six_bits(blocks[:, 4:16].contiguous())
    high = (_split(blocks[:, 16:48], 32, *range(8)) & 1).reshape(-1, 256)
    q = (_nibbles(blocks[:, 48:], 32) | high << 4).view(-1, 8, 32).float()
    scaled = (half(blocks, 0) * scales).unsqueeze(-1) * q
    return (scaled - (half(blocks, 2) * minima).unsqueeze(-1)).view(-1, 256)


def _q6_k(blocks: Tensor) -> Tensor:
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float()
    high = (_split(blocks[:, 128:192], 32, 0, 2, 4, 6) & 3).reshape(-1, 256)
    q = (_nibbles(blocks[:, :128], 64) | high << 4).view(-1, 16, 16).float() - 32
    return ((half(blocks, 208) * scales).unsqueeze(-1) * q).view(-1, 256)


def _ternary(packed: Tensor, width: int, digits: int) -> Tensor:  # [n, digits * bytes] uint8
    """Numbers in base 3, of which each byte holds `digits` as a fraction of 256."""
    powers = 3 ** torch.arange(digits, dtype=torch.uint8, device=packed.device)
    turned = packed.reshape(len(packed), -1, 1, width) * powers.view(-1, 1)
    return turned.reshape(len(packed), -1)


def _tq1_0(blocks: Tensor) -> Tensor:
    parts = ((0, 32, 32, 5), (32, 48, 16, 5), (48, 52, 4, 4))
    q = torch.cat([_ternary(blocks[:, a:b], width, digits) for a, b, width, digits in parts], dim=1)
    return half(blocks, 52) * ((q.int() * 3 >> 8) - 1).float()


def _tq2_0(blocks: Tensor) -> Tensor:
    q = (_split(blocks[:, :64], 32, 0, 2, 4, 6) & 3).reshape(-1, 256)
    return half(blocks, 64) * (q.float() - 1)


NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # twice e2m1's values


def _looked_up(table: tuple[int, ...], q: Tensor) -> Tensor:  # float32, in the shape of `q`
    return constant(table, torch.float32, q.device)[q.int()]


def _iq4_nl(blocks: Tensor) -> Tensor:
    return half(blocks, 0) * _looked_up(NL, _nibbles(blocks[:, 2:], 16))


def _iq4_xs(blocks: Tensor) -> Tensor:
    high = (blocks[:, 2:4].unsqueeze(-1) >> _counting(4, blocks) * 2 & 3).reshape(-1, 8)
    low = (blocks[:, 4:8].unsqueeze(-1) >> _counting(2, blocks) * 4 & 15).reshape(-1, 8)
    scales = (low | high << 4).float() - 32
    q = _looked_up(NL, _nibbles(blocks[:, 8:], 16)).view(-1, 8, 32)
    return ((half(blocks, 0) * scales).unsqueeze(-1) * q).view(-1, 256)


def _mxfp4(blocks: Tensor) -> Tensor:
    e = blocks[:, :1].int()
    half = torch.where(e < 2, 0x00200000 << e.clamp(max=1), (e - 1) << 23).view(torch.float32)
    return half * _looked_up(FP4, _nibbles(blocks[:, 1:], 16))


BY_BLOCK: dict[str, ByBlock] = {
    "F32": _f32,
    "F16": _f16,
    "BF16": _bf16,
    "Q1_0": _q1_0,
    "Q2_0": _q2_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
    **codebooks.BY_BLOCK,
}


def _scaled(rows: Tensor, kind: torch.dtype) -> Tensor:
    """Numbers of one byte, and then a float32 for every 128 of them."""
    columns = FORMATS["INT8_128"].columns(rows.shape[1])
    numbers = rows[:, :columns].view(kind).float().view(len(rows), -1, 128)
    return (rows[:, columns:].contiguous().view(torch.float32).unsqueeze(-1) * numbers).view(len(rows), -1)


BY_ROW: dict[str, ByRow] = {
    "INT8_128": lambda rows: _scaled(rows, torch.int8),
    "FP8_128": lambda rows: _scaled(rows, torch.float8_e4m3fn),
    **scaled_rows.BY_ROW,
}
