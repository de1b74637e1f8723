"""The library of compiled kernels, where an install could build it and the CPU has what it takes.

Of its kernels those of `blocks.c` are called here, those of `dense.c` and `many.c` in `dense.py`, those of
`step.c` and `chunks.c` in `step.py`, and those of `rows.c` in `rows.py`.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from workers.weights import built
from workers.weights.blocks import Blocks

# in the order of the numbers that blocks.c gives them
KINDS = [
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"),
    *("INT4_32", "INT4_64", "INT4_128"),
]
TYPES = (torch.float32, torch.bfloat16, torch.float16)
ACTIVATIONS = ("silu", "gelu_tanh")  # of gates, in the order of the numbers that lanes.h gives them
STEM = "_blocks"
FOLDER = Path(__file__).parent
SOURCES = (
    *("blocks.c", "blocks_vnni.c", "chunks.c", "dense.c", "many.c", "rows.c", "step.c"),
    *("formats.h", "lanes.h", "source.h", "vectors.h"),
)


@cache
def library() -> ctypes.CDLL | None:
    """The library beside this file; None: it was not built, or cannot be used here."""
    path = built.find(FOLDER, STEM)
    return None if path is None else load(path)


@cache
def level() -> int:
    """What the CPU multiplies with, as blocks.c numbers it: AVX2, or more than that; results are the same."""
    return library().blocks_level()


def load(path: Path) -> ctypes.CDLL | None:
    """The library at `path`; None where it cannot be used, or this CPU has not what it takes."""
    found = built.load(path, (FOLDER / name for name in SOURCES))
    if found is None:
        return None
    number, size, pointer, real = ctypes.c_int, ctypes.c_long, ctypes.c_void_p, ctypes.c_float
    weight = (number, pointer, size, size, size)
    inputs = (pointer, pointer, number, size, pointer)  # and output, their type, tokens, bias
    found.blocks_product.argtypes = (*weight, *inputs, number, number)  # threads, level
    if not found.blocks_level():
        return None
    found.dense_product.argtypes = (*weight, *inputs, number, number)  # the same
    found.many_product.argtypes = (
        *(number, pointer, *[size] * 3),  # kind and weight
        *(pointer, pointer, size, pointer, number, number),  # input, output, tokens, bias, gate, threads
    )
    found.rows_product.argtypes = (*weight, *inputs, number, number)  # the same
    found.rows_wide.argtypes = (*weight, pointer, number)
    found.rows_wide.restype = None
    found.step_norm.argtypes = (*[pointer] * 4, number, size, size, real, real, number)
    found.step_sum.argtypes = (*[pointer] * 5, number, size, size, real, real, number)
    found.step_gated.argtypes = (pointer, pointer, number, number, size, size, number)
    found.step_heads.argtypes = (
        *(pointer, number, *[size] * 5),  # input and its shape
        *(pointer, pointer, real, real),  # norms
        *(pointer, pointer, size, number),  # angles, threads
    )
    found.step_write.argtypes = (pointer, size, pointer, size, pointer, pointer, *[size] * 3, number)
    found.step_attention.argtypes = (
        *(pointer, size, pointer, pointer, size, pointer, number),  # queries, cache, output, their type
        *(*[pointer] * 3, size),  # pages
        *(*[size] * 5, real, real, pointer, number),  # shape, scores, threads
    )
    found.chunks_attention.argtypes = (
        *(pointer, size, pointer, pointer, size, pointer, pointer),  # queries, cache, output, pages
        *(*[size] * 8, number, real, real, pointer, number),  # shape, scores, threads
    )
    return found


def check_memory(failed: int, what: str) -> None:
    """Raise what torch does where memory is short, unless a kernel, which computed `what`, returned 0."""
    if failed:
        raise RuntimeError(f"can't allocate memory for {what}")


def takes(device: torch.device, dtype: torch.dtype, weight: Blocks) -> bool:
    """Whether `product` computes with input of that type: not of float32, which it would round."""
    return (
        device.type == "cpu" and dtype in TYPES[1:] and weight.format.name in KINDS and library() is not None
    )


def product(x: Tensor, weight: Blocks, bias: Tensor | None) -> Tensor:
    """`x Wᵀ + b` with `x` rounded to int8 in groups of 32: `[tokens, columns] -> [tokens, rows]`.

    Raises:
        RuntimeError: memory is short, as torch says it.
    """
    x = x.contiguous()
    rows, columns = weight.shape
    tokens = x.shape[0]
    y = x.new_empty(tokens, rows)
    wide = None if bias is None else bias.float()
    failed = library().blocks_product(
        KINDS.index(weight.format.name),
        weight.data.data_ptr(),
        rows,
        columns,
        weight.data.shape[1],
        x.data_ptr(),
        y.data_ptr(),
        TYPES.index(x.dtype),
        tokens,
        None if wide is None else wide.data_ptr(),
        torch.get_num_threads(),
        level(),
    )
    check_memory(failed, "a product")
    return y
