"""An activation and the product with what it gates, on a GPU in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from workers.kernels.dependent_triton import wait_for_previous
from workers.kernels.launch import Launcher

BLOCK = 1024  # elements of a row that a program has


@triton.jit
def gated_kernel(
    gate_up,  # [tokens, 2 * inner], each row of which is contiguous
    y,  # [tokens, inner]
    inner,
    stride,  # elements, of a row of `gate_up`
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    wait_for_previous()
    row, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = i < inner
    gate = tl.load(gate_up + row * stride + i, mask=there, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + inner + i, mask=there, other=0.0).to(tl.float32)
    if ACTIVATION == 0:  # silu
        gate = gate / (1.0 + tl.exp(-gate))
    elif ACTIVATION == 1:  # gelu_tanh, by tanh(z) = 1 - 2 / (exp(2 z) + 1)
        z = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
        gate *= 1.0 - 1.0 / (tl.exp(z) + 1.0)
    else:  # gelu
        gate *= 0.5 + 0.5 * tl.erf(gate * 0.7071067811865476)
    tl.store(y + row * inner + i, (gate * up).to(y.dtype.element_ty), mask=there)


LAUNCH = Launcher(gated_kernel)


def gated(gate_up: Tensor, activation: int) -> Tensor:
    """See `workers.kernels.fused.gated`."""
    if gate_up.stride(1) != 1:
        gate_up = gate_up.contiguous()
    inner = gate_up.shape[1] // 2
    y = gate_up.new_empty(len(gate_up), inner)
    grid = (len(gate_up), triton.cdiv(inner, BLOCK), 1)
    LAUNCH(grid, gate_up, y, inner, gate_up.stride(0), activation, BLOCK, num_warps=4)
    return y
