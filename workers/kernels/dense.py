"""Products on a CPU with weights of 16 bits as they were stored: the kernels of `dense.c` and `many.c`.

With AVX512-BF16 they take weights of eight bits too, for `workers.kernels.rows`.

Few tokens are multiplied at the rate at which memory is read, and no copy of the weight is needed. On one
core of an EPYC with AVX512-BF16, of 262,144 x 640 in bfloat16, a token takes 11 ms; with torch 39, or 24 if
oneDNN has packed the weight, which is a copy where it is tied to an embedding. Of 6144 x 1024, 32 tokens take
2.5 ms and 512 take 38; with torch 3.1 and 32, and by `many.c` 30, which is 90 % of what the core can do.
"""

from __future__ import annotations

import platform
from functools import cache

import torch
from torch import Tensor

from workers.kernels import compiled

FEW = 32  # tokens, up to which torch takes longer wherever the kernel can be used
ALL = 1 << 30
WITH_AVX512_BF16 = 2  # of the numbers of `level`
X86 = platform.machine() in ("x86_64", "AMD64")


def meant_for(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights of that type are multiplied here, where the library was built."""
    return device.type == "cpu" and dtype in compiled.TYPES[1:] and X86


def takes(weight: Tensor) -> bool:
    """Whether `product` computes with that weight."""
    return meant_for(weight.device, weight.dtype) and weight.stride(1) == 1 and compiled.library() is not None


@cache
def most_tokens(dtype: torch.dtype) -> int:
    """Tokens up to which torch takes longer: `FEW`, or any number where it has no instructions for the type.

    With AVX2 alone it has none either, but makes float32 of the weight, which is level with the kernel.
    """
    if not torch.cpu._is_avx512_supported():
        return FEW
    if dtype == torch.float16:
        return FEW if torch.ops.mkldnn._is_mkldnn_fp16_supported() else ALL
    return FEW if torch.cpu._is_avx512_bf16_supported() else ALL


def takes_many(weight: Tensor) -> bool:
    """Whether `many` computes with that weight, and in less time than torch: not where a CPU has AMX."""
    if weight.dtype != torch.bfloat16 or weight.shape[1] % 2 or torch.cpu._is_amx_tile_supported():
        return False
    return takes(weight) and level() == WITH_AVX512_BF16


@cache
def level() -> int:
    """What the CPU multiplies with, as dense.c numbers it."""
    return compiled.library().dense_level()


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x Wᵀ + b`, all in one type, with sums in float32: `[tokens, columns] -> [tokens, rows]`.

    Each token has the same bits in any company.

    Raises:
        RuntimeError: memory is short, as torch says it.
    """
    return product_of(0, x, weight, weight.shape[1], bias)


def product_of(kind: int, x: Tensor, weight: Tensor, columns: int, bias: Tensor | None) -> Tensor:
    """The same for a weight `[rows, ...]` of a kind, as lanes.h numbers it, with so many columns."""
    x = x.contiguous()
    tokens, rows = x.shape[0], weight.shape[0]  # the length of a tensor is asked for in Python
    y = x.new_empty(tokens, rows)
    wide = None if bias is None else bias.float()
    failed = compiled.library().dense_product(
        *(kind, weight.data_ptr(), rows, columns, weight.stride(0) * weight.itemsize // 2),
        *(x.data_ptr(), y.data_ptr(), compiled.TYPES.index(x.dtype), tokens),
        None if wide is None else wide.data_ptr(),
        torch.get_num_threads(),
        level(),
    )
    compiled.check_memory(failed, "a product")
    return y


def many(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None = None) -> Tensor:
    """The same for more than `FEW` tokens, with sums in another order.

    Each token has the same bits in any company of more than `FEW`.

    Args:
        activation: give, to the bits of `workers.kernels.step.gated`, the first half of that, activated,
            times the second: `[tokens, rows / 2]`.

    Raises:
        RuntimeError: memory is short, as torch says it.
    """
    return many_of(0, x, weight, weight.shape[1], bias, activation)


def many_of(
    kind: int, x: Tensor, weight: Tensor, columns: int, bias: Tensor | None, activation: str | None = None
) -> Tensor:
    """The same for a weight of a kind, as `product_of` has it."""
    x = x.contiguous()
    y = x.new_empty(len(x), len(weight) if activation is None else len(weight) // 2)
    wide = None if bias is None else bias.float()
    failed = compiled.library().many_product(
        *(kind, weight.data_ptr(), len(weight), columns, weight.stride(0) * weight.itemsize),
        *(x.data_ptr(), y.data_ptr(), len(x)),
        None if wide is None else wide.data_ptr(),
        -1 if activation is None else compiled.ACTIVATIONS.index(activation),
        torch.get_num_threads(),
    )
    compiled.check_memory(failed, "a product")
    return y
