"""Plain types to blocks: what `quantization` makes of a checkpoint, in the threads that read it.

Of some twenty ways to round a group the one with the least error is taken, as ggml's reference has it for
Q6_K (`ggml-quants.c`: `make_qx_quants`), where large elements weigh more, and for Q4_K
(`make_qkx2_quants`); but here all elements of that weigh the same, and the neighbours of its scales in 6
bits are tried, too: a model is nearer by a tenth to what it was. Of Q8_0, where ggml takes one way, so that
what had fewer bits before loses nothing. `quantise.c` does the same without a tensor for each step; where
an install could not build it, or the CPU has not what it takes, it is done here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from workers.checkpoints.blocks import FORMATS
from workers.weights import built

VERSION = 3  # of the bits that come out: copies of another one are made again
AT_ONCE = 1 << 16  # elements: what is tried with them stays in the cache
TINY = 1e-15  # a group of nothing larger is zeros
NEIGHBOURS = (0, -1, 1)  # of a scale in 6 bits, in the order in which they are tried
LEAST = 1e-36  # of what is divided by: some hundred times 1 / LEAST is still a float32

STEM = "_quantise"
SOURCE = Path(__file__).with_name("quantise.c")
SUPER = 256  # elements that quantise.c takes at once
KINDS = ["Q8_0", "Q6_K", "Q4_K"]  # in the order of the numbers that it gives them
TYPES = [torch.float32, torch.bfloat16, torch.float16]


def quantise(name: str, rows: Tensor, into: Tensor | None = None) -> Tensor:
    """Rows in the format of that name, one of QUANTISERS.

    Args:
        rows: `[rows, columns]` of a plain type.
        into: `[rows, row bytes]` uint8, contiguous and on the CPU; None: a new one.
    """
    count, columns = rows.shape
    if into is None:
        into = torch.empty(count, FORMATS[name].row_bytes(columns), dtype=torch.uint8)
    if name in KINDS and rows.numel() % SUPER == 0 and (found := library()) is not None:
        rows = rows.contiguous()
        kind, dtype, supers = KINDS.index(name), TYPES.index(rows.dtype), rows.numel() // SUPER
        found.quantise_blocks(kind, rows.data_ptr(), dtype, supers, into.data_ptr())
        return into
    at_once = max(1, AT_ONCE // columns)
    for part, made in zip(rows.split(at_once), into.split(at_once), strict=True):
        made.copy_(QUANTISERS[name](part.float()))
    return into


@cache
def library() -> ctypes.CDLL | None:
    """The library beside this file; None: it was not built, or cannot be used here."""
    path = built.find(SOURCE.parent, STEM)
    return None if path is None else load(path)


def load(path: Path) -> ctypes.CDLL | None:
    """The library at `path`; None where it cannot be used, or this CPU has not what it takes."""
    found = built.load(path, [SOURCE])
    if found is None:
        return None
    number, size, pointer = ctypes.c_int, ctypes.c_long, ctypes.c_void_p
    found.quantise_blocks.argtypes = (number, pointer, number, size, pointer)
    found.quantise_blocks.restype = None
    return found if found.quantise_supported() else None


def _inverse(x: Tensor) -> Tensor:
    """0 of what is nothing, or next to it: of an infinity and a 0 would come NaN."""
    return torch.where(x.abs() < LEAST, 0.0, 1 / x)


def _nearest(x: Tensor) -> Tensor:
    """To the next integer, halves to the even one, as ggml's `nearest_int`."""
    return x.round()


def _half(x: Tensor) -> tuple[Tensor, Tensor]:
    """As float16, in float32 and in bytes `[..., 2]`."""
    half = x.half()
    return half.float(), half.unsqueeze(-1).contiguous().view(torch.uint8)


def _q8_0(rows: Tensor) -> Tensor:
    """Of the scales that make the largest of a group -127, -128 and so on to -113, the one of least error."""
    x = rows.view(len(rows), -1, 32)
    largest = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    scale, best = torch.zeros_like(largest), torch.full_like(largest, torch.inf)
    for most in (127, 128, *range(126, 112, -1)):
        d = (largest / -most).half().float()
        q = _nearest(x * _inverse(d)).clamp_(-128, 127)
        error = (x - q * d).square_().sum(-1, keepdim=True)
        scale, best = torch.where(error < best, d, scale), torch.where(error < best, error, best)
    q = _nearest(x * _inverse(scale)).clamp_(-128, 127).to(torch.int8)
    return torch.cat([_half(scale[..., 0])[1], q.view(torch.uint8)], dim=-1).view(len(rows), -1)


def _scaled(most: float, kind: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Groups of 128 that share a float32, after all of a row's numbers of one byte."""

    def quantiser(rows: Tensor) -> Tensor:
        groups = rows.view(len(rows), -1, 128)
        d = groups.abs().amax(-1) / most
        q = (groups * _inverse(d).unsqueeze(-1)).clamp(-most, most)
        q = (q.round() if kind == torch.int8 else q).to(kind).view(torch.uint8)
        return torch.cat([q.view(len(rows), -1), d.contiguous().view(torch.uint8)], dim=-1)

    return quantiser


def _symmetric(x: Tensor, most: int) -> Tensor:  # [..., n] -> [...]
    """The scale with which groups are rounded best to integers from `-most` to `most - 1`; weights are x²."""
    largest = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    weights = x * x
    best, scale = torch.zeros_like(largest[..., 0]), torch.zeros_like(largest[..., 0])
    for step in (0, *(step for step in range(-9, 10) if step)):
        q = _nearest(x * (-(most + 0.1 * step) * _inverse(largest))).clamp_(-most, most - 1)
        weighted = weights * q
        sum_xq, sum_qq = (weighted * x).sum(-1), (weighted * q).sum(-1)
        found = sum_xq * _inverse(sum_qq)
        better = sum_xq * found > best if step else sum_qq > 0
        best, scale = torch.where(better, sum_xq * found, best), torch.where(better, found, scale)
    return torch.where(largest[..., 0].abs() < TINY, 0.0, scale)


def _q6_k(rows: Tensor) -> Tensor:
    x = rows.view(-1, 16, 16)
    scales = _symmetric(x, 32)
    largest = scales.gather(-1, scales.abs().argmax(-1, keepdim=True))
    nothing = largest.abs() < TINY
    inverse = torch.where(nothing, 0.0, -128 * _inverse(largest))
    d, d_bytes = _half(_inverse(inverse)[:, 0])
    small = _nearest(inverse * scales).clamp(max=127)
    q = _nearest(x * _inverse(d.unsqueeze(-1) * small).unsqueeze(-1)).clamp_(-32, 31) + 32
    q = torch.where(nothing.unsqueeze(-1), 0.0, q).to(torch.uint8).view(-1, 2, 4, 32)
    low = q[:, :, :2] & 15 | (q[:, :, 2:] & 15) << 4
    high = q[:, :, 0] >> 4 | q[:, :, 1] >> 4 << 2 | q[:, :, 2] >> 4 << 4 | q[:, :, 3] >> 4 << 6
    parts = [low.flatten(1), high.flatten(1), small.to(torch.int8).view(torch.uint8), d_bytes]
    return torch.cat(parts, dim=1).view(len(rows), -1)


def _with_minimum(x: Tensor, most: int) -> tuple[Tensor, Tensor]:  # [..., n] -> [...] both
    """Scale and minimum, at most 0, with which groups are rounded best to integers from 0 to `most`."""
    least, largest = x.amin(-1).clamp(max=0), x.amax(-1)
    span, count = (largest - least).unsqueeze(-1), x.shape[-1]
    sum_x, above = x.sum(-1), x - least.unsqueeze(-1)

    def rounded(steps: float) -> Tensor:
        return _nearest(above * (steps * _inverse(span))).clamp_(0, most)

    def error(q: Tensor, scale: Tensor, least: Tensor) -> Tensor:
        return (q * scale.unsqueeze(-1) + least.unsqueeze(-1) - x).square_().sum(-1)

    scale, minimum = span[..., 0] / most, least
    best = error(rounded(most), scale, minimum)
    for step in range(21):
        q = rounded(most - 1 + 0.1 * step)
        sum_q, sum_qq, sum_xq = q.sum(-1), (q * q).sum(-1), (x * q).sum(-1)
        inverse = _inverse((count * sum_qq - sum_q * sum_q).clamp(min=0))
        this_scale = (count * sum_xq - sum_x * sum_q) * inverse
        this_least = (sum_qq * sum_x - sum_q * sum_xq) * inverse
        above_zero = this_least > 0
        this_scale = torch.where(above_zero, sum_xq * _inverse(sum_qq), this_scale)
        this_least = this_least.clamp(max=0)
        this_error = error(q, this_scale, this_least)
        better = (this_error < best) & (inverse > 0)
        best = torch.where(better, this_error, best)
        scale, minimum = torch.where(better, this_scale, scale), torch.where(better, this_least, minimum)
    return scale, minimum


def _q4_k(rows: Tensor) -> Tensor:
    x = rows.view(-1, 8, 32)
    scales, minima = _with_minimum(x, 15)
    minima = -minima
    d, d_bytes = _half(scales.amax(-1) / 63)
    least, least_bytes = _half(minima.amax(-1) / 63)

    def six_bits(values: Tensor) -> Tensor:  # [n, 8] float32
        return _nearest(values * (63 * _inverse(values.amax(-1, keepdim=True)))).clamp_(0, 63)

    def rounded(s: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers with such a scale and minimum, and their error."""
        by, lift = (d.unsqueeze(-1) * s).unsqueeze(-1), (least.unsqueeze(-1) * m).unsqueeze(-1)
        q = _nearest((x + lift) * _inverse(by)).clamp_(0, 15)
        return q, (q * by - lift - x).square_().sum(-1)

    first, first_least = six_bits(scales), six_bits(minima)
    small, small_least, best = first, first_least, torch.full_like(first, torch.inf)
    for more, more_least in product(NEIGHBOURS, repeat=2):
        s, m = (first + more).clamp_(0, 63), (first_least + more_least).clamp_(0, 63)
        better = (error := rounded(s, m)[1]) < best
        best = torch.where(better, error, best)
        small, small_least = torch.where(better, s, small), torch.where(better, m, small_least)
    q = rounded(small, small_least)[0].to(torch.uint8).view(-1, 4, 2, 32)
    s, m = small.to(torch.uint8), small_least.to(torch.uint8)
    packed = [s[:, :4] | s[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6, s[:, 4:] & 15 | m[:, 4:] << 4]
    numbers = (q[:, :, 0] | q[:, :, 1] << 4).flatten(1)
    return torch.cat([d_bytes, least_bytes, *packed, numbers], dim=1).view(len(rows), -1)


QUANTISERS: dict[str, Callable[[Tensor], Tensor]] = {
    "Q8_0": _q8_0,
    "Q6_K": _q6_k,
    "Q4_K": _q4_k,
    "INT8_128": _scaled(127.0, torch.int8),
    "FP8_128": _scaled(448.0, torch.float8_e4m3fn),
}
