"""Keys and values in 8 bits on a GPU: `workers.cache.quantised`, as kernels need it.

The bits of e4m3 are made and read as whole numbers: cards before the 4090 have no instruction for them, and
all of them come to the same.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

WHOLE, INT8, FP8 = range(3)  # how keys and values are kept: in a type of their own, or in codes
KINDS = {torch.int8: INT8, torch.uint8: FP8}  # of codes; all other types are `WHOLE`
_ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23: a sum with it is a whole number, ties to even
_INT8 = tl.constexpr(INT8)


@triton.jit
def quantised(x, KIND: tl.constexpr):
    """Codes and scales of rows of float32: `[rows, size]` and `[rows]`."""
    MOST: tl.constexpr = 127.0 if KIND == _INT8 else 448.0
    # a sum of zeros, unless there is a number that is none, which a maximum may pass over
    scale = ((tl.max(tl.abs(x), 1) + tl.sum(x * 0.0, 1)) * (1.0 / MOST)).to(tl.float16)
    wide = scale.to(tl.float32)
    x *= tl.where(wide > 0.0, 1.0 / tl.where(wide > 0.0, wide, 1.0), 0.0)[:, None]
    x = tl.minimum(tl.maximum(x, -MOST), MOST)
    if KIND == _INT8:
        code = ((x + _ROUND) - _ROUND).to(tl.int8)
    else:
        size = tl.abs(x)
        bits = size.to(tl.int32, bitcast=True)
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)  # exponents begin at -7, not -127
        small = ((size * 512.0 + _ROUND) - _ROUND).to(tl.int32)  # below 2^-6 they are multiples of 2^-9
        code = (tl.where(size < 0.015625, small, normal) | tl.where(x < 0.0, 0x80, 0)).to(tl.uint8)
    return code, scale  # at one place: Triton 3.6 takes the types of the first of several


@triton.jit
def number_of(code, TO: tl.constexpr, KIND: tl.constexpr):
    """What codes stand for, without their scales, and of FP8 the 256th part of it: exact in any type."""
    if KIND == _INT8:
        return code.to(TO)
    bits = code.to(tl.int16)
    half = ((bits & 0x7F) << 7) | ((bits & 0x80) << 8)  # float16 has the same layout, and exponents from -15
    return half.to(tl.float16, bitcast=True).to(TO)


@triton.jit
def scale_of(scale, KIND: tl.constexpr):
    """What `number_of` is to be multiplied with."""
    return scale.to(tl.float32) * (1.0 if KIND == _INT8 else 256.0)
