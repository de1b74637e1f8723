"""Run in a process of its own, with TRITON_INTERPRET=1: attention as GPUs compute it, on the CPU.

Triton decides when it is imported whether it interprets. bfloat16 is left to devices: the interpreter
multiplies its bits as if they were integers.
"""

from __future__ import annotations

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


if __name__ == "__main__":
    take_arrays_for_numbers()
    patch_once()
    main()
