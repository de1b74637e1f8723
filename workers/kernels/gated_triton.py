"""Gates, and the product with what they open, on a GPU: in one launch, or where a product ends."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from workers.checkpoints.experts import Clamp
from workers.kernels.dependent_triton import wait_for_previous
from workers.kernels.gates import ACTIVATIONS, Gates
from workers.kernels.launch import Launcher

BLOCK = 1024  # elements of a row that a program has
NONE = -1  # in place of an activation's number: there are no gates


class Known(NamedTuple):
    """What a kernel is told of gates, in the order of its arguments."""

    alpha: float = 0.0  # of a clamp
    limit: float = 0.0
    activation: int = NONE
    interleaved: bool = False

    @classmethod
    def of(cls, gates: Gates | None) -> Known:
        if gates is None:
            return cls()
        if isinstance(gates.how, Clamp):
            return cls(gates.how.alpha, gates.how.limit, len(ACTIVATIONS), gates.interleaved)
        return cls(activation=ACTIVATIONS.index(gates.how), interleaved=gates.interleaved)


@triton.jit
def opened(gate, up, alpha, limit, ACTIVATION: tl.constexpr):
    """The product of both, float32, once the gate is activated."""
    if ACTIVATION == 0:  # silu
        gate = gate / (1.0 + tl.exp(-gate))
    elif ACTIVATION == 1:  # gelu_tanh, by tanh(z) = 1 - 2 / (exp(2 z) + 1)
        z = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
        gate *= 1.0 - 1.0 / (tl.exp(z) + 1.0)
    elif ACTIVATION == 2:  # gelu
        gate *= 0.5 + 0.5 * tl.erf(gate * 0.7071067811865476)
    else:  # clamped; what is no number stays none
        gate = tl.where(gate > limit, limit, gate)
        up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up)) + 1.0
        gate = gate / (1.0 + tl.exp(-alpha * gate))
    return gate * up


@triton.jit
def row_of(program, num_rows, ACTIVATION: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK_N: tl.constexpr):
    """The rows of a weight that a program of its product has, `[BLOCK_N]`; those behind the last are none.
    Where they are gates and what they open, it has as many of both, gates first."""
    i = tl.arange(0, BLOCK_N)
    if ACTIVATION < 0:
        return program * BLOCK_N + i
    else:
        HALF: tl.constexpr = BLOCK_N // 2
        n, is_other = program * HALF + i % HALF, i // HALF
        row = 2 * n + is_other if INTERLEAVED else is_other * (num_rows // 2) + n
        return tl.where(n < num_rows // 2, row, num_rows)


@triton.jit
def store_rows(into, total, row, num_rows, mine, alpha, limit, ACTIVATION: tl.constexpr):
    """Keep what comes of such rows, `total` `[BLOCK_N, N]` float32, of the tokens that are `mine`. Gates and
    what they open are rounded first, as if they were kept.

    Args:
        into: `[1, N]` pointers, where these tokens begin.
        row: `[BLOCK_N]`, as of `row_of`.
    """
    DTYPE: tl.constexpr = into.dtype.element_ty
    if ACTIVATION < 0:
        tl.store(into + row[:, None], total.to(DTYPE), mask=mine[None, :] & (row < num_rows)[:, None])
    else:
        HALF: tl.constexpr = total.shape[0] // 2
        both = tl.reshape(total.to(DTYPE).to(tl.float32), (2, HALF, total.shape[1]))
        gate, up = tl.split(tl.permute(both, (1, 2, 0)))
        n = tl.program_id(0) * HALF + tl.arange(0, HALF)
        result = opened(gate, up, alpha, limit, ACTIVATION).to(DTYPE)
        tl.store(into + n[:, None], result, mask=mine[None, :] & (n < num_rows // 2)[:, None])


@triton.jit
def gated_kernel(
    gate_up,  # [tokens, 2 * inner], each row of which is contiguous
    y,  # [tokens, inner]
    inner,
    stride,  # elements, of a row of `gate_up`
    alpha,
    limit,
    ACTIVATION: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    wait_for_previous()
    row, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = i < inner
    if INTERLEAVED:  # as they stand, so that a load is of many
        each = tl.program_id(1) * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
        both = tl.load(gate_up + row * stride + each, mask=each < 2 * inner, other=0.0)
        gate, up = tl.split(tl.reshape(both, (BLOCK, 2)))
    else:
        gate = tl.load(gate_up + row * stride + i, mask=there, other=0.0)
        up = tl.load(gate_up + row * stride + inner + i, mask=there, other=0.0)
    result = opened(gate.to(tl.float32), up.to(tl.float32), alpha, limit, ACTIVATION)
    tl.store(y + row * inner + i, result.to(y.dtype.element_ty), mask=there)


LAUNCH = Launcher(gated_kernel)


def gated(gate_up: Tensor, gates: Gates) -> Tensor:
    """See `workers.kernels.fused.gated`."""
    if gate_up.stride(1) != 1:
        gate_up = gate_up.contiguous()
    inner = gate_up.shape[1] // 2
    y = gate_up.new_empty(len(gate_up), inner)
    grid = (len(gate_up), triton.cdiv(inner, BLOCK), 1)
    LAUNCH(grid, gate_up, y, inner, gate_up.stride(0), *Known.of(gates), BLOCK, num_warps=4)
    return y
