"""Layers that keep a state: a prompt through one of them in chunks, and token after token.

    python -m benchmarks.states [--device cuda:0] [--tokens 16384] [--results FILE]

The shape is that of Qwen3.5-27B on one rank. Both are interleaved, and the least of some repeats counts. On a
GPU single tokens go through Triton's kernels, all else is torch.
"""

from __future__ import annotations

import argparse
import json
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from workers.attention.registry import states_over
from workers.cache.state import StateCache
from workers.checkpoints.config import DeltaNet
from workers.kernels.gated_delta import EPS
from workers.step.batch import Segment
from workers.step.pages import pages_for

SHAPE = DeltaNet(key_heads=16, value_heads=48, key_dim=128, value_dim=128, kernel=4)
REPEATS = 3


def compile_kernel(capability: int, name: str) -> Any:
    """A kernel for cards of that capability, with the numbers of `SHAPE`; needs no device."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from workers.kernels import gated_delta_triton as kernels

    kernel = getattr(kernels, name)
    shared = {"KEY_HEADS": SHAPE.key_heads, "HEADS": SHAPE.value_heads, "KEY_DIM": SHAPE.key_dim}
    shared |= {"VALUE_DIM": SHAPE.value_dim, "EPS": EPS, "BLOCK_K": SHAPE.key_dim, "BLOCK_V": kernels.COLUMNS}
    shared |= {"KERNEL": SHAPE.kernel, "PLACES": 4, "SILU": True, "BLOCK": kernels.CHANNELS}
    kinds = {"stride": "i32", "channels": "i32", "scale": "fp32", "mixed": "*bf16", "weight": "*bf16"}
    kinds |= dict.fromkeys(("owners", "starts", "ends", "read", "written"), "*i64")
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={each: "constexpr" if each in shared else kinds.get(each, "*fp32") for each in names},
        constexprs={(names.index(each),): value for each, value in shared.items() if each in names},
    )
    return compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})


def seconds(device: str, tokens: int, step: int) -> Callable[[], float]:
    """What a prompt takes in steps of so many tokens."""
    place = torch.device(device)
    backend = states_over(StateCache([0], SHAPE, states=1, device=place), 0, step, exact=False)
    torch.manual_seed(0)
    mixed = torch.randn(step, SHAPE.channels, device=place)
    weight = torch.randn(SHAPE.channels, SHAPE.kernel, device=place)
    decay = -torch.rand(step, SHAPE.value_heads, device=place)
    beta = torch.rand(step, SHAPE.value_heads, device=place)
    slot = SimpleNamespace(tables=[array("q", [0] * pages_for(tokens))])

    def once() -> float:
        began = time.perf_counter()
        for start in range(0, tokens, step):
            segments = [Segment(slot, range(step), start)]
            arrays = backend.arrays(segments)
            tensors = {name: torch.tensor(list(each), device=place) for name, each in arrays.items()}
            backend.run(backend.prepare(segments, tensors), 0, mixed, weight, decay, beta)
        if place.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return once


def measure(device: str, tokens: int) -> dict[str, float]:
    """Seconds of one layer, by how the prompt went through it."""
    whole, single = seconds(device, tokens, 2048), seconds(device, tokens // 16, 1)  # a part of it is enough
    best = [torch.inf, torch.inf]
    with torch.inference_mode():
        for _ in range(REPEATS):
            best = [min(best[0], whole()), min(best[1], 16 * single())]
    return {"in chunks": best[0], "token after token": best[1], "ratio": best[1] / best[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--results", type=Path)
    given = parser.parse_args()
    found = measure(given.device, given.tokens)
    print(f"{given.tokens} tokens through one layer on {given.device}, {torch.get_num_threads()} threads")
    for name, value in found.items():
        print(f"  {name:20} {value:8.3f}")
    if given.results is not None:
        given.results.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
