"""Layers that keep a state: a prompt through one of them in chunks, and token after token.

    python -m benchmarks.states [--device cuda:0] [--tokens 16384] [--json FILE]

The shapes are those of Qwen3.5-27B and of Nemotron 3 Nano on one rank. Both ways are interleaved, and the
least of some repeats counts. On a GPU they are those of its backend, Triton's kernels above all, and what a
CPU does in chunks stands beside them, by torch on the same device.
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
from workers.attention.states import RecurrentStates
from workers.cache.state import StateCache
from workers.checkpoints.model_config import DeltaNet, Mamba
from workers.kernels.gated_delta import EPS
from workers.step.batch import Segment
from workers.step.pages import pages_for

SHAPE = DeltaNet(key_heads=16, value_heads=48, key_dim=128, value_dim=128, kernel=4)
SPACE = Mamba(heads=64, head_dim=64, groups=8, state_dim=128, kernel=4)  # of Nemotron 3 Nano
KINDS = {"Gated DeltaNet": SHAPE, "Mamba-2": SPACE}
NAMES = ("convolve", "keep_inputs", "recur", "solve", "pass", "space")  # of kernels
REPEATS = 3


def kernel_of(name: str) -> Any:
    """The kernel of that name."""
    from workers.kernels import gated_delta_chunks_triton, gated_delta_triton, state_space_triton

    modules = gated_delta_chunks_triton, state_space_triton, gated_delta_triton
    return getattr(next(each for each in modules if hasattr(each, name)), name)


def compile_kernel(
    capability: int, name: str, mixed: str = "bf16", silu: bool = True, state_dim: int = SPACE.state_dim
) -> Any:
    """A kernel for cards of that capability, with the numbers of `SHAPE`; needs no device.

    Args:
        mixed: type of a convolution's inputs.
        silu: what comes out of it goes through that.
        state_dim: of a Mamba-2.
    """
    from benchmarks.kernels import compile_for
    from workers.kernels import gated_delta_chunks_triton as chunks
    from workers.kernels import gated_delta_triton as kernels
    from workers.kernels import state_space_triton

    in_chunks, kernel = hasattr(chunks, name), kernel_of(name)
    shared = {"KEY_HEADS": SHAPE.key_heads, "HEADS": SHAPE.value_heads, "KEY_DIM": SHAPE.key_dim}
    shared |= {"VALUE_DIM": SHAPE.value_dim, "EPS": EPS, "BLOCK_K": SHAPE.key_dim}
    shared |= {"KERNEL": SHAPE.kernel, "PLACES": 4, "SILU": silu, "BLOCK": kernels.CHANNELS}
    shared |= {"CHUNK": chunks.CHUNK, "SLICE": chunks.SLICE}
    shared |= {"BIASED": True, "GROUPS": SPACE.groups, "STATE_DIM": state_dim, "SKIPS": True}
    shared |= {"HEAD_DIM": SPACE.head_dim, "BLOCK_N": state_dim, "BLOCK_E": state_space_triton.COLUMNS}
    if name == "space_kernel":
        shared["HEADS"] = SPACE.heads
    shared["BLOCK_V"] = chunks.COLUMNS if in_chunks else kernels.COLUMNS
    kinds = dict.fromkeys(kernel.arg_names, "*fp32") | dict.fromkeys(shared, "constexpr")
    kinds |= dict.fromkeys(("stride", "channels", "first", "count", "first_sequence"), "i32")
    kinds |= dict.fromkeys(("owners", "starts", "ends", "read", "written", "chunk_starts"), "*i64")
    kinds |= {"scale": "fp32", "mixed": f"*{mixed}", "weight": f"*{mixed}", "bias": f"*{mixed}"}
    kinds = {each: kinds[each] for each in kernel.arg_names}
    constants = {each: value for each, value in shared.items() if each in kinds}
    aligned = [each for each, kind in kinds.items() if kind[0] == "*" or each in ("stride", "channels")]
    options = {"num_warps": chunks.WARPS, "num_stages": 1} if in_chunks else {"num_warps": kernels.WARPS}
    return compile_for(capability, kernel, kinds, constants, aligned, **options)


def seconds(
    device: str, shape: DeltaNet | Mamba, tokens: int, step: int, in_torch: bool = False
) -> Callable[[], float]:
    """What a prompt takes in steps of so many tokens, by the device's kernels or in torch alone."""
    place = torch.device(device)
    given = StateCache([0], shape, states=1, device=place), 0, step
    backend = RecurrentStates(*given) if in_torch else states_over(*given, exact=False)
    torch.manual_seed(0)
    mixed = torch.randn(step, shape.channels, device=place)
    weight = torch.randn(shape.channels, shape.kernel, device=place)
    decay = -torch.rand(step, shape.results[0], device=place)
    beta = torch.rand(step, shape.results[0], device=place)
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


def measure(device: str, shape: DeltaNet | Mamba, tokens: int) -> dict[str, float]:
    """Seconds of one layer, by how the prompt went through it."""
    whole, plain = (seconds(device, shape, tokens, min(tokens, 2048), in_torch) for in_torch in (False, True))
    single = seconds(device, shape, tokens // 16, 1)  # a part of it is enough
    best = [torch.inf] * 3
    with torch.inference_mode():
        for _ in range(REPEATS):
            best = [*map(min, best, (whole(), plain(), 16 * single()))]
    names = ("in chunks", "in chunks by torch", "token after token")
    return dict(zip(names, best, strict=True)) | {"ratio": best[2] / best[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    given = parser.parse_args()
    found = {name: measure(given.device, shape, given.tokens) for name, shape in KINDS.items()}
    print(f"{given.tokens} tokens through one layer on {given.device}, {torch.get_num_threads()} threads")
    for kind, values in found.items():
        print(kind)
        for name, value in values.items():
            print(f"  {name:20} {value:8.3f}")
    if given.json is not None:
        given.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
