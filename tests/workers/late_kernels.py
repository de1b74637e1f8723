"""Kernels that do not wait for the one before them, or not at once; needs Triton."""

from __future__ import annotations

import triton
from triton import language as tl

from workers.kernels.dependent_triton import wait_for_previous


@triton.jit
def forgets(x, y, n):
    tl.store(y, tl.load(x))


@triton.jit
def reads(x, y, n):
    value = tl.load(x)
    wait_for_previous()
    tl.store(y, value)


@triton.jit
def writes(x, y, n):
    tl.store(y, 1.0)
    wait_for_previous()
    tl.store(y, tl.load(x))


@triton.jit
def returns(x, y, n):
    if tl.program_id(0) >= n:
        return
    wait_for_previous()
    tl.store(y, tl.load(x))


@triton.jit
def chooses(x, y, n):
    if n > 1:
        wait_for_previous()
    tl.store(y, tl.load(x))
