"""Products with a weight that is not in the type of its input."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.kernels import compiled, rows
from workers.kernels.gates import Gates
from workers.weights import planes
from workers.weights.blocks import Blocks, Weight

# Of float32 made at once: they stay in a CPU's cache; a GPU waits for some ten launches each time.
WIDE_BYTES = {"cpu": 1 << 20, "cuda": 16 << 20}
TILE = 16  # tokens that a program of the kernel for GPUs has at least
SKINNY = 32  # tokens, up to which a weight in planes is multiplied as it is read
# The same where what is dequantised does not stay in a GPU's cache, but goes to memory and back: on an H200
# 64 tokens take 62 us instead of 90 with 12288 x 4096 in 8 bits, and with 4096 x 4096 29 instead of 25.
SOME = 64
# Of such a weight in its input's type, made at once for more; and rows that cuBLAS likes to have together.
SCRATCH_BYTES, TOGETHER = 64 << 20, 256


def product(x: Tensor, weight: Blocks, bias: Tensor | None = None) -> Tensor:
    """`x Wᵀ + b`: `[tokens, columns] -> [tokens, rows]`, in the type of `x`."""
    if compiled.takes(x.device, x.dtype, weight):
        return compiled.product(x, weight, bias)
    if rows.takes(x.device, weight):
        return rows.product(x, weight, bias)
    if weight.in_planes:
        return _in_planes(x, weight, bias)
    if _has_kernel(weight):
        from workers.kernels import blocks_triton

        return blocks_triton.product(x, weight, bias)
    return widened(x, weight, bias)


def gated_product(x: Tensor, weight: Blocks, bias: Tensor | None, gates: Gates) -> Tensor | None:
    """The same, once the gates among its rows have opened the others, where one kernel makes that of it:
    `[tokens, rows / 2]`."""
    if not weight.in_planes:
        return None
    from workers.kernels import skinny  # for which Triton comes with torch where there is CUDA

    if len(x) > skinny.FEW.value:
        return None
    return skinny.product(x, weight.data, weight.format.name, bias, gates)


def steady_rows(weight: Blocks) -> range | None:
    """Of how many tokens at once each has the same bits in any company; None: that has to be tried."""
    if compiled.takes(weight.device, weight.dtype, weight):
        return range(1, 1 << 30)
    if rows.takes(weight.device, weight):
        return range(1, rows.FEW + 1)
    if weight.in_planes:
        from workers.kernels import skinny  # for which Triton comes with torch where there is CUDA

        return skinny.steady_tokens(weight.format.name)
    return range(1, TILE + 1) if _has_kernel(weight) else None


def wants_planes(weight: Blocks) -> bool:
    """Whether the weight is multiplied faster in planes, where it is and with inputs of its type."""
    return reads_planes(weight.device, weight.dtype) and planes.takes(weight.format.name, weight.shape[1])


def reads_planes(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there are kernels that multiply weights in planes with inputs of that type."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)  # what has products of bfloat16


def _in_planes(x: Tensor, weight: Blocks, bias: Tensor | None) -> Tensor:
    from workers.kernels import skinny  # for which Triton comes with torch where there is CUDA

    name, (total, columns) = weight.format.name, weight.shape
    stays = total * columns * x.itemsize <= _cache_bytes(x.device)
    if len(x) <= (SKINNY if stays else SOME):
        return skinny.product(x, weight.data, name, bias)
    at_once = max(TOGETHER, SCRATCH_BYTES // (x.itemsize * columns) // TOGETHER * TOGETHER)
    if total <= at_once:
        return F.linear(x, skinny.dequantise(weight.data, name, columns, x.dtype), bias)
    y = x.new_empty(len(x), total)
    for start in range(0, total, at_once):
        part = slice(start, start + at_once)
        wide = skinny.dequantise(weight.data[part], name, columns, x.dtype)
        y[:, part] = F.linear(x, wide, None if bias is None else bias[part])
    return y


@cache
def _cache_bytes(device: torch.device) -> int:
    """Of a GPU's last level."""
    return torch.cuda.get_device_properties(device).L2_cache_size


def _has_kernel(weight: Blocks) -> bool:
    if weight.device.type != "cuda":
        return False
    from workers.kernels import blocks_triton  # which comes with torch where there is CUDA

    return blocks_triton.takes(weight)


def widened(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:  # [tokens, columns] -> [tokens, rows]
    """The same for any weight: some of its rows are made float32, which is exact, and then the next ones."""
    total, columns = weight.shape
    at_once = max(1, WIDE_BYTES[x.device.type] // (4 * columns))
    wide, y = x.float(), x.new_empty(len(x), total)
    for start in range(0, total, at_once):
        part = wide @ weight[start : start + at_once].float().t()
        y[:, start : start + at_once] = part if bias is None else part.add_(bias[start : start + at_once])
    return y
