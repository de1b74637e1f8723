"""Products on a CPU with weights whose rows have numbers first, and then scales: the kernels of `rows.c`.

Of few tokens the weight is multiplied as it is read; for more, some of its rows are made float32, which stay
in the CPU's cache. Nothing is rounded, and so inputs may be float32. Where they are bfloat16, which the CPU
multiplies, and numbers have 8 bits, `dense` has the kernels, and rounds nothing either. On a core of an EPYC
with AVX-512, of 4096 x 4096 in groups of 128, a token takes 1.0 ms instead of 60 to 180 by way of torch, and
256 take 140 instead of 190; in bfloat16 and 8 bits 0.5, and 8 tokens 1.0 instead of 2.3. Groups of 4 bits go
by `compiled.product` where the input has 16 bits, which takes 1.0 and 33.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.kernels import compiled, dense
from workers.weights.blocks import Blocks

# in the order of the numbers that rows.c gives them
IN_LANES = ["INT4_32", "INT4_64", "INT4_128", "NF4_64", "FP4_64", "NVFP4"]
IN_BYTES = ["INT8_128", "INT8_ROW", "FP8_128", "FP8_ROW"]  # in that order in lanes.h, too, from 1 on
KINDS = [*IN_LANES, *IN_BYTES]
STEP = 64  # columns, of which there are whole ones
FEW = 32  # tokens, up to which a weight is multiplied as it is read
WIDE_BYTES = 1 << 20  # of float32 made at once


def takes(device: torch.device, weight: Blocks) -> bool:
    """Whether `product` computes with that weight."""
    return (
        device.type == "cpu"
        and weight.format.name in KINDS
        and weight.shape[1] % STEP == 0
        and compiled.library() is not None
    )


def product(x: Tensor, weight: Blocks, bias: Tensor | None) -> Tensor:
    """`x Wᵀ + b` in float32: `[tokens, columns] -> [tokens, rows]`, in the type of `x`.

    Up to `FEW` tokens each has the same bits in any company.

    Raises:
        RuntimeError: memory is short, as torch says it.
    """
    name, few = weight.format.name, len(x) <= FEW
    if name in IN_BYTES and x.dtype == torch.bfloat16 and dense.level() == dense.WITH_AVX512_BF16:
        of = dense.product_of if few else dense.many_of
        return of(1 + IN_BYTES.index(name), x, weight.data, weight.shape[1], bias)
    return _few(x.contiguous(), weight, bias) if few else _many(x, weight, bias)


def _few(x: Tensor, weight: Blocks, bias: Tensor | None) -> Tensor:
    y = x.new_empty(len(x), weight.shape[0])
    added = None if bias is None else bias.float()
    failed = compiled.library().rows_product(
        *_given(weight),
        x.data_ptr(),
        y.data_ptr(),
        compiled.TYPES.index(x.dtype),
        len(x),
        None if added is None else added.data_ptr(),
        torch.get_num_threads(),
        compiled.level(),
    )
    compiled.check_memory(failed, "a product")
    return y


def _many(x: Tensor, weight: Blocks, bias: Tensor | None) -> Tensor:
    total, columns = weight.shape
    rows = max(1, WIDE_BYTES // (4 * columns))
    y = x.new_empty(len(x), total)
    if weight.format.name in IN_LANES:  # which `rows_wide` leaves in the order of numbers
        x = x.reshape(len(x), -1, 8, 8).transpose(2, 3)
    wide = x.to(torch.float32, memory_format=torch.contiguous_format).reshape(len(x), columns)
    space = wide.new_empty(min(rows, total), columns)
    for start in range(0, total, rows):
        some = weight[start : start + rows]
        floats = space[: some.shape[0]]
        compiled.library().rows_wide(*_given(some), floats.data_ptr(), torch.get_num_threads())
        part = wide @ floats.t()
        y[:, start : start + rows] = part if bias is None else part.add_(bias[start : start + rows])
    return y


def _given(weight: Blocks) -> tuple[int, ...]:
    rows, columns = weight.shape
    return KINDS.index(weight.format.name), weight.data.data_ptr(), rows, columns, weight.data.stride(0)
