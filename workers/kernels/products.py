"""Products with a weight that is not in the type of its input."""

from __future__ import annotations

from torch import Tensor

from workers.kernels import compiled
from workers.weights.blocks import Blocks, Weight

WIDE_BYTES = 1 << 20  # of float32 made at once: they stay in the cache


def product(x: Tensor, weight: Blocks, bias: Tensor | None = None) -> Tensor:
    """`x Wᵀ + b`: `[tokens, columns] -> [tokens, rows]`, in the type of `x`."""
    if compiled.takes(x, weight):
        return compiled.product(x, weight, bias)
    if x.is_cuda:
        from workers.kernels import blocks_triton  # which comes with torch where there is CUDA

        if blocks_triton.takes(weight):
            return blocks_triton.product(x, weight, bias)
    return widened(x, weight, bias)


def widened(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:  # [tokens, columns] -> [tokens, rows]
    """The same for any weight: some of its rows are made float32, which is exact, and then the next ones."""
    total, columns = weight.shape
    rows = max(1, WIDE_BYTES // (4 * columns))
    wide, y = x.float(), x.new_empty(len(x), total)
    for start in range(0, total, rows):
        part = wide @ weight[start : start + rows].float().t()
        y[:, start : start + rows] = part if bias is None else part.add_(bias[start : start + rows])
    return y
