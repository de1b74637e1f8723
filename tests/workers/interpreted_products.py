"""In a process that interprets: how far products with weights in blocks are from their reference.

bfloat16 is left to devices: the interpreter
multiplies its bits as if they were integers.
"""

from __future__ import annotations

import torch

from tests.workers.test_compiled_products import random_weight
from workers.checkpoints.blocks import FORMATS
from workers.weights.blocks import Blocks
from workers.weights.dequantise import BY_ROW
from workers.weights.quantise import QUANTISERS, quantise
from workers.weights.rows import four_times


def weight_of(kind: str, rows: int, columns: int) -> Blocks:
    """Random numbers; scales that are numbers too."""
    form = FORMATS[kind]
    if kind not in BY_ROW:
        return random_weight(kind, rows, columns)
    generator = torch.Generator().manual_seed(0)
    if kind in QUANTISERS:
        return Blocks(form, quantise(kind, torch.randn(rows, columns, generator=generator)))
    data = torch.randint(0, 256, (rows, form.row_bytes(columns)), dtype=torch.uint8, generator=generator)
    floats = form.row_nbytes or data.shape[1] - columns // 2
    scales = torch.rand(rows, floats // 4, generator=generator) + 0.5
    scales = four_times(scales[:, :1]) if form.row_nbytes else scales
    data[:, -floats:] = scales.contiguous().view(torch.uint8)
    if "FP8" in kind or kind == "NVFP4":
        data[:, :-floats] &= 0xF7  # none is a NaN
    return Blocks(form, data)


def errors() -> dict[str, float]:
    from workers.kernels import blocks_triton

    found = {}
    for kind in blocks_triton.KINDS:
        for dtype in (torch.float32, torch.float16):
            for tokens, rows, columns, biased in ((1, 33, 256, True), (17, 40, 256, False)):
                weight = weight_of(kind, rows, columns)
                generator = torch.Generator().manual_seed(1)
                x = torch.randn(tokens, columns, generator=generator).to(dtype)
                bias = torch.randn(rows, generator=generator).to(dtype) if biased else None
                y = blocks_triton.product(x, weight, bias).float()
                expected = x.float() @ weight.float().to(dtype).float().t()
                if bias is not None:
                    expected += bias.float()
                error = (y - expected).norm() / expected.norm()
                found[f"{kind} {dtype} {tokens}"] = float(error)
    return found
