"""In a process that interprets: how far products of experts are from torch's."""

from __future__ import annotations

import torch

from tests.workers.random_blocks import weight_of
from workers.kernels import grouped, grouped_triton
from workers.kernels.pairs import Pairs

EXPERTS = 5
TOKENS = {  # to which experts each goes; 5: to one of another rank
    "one": [[3, 1]],
    "to_all_but_one": [[0, 1], [1, 3], [3, 0], [1, 0], [4, 3], [3, 1]],
    "all_to_one": [[2]] * 19,
    "some_elsewhere": [[5, 0], [5, 5], [4, 5]],
    "many": [[n % 5, (n * 3 + 1) % 5] for n in range(36)],
}
SHAPES = {
    "PLAIN": (40, 72),
    "MXFP4": (33, 160),
    "Q8_0": (33, 160),
    "NVFP4": (33, 160),
    "Q4_K": (40, 256),
    "Q6_K": (40, 256),
}


def errors() -> dict[str, float]:
    apart = {}
    generator = torch.Generator().manual_seed(1)
    for kind, (rows, columns) in SHAPES.items():
        for dtype in (torch.float32, torch.float16) if kind in ("PLAIN", "MXFP4") else (torch.float32,):
            if kind == "PLAIN":
                weight = torch.randn(EXPERTS * rows, columns, generator=generator).to(dtype)
            else:
                weight = weight_of(kind, EXPERTS * rows, columns)
            # how numbers are unpacked has nothing to do with where each token goes
            for name in TOKENS if kind == "PLAIN" else ("one", "many"):
                chosen = TOKENS[name]
                numbers = torch.tensor(chosen)
                pairs = Pairs.of(numbers.flatten(), EXPERTS, numbers.shape[1])
                count = numbers.numel()
                scales = None
                x = torch.randn(len(numbers), columns, generator=generator).to(dtype)
                if name in ("one", "many", "some_elsewhere"):
                    scales = torch.rand(count, generator=generator)
                    x = torch.randn(count, columns, generator=generator).to(dtype)
                bias = (
                    torch.randn(EXPERTS, rows, generator=generator).to(dtype)
                    if name in ("one", "all_to_one")
                    else None
                )
                found, expected = (
                    torch.full((count, rows + 3), 7.0, dtype=dtype)[:, 1 : rows + 1] for _ in range(2)
                )
                grouped_triton.product(x, weight, bias, pairs, found, scales, None)
                grouped.reference(x, weight, bias, pairs, expected, scales)
                difference = (found.float() - expected.float()).norm() / expected.float().norm()
                apart[f"{kind} {dtype} {name}"] = float(difference)
    return apart
