"""What a token's experts give, and what stands beside them, summed on a GPU in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from workers.kernels.dependent_triton import wait_for_previous
from workers.kernels.launch import Launcher

BLOCK = 512  # columns that a program has


@triton.jit
def chosen_kernel(
    pairs,  # [tokens * CHOSEN, columns]
    beside,  # [tokens, columns], or anything
    gates,  # [tokens, 1], or anything
    y,  # [tokens, columns]
    columns,
    CHOSEN: tl.constexpr,
    HAS_BESIDE: tl.constexpr,
    HAS_GATES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    wait_for_previous()
    token, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there, total = i < columns, tl.zeros((BLOCK,), tl.float32)
    at = pairs + token * CHOSEN * columns + i
    for n in tl.static_range(CHOSEN):
        total += tl.load(at + n * columns, mask=there, other=0.0).to(tl.float32)
    if HAS_BESIDE:
        shared = tl.load(beside + token * columns + i, mask=there, other=0.0).to(tl.float32)
        if HAS_GATES:
            shared /= 1.0 + tl.exp(-tl.load(gates + token).to(tl.float32))
        total += shared
    tl.store(y + token * columns + i, total.to(y.dtype.element_ty), mask=there)


LAUNCH = Launcher(chosen_kernel)


def sum_of_chosen(pairs: Tensor, chosen: int, beside: Tensor | None, gates: Tensor | None) -> Tensor:
    """See `workers.kernels.fused.sum_of_chosen`."""
    columns = pairs.shape[1]
    y = pairs.new_empty(len(pairs) // chosen, columns)
    grid = (len(y), triton.cdiv(columns, BLOCK), 1)
    LAUNCH(
        grid,
        *(pairs, y if beside is None else beside.contiguous(), y if gates is None else gates.contiguous()),
        *(y, columns, chosen, beside is not None, gates is not None, BLOCK),
        num_warps=1,
    )
    return y
