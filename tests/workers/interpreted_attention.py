"""Run in a process of its own, with TRITON_INTERPRET=1: attention as GPUs compute it, on the CPU.

Triton decides when it is imported whether it interprets. bfloat16 is left to devices: the interpreter
multiplies its bits as if they were integers.
"""

from __future__ import annotations

import torch

from ipc.worker_messages import CacheGroup
from tests.workers.attention_steps import attend_in_any_cut
from tests.workers.interpreter import patch_once, take_arrays_for_numbers

GROUPS = [
    CacheGroup(kind="full", layers=[1]),
    CacheGroup(kind="window", layers=[0], window=7),
    CacheGroup(kind="chunk", layers=[2], window=32),
]


def main() -> None:
    from workers.attention.cuda import TritonAttention

    for seed, (kind, exact) in enumerate((("plain", False), ("sinks", True), ("latent", False))):
        attend_in_any_cut(
            TritonAttention, "cpu", seed, kind, exact=exact, longest=45, sequences=2, groups=GROUPS
        )
    for seed, exact in enumerate((False, True)):
        attend_in_any_cut(
            *(TritonAttention, "cpu", seed, "plain"),
            exact=exact,
            longest=90,
            sequences=2,
            groups=[CacheGroup(kind="full", layers=[1], in_order=exact), GROUPS[1]],
            images=True,
        )
    for seed, kv_cache_dtype in enumerate(("int8", "fp8")):
        attend_in_any_cut(
            *(TritonAttention, "cpu", seed, "sinks"),
            longest=36,
            sequences=2,
            groups=GROUPS[:2],
            kv_cache_dtype=kv_cache_dtype,
        )


def codes() -> None:
    """What is written is what torch makes of it, to the bit but for a code that is rounded the other way."""
    from workers.cache.paged import write_codes
    from workers.cache.quantised import CODES
    from workers.kernels.attention_triton import Sequences
    from workers.kernels.cache_triton import write

    torch.manual_seed(0)
    x = torch.randn(4, 2, 2, 24) * torch.tensor([1e-3, 1.0, 700.0, 1e4])[:, None, None, None]
    x[0, 0, 0], x[1, 0, 1, 3], x[2, 1, 0, :5] = 0.0, torch.nan, torch.tensor([1e-4, -1e-3, 1e-2, 0.1, 1.0])
    keys, values = x.unbind(1)
    numbers = torch.tensor([0, 1]), torch.tensor([0, 3, 4]), torch.tensor([34, 1]), torch.tensor([0, 2])
    sequences = Sequences(*numbers, torch.tensor([4, 2, 0]))
    pages, places = torch.tensor([4, 2, 2, 0]), torch.tensor([31, 0, 1, 0])
    for dtype in CODES.values():
        ours, expected = (
            (torch.zeros(2, 5, 2, 32, 24, dtype=dtype), torch.zeros(2, 5, 2, 32, dtype=torch.float16))
            for _ in range(2)
        )
        write(ours[0], keys, values, torch.tensor([0, 0, 0, 1]), sequences, ours[1])
        write_codes(*expected, keys, values, pages, places)
        assert torch.equal(ours[1].nan_to_num(7.0), expected[1].nan_to_num(7.0))
        there = expected[1].isfinite()
        apart = (ours[0][there].short() - expected[0][there].short()).abs()
        assert apart.max() <= 1
        assert apart.count_nonzero() <= 1


if __name__ == "__main__":
    take_arrays_for_numbers()
    patch_once()
    codes()
    main()
