"""Root mean square normalisation on a GPU, with the sum before or after it in the same launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.kernels.dependent_triton import wait_for_previous
from workers.kernels.launch import Launcher


@triton.jit
def norm_kernel(
    x,  # [rows, size], each row of which is contiguous
    beside,  # the same: what is added to x, or to its norm; or anything
    weight,  # [size]
    total,  # [rows, size]: x and what was added to it; or anything
    y,  # [rows, size]
    x_stride,  # elements, of a row
    beside_stride,
    eps,
    offset,  # of the weight
    SIZE: tl.constexpr,
    BEFORE: tl.constexpr,  # `beside` is added to x
    AFTER: tl.constexpr,  # `beside` is added to the norm
    BLOCK: tl.constexpr,
):
    wait_for_previous()
    row, i = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    there = i < SIZE
    value = tl.load(x + row * x_stride + i, mask=there, other=0.0).to(tl.float32)
    if BEFORE:
        value += tl.load(beside + row * beside_stride + i, mask=there, other=0.0).to(tl.float32)
        kept = value.to(y.dtype.element_ty)
        tl.store(total + row * SIZE + i, kept, mask=there)
        value = kept.to(tl.float32)  # as the next layer reads it
    scale = tl.rsqrt(tl.sum(value * value, 0) / SIZE + eps)
    result = value * scale * (tl.load(weight + i, mask=there, other=0.0).to(tl.float32) + offset)
    if AFTER:
        result += tl.load(beside + row * beside_stride + i, mask=there, other=0.0).to(tl.float32)
    tl.store(y + row * SIZE + i, result.to(y.dtype.element_ty), mask=there)


LAUNCH = Launcher(norm_kernel)


def norm(x: Tensor, weight: Tensor, eps: float, offset: float, residual: Tensor | None) -> Tensor:
    """See `workers.kernels.fused.norm`."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = _rows(x)
    beside = rows if residual is None else _rows(residual)
    _launch(rows, beside, weight, y, y, eps, offset, False, residual is not None)
    return y


def norm_of_sum(x: Tensor, y: Tensor, weight: Tensor, eps: float, offset: float) -> tuple[Tensor, Tensor]:
    """See `workers.kernels.fused.norm_of_sum`."""
    total, normed = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    _launch(_rows(x), _rows(y), weight, total, normed, eps, offset, True, False)
    return total, normed


def _rows(x: Tensor) -> Tensor:  # [..., size] -> [rows, size]
    x = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


def _launch(
    x: Tensor,
    beside: Tensor,
    weight: Tensor,
    total: Tensor,
    y: Tensor,
    eps: float,
    offset: float,
    before: bool,
    after: bool,
) -> None:
    size = x.shape[1]
    block = triton.next_power_of_2(size)
    LAUNCH(
        (len(x), 1, 1),
        *(
            x,
            beside,
            weight,
            total,
            y,
            x.stride(0),
            beside.stride(0),
            eps,
            offset,
            size,
            before,
            after,
            block,
        ),
        num_warps=warps(block),
    )


def warps(block: int) -> int:
    """Of a program that has a row of so many elements: 8 or 16 of them a thread."""
    return min(16, max(1, block // 256))
