"""Floats of few bits on a GPU, made of their bits: not every card converts them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def e4m3(bits):
    """float32 of a float of 8 bits; that of the two which are no number is 480, or the negative of it."""
    bits = bits.to(tl.int32)
    wide = ((bits & 128) << 24 | (bits & 127) << 20).to(tl.float32, bitcast=True)
    return wide * 1.329227995784916e36  # 2**120


@triton.jit
def e2m1(bits):
    """float32 of a float of 4 bits, in an int32."""
    most = bits & 7
    wide = ((most // 2 + 126) << 23 | most % 2 << 22).to(tl.float32, bitcast=True)
    value = tl.where(most < 2, most.to(tl.float32) * 0.5, wide)
    return tl.where(bits & 8 == 0, value, -value)
