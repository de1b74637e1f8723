"""In a process that interprets: how far products with weights in blocks are from their reference.

bfloat16 is left to devices: the interpreter
multiplies its bits as if they were integers.
"""

from __future__ import annotations

import torch

from tests.workers.random_blocks import weight_of


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


KINDS = (
    *("Q1_0", "Q2_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "MXFP4", "NVFP4"),
    *("NF4_64", "FP4_64"),
    *("INT4_32", "INT4_64", "INT4_128", "INT8_128", "INT8_ROW", "FP8_128", "FP8_ROW"),
)
