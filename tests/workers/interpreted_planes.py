"""Run with TRITON_INTERPRET=1, in a process of its own: how far products in planes are from torch's."""

from __future__ import annotations

import json
import sys

import torch

from tests.workers.interpreted_products import weight_of
from tests.workers.interpreter import take_arrays_for_numbers
from workers.kernels.skinny import Shape


def main(kinds: list[str]) -> None:
    from workers.kernels import skinny
    from workers.weights.blocks import Blocks

    errors = {}
    generator = torch.Generator().manual_seed(1)
    for kind in kinds:
        # in one part and in two; rows and tokens that are no whole program; without a bias and with one
        for tokens, rows, columns, shape in ((1, 16, 256, Shape(8, 16, 0)), (9, 17, 256, Shape(16, 32, 16))):
            weight = weight_of(kind, rows, columns)
            data = Blocks(weight.format, weight.data.clone(), torch.float16).to_planes().data
            x = torch.randn(tokens, columns, generator=generator).half()
            bias = torch.randn(rows, generator=generator).half() if tokens > 1 else None
            y = skinny.product(x, data, kind, bias, shape).float()
            expected = x.float() @ weight.float().t()
            expected = expected if bias is None else expected + bias.float()
            errors[f"{kind} {tokens}"] = float((y - expected).norm() / expected.norm())
        wide = skinny.dequantise(data, kind, columns, torch.float16)
        errors[f"{kind} whole"] = float((wide.float() - weight.float().half().float()).abs().max())
    assert not skinny.counters(x.device).any()
    print(json.dumps(errors))


if __name__ == "__main__":
    take_arrays_for_numbers()
    main(sys.argv[1:])
