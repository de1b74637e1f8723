"""What a Gated DeltaNet computes before and behind its delta rule, on a GPU in a launch each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.kernels.dependent_triton import wait_for_previous
from workers.kernels.launch import Launcher

ELEMENTS = 1024  # of a program


@triton.jit
def decay_kernel(
    beta,  # [tokens, heads], rows of which are strided
    step,  # the same
    bias,  # [heads] float32
    rate,  # [heads] float32, the logarithm
    decay,  # [tokens, heads] float32
    opened,  # the same, of beta
    heads,
    stride,  # elements, from one token's to the next
    BLOCK: tl.constexpr,
):
    wait_for_previous()
    token, h = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    there = h < heads
    x = tl.load(step + token * stride + h, mask=there, other=0.0).to(tl.float32)
    x += tl.load(bias + h, mask=there, other=0.0)
    small = tl.exp(-tl.abs(x))
    more = 1.0 + small  # of which the rounding is made good: log(1 + small) to the last digits
    softplus = tl.maximum(x, 0.0) + tl.where(more == 1.0, small, tl.log(more) * small / (more - 1.0))
    into = token * heads + h
    grown = -tl.exp(tl.load(rate + h, mask=there, other=0.0))
    tl.store(decay + into, grown * softplus, mask=there)
    gate = tl.load(beta + token * stride + h, mask=there, other=0.0).to(tl.float32)
    tl.store(opened + into, 1.0 / (1.0 + tl.exp(-gate)), mask=there)


@triton.jit
def gated_norm_kernel(
    x,  # [tokens, heads, size] float32
    gates,  # [tokens, heads * size], rows of which are strided
    weight,  # [size]
    y,  # [tokens, heads * size]
    heads,
    stride,  # elements, from one token's gates to the next
    eps,
    SIZE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    wait_for_previous()
    token, d = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_D)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    there = (h < heads)[:, None] & (d < SIZE)[None, :]
    at = h[:, None] * SIZE + d[None, :]
    value = tl.load(x + token * heads * SIZE + at, mask=there, other=0.0)
    value *= tl.rsqrt(tl.sum(value * value, 1) / SIZE + eps)[:, None]
    kept = value.to(y.dtype.element_ty).to(tl.float32)  # as the norm has it
    kept *= tl.load(weight + d, mask=d < SIZE, other=0.0).to(tl.float32)[None, :]
    kept = kept.to(y.dtype.element_ty).to(tl.float32)
    gate = tl.load(gates + token * stride + at, mask=there, other=0.0).to(tl.float32)
    kept *= gate / (1.0 + tl.exp(-gate))
    tl.store(y + token * heads * SIZE + at, kept.to(y.dtype.element_ty), mask=there)


DECAY, GATED_NORM = Launcher(decay_kernel), Launcher(gated_norm_kernel)


def decay_and_beta(beta: Tensor, step: Tensor, bias: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """See `workers.kernels.fused.decay_and_beta`."""
    decay, opened = (torch.empty(beta.shape, dtype=torch.float32, device=beta.device) for _ in range(2))
    heads = beta.shape[1]
    DECAY(
        (len(beta), 1, 1),
        *(beta, step, bias, rate, decay, opened, heads, beta.stride(0), triton.next_power_of_2(heads)),
        num_warps=1,
    )
    return decay, opened


def gated_norm(x: Tensor, gates: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `workers.kernels.fused.gated_norm`."""
    tokens, heads, size = x.shape
    y = torch.empty(gates.shape, dtype=gates.dtype, device=gates.device)
    block_d = triton.next_power_of_2(size)
    block_h = max(1, min(triton.next_power_of_2(heads), ELEMENTS // block_d))
    GATED_NORM(
        (tokens, triton.cdiv(heads, block_h), 1),
        *(x, gates, weight, y, heads, gates.stride(0), eps, size, block_h, block_d),
        num_warps=4,
    )
    return y
