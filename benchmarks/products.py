"""What products with quantised weights take on a device: part `products` of `benchmarks.gpu`.

Each is right first: in every format and for every way that a number of rows is computed. Then it is timed as
graphs that are replayed, one product after the other with weights that no cache holds, so that neither a
launch nor a cache counts; as bytes of the weight a second, beside the rate at which the same device copies.
The kernel's shapes that are no default stand beside it, so that one run tells which is best.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

from workers.checkpoints.blocks import FORMATS
from workers.kernels import products, skinny
from workers.kernels.skinny import Shape
from workers.weights.blocks import ALIGNED, Blocks

KINDS = ("Q4_K", "Q6_K", "Q8_0", "FP8_128", "INT8_128", "MXFP4")
SHAPES = ((4096, 4096), (12_288, 4096), (4096, 12_288))  # rows, columns: an 8B's
TOKENS = (1, 8, 16, 64, 512)
NO_CACHE = 256 << 20  # bytes of weights, one after the other
SECONDS = 55.0
# Of a number of tokens: what else a program may have.
VARIANTS = {
    1: (Shape(8, 16, 24), Shape(8, 32, 8), Shape(8, 32, 32), Shape(8, 32, 16, 2), Shape(8, 32, 12, 3)),
    16: (Shape(16, 32, 12), Shape(16, 16, 16, 2)),
    64: (Shape(16, 32, 12), Shape(32, 32, 12)),
}


class Timing(NamedTuple):
    """Of one product, and the bytes of its weight."""

    seconds: float
    nbytes: int

    def text(self, copying: float) -> str:
        rate = self.nbytes / self.seconds
        return f"{self.seconds * 1e6:.1f} µs, {rate / 1e9:.0f} GB/s, {rate / copying:.0%} of copying"


def right(device: str) -> Iterator[tuple[str, bool, float]]:
    """Name, whether it is right, and the error, of every format in planes at several numbers of tokens."""
    from tests.workers.interpreted_products import weight_of
    from workers.kernels.planes_triton import KINDS as ALL

    generator = torch.Generator().manual_seed(0)
    for kind in ALL:
        weight = weight_of(kind, 300, 1024)
        there = Blocks(weight.format, weight.data.to(device), torch.bfloat16).to_planes()
        worst = 0.0
        for tokens in (1, 7, 13, 40, 200):
            x = torch.randn(tokens, 1024, generator=generator).bfloat16()
            bias = torch.randn(300, generator=generator).bfloat16()
            expected = x.float() @ weight.float().t() + bias.float()
            y = products.product(x.to(device), there, bias.to(device)).float().cpu()
            error = float((y - expected).norm() / expected.norm())
            worst = error if error != error else max(worst, error)
        yield kind, worst < 0.004, worst


def copying(device: str) -> float:
    """Bytes a second that are read and written."""
    big = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(big)
    return 2 * big.nbytes / replayed([partial(target.copy_, big)] * 4)


def replayed(calls: list[Callable[[], object]], rounds: int = 3) -> float:
    """Seconds of one of `calls`, which are a graph: the least of some replays."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        calls[0]()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    best = float("inf")
    for _ in range(rounds + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return best / len(calls)


def weights_of(kind: str, rows: int, columns: int, device: str) -> list[Blocks]:
    """As many as no cache holds, of random bits, in planes."""
    form = FORMATS[kind]
    size = form.row_bytes(columns)
    stride = -(-size // ALIGNED) * ALIGNED
    count = max(2, min(32, -(-NO_CACHE // (rows * size))))
    return [
        Blocks(
            form,
            torch.randint(0, 127, (rows, stride), dtype=torch.uint8, device=device)[:, :size],
            torch.bfloat16,
            True,
        )
        for _ in range(count)
    ]


def rates(device: str, until: float) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Name, text and figures of each format, size and number of tokens, as long as there is time."""
    limit = copying(device)
    yield "copying", f"{limit / 1e9:.0f} GB/s", {"per_second": limit}
    for rows, columns in SHAPES:
        plain = [torch.randn(rows, columns, device=device).bfloat16() for _ in range(4)]
        for tokens in (1, 16):
            x = torch.randn(tokens, columns, device=device).bfloat16()
            took = Timing(replayed([partial(F.linear, x, weight) for weight in plain]), plain[0].nbytes)
            yield f"bf16 {rows}x{columns} at {tokens}", took.text(limit), {"seconds": took.seconds}
        for kind in KINDS:
            weights = weights_of(kind, rows, columns, device)
            for tokens in TOKENS:
                if time.monotonic() > until:
                    return
                x = torch.randn(tokens, columns, device=device).bfloat16()
                some = weights[: None if tokens < 512 else 2]
                calls = [partial(products.product, x, weight) for weight in some]
                took = Timing(replayed(calls), weights[0].nbytes)
                text, share = took.text(limit), took.nbytes / took.seconds / limit
                figures = {"seconds": took.seconds, "share": share}
                for shape in VARIANTS.get(tokens, ()):
                    if tokens == 64 and shape.tokens == 32 and kind in skinny.WIDE:
                        continue
                    calls = [partial(skinny.product, x, each.data, kind, None, shape) for each in weights]
                    other = replayed(calls)
                    label = "x".join(map(str, shape))
                    text += f"; {label}: {other * 1e6:.1f}"
                    figures[label] = other
                yield f"{kind} {rows}x{columns} at {tokens}", text, figures


def warm(kind: str, device: str) -> None:
    """Compile what `rates` calls in that format; Triton keeps it on disk."""
    weights = weights_of(kind, 4096, 4096, device)[:1]
    for tokens in TOKENS:
        x = torch.randn(tokens, 4096, device=device).bfloat16()
        products.product(x, weights[0])
        for shape in VARIANTS.get(tokens, ()):
            if shape.tokens < 32 or kind not in skinny.WIDE:
                skinny.product(x, weights[0].data, kind, None, shape)
    torch.cuda.synchronize()


def compile_all(device: str, seconds: float) -> None:
    """All formats at once, each in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.products"]
    running = [subprocess.Popen([*command, kind, device]) for kind in KINDS]
    end = time.monotonic() + seconds
    for process in running:
        try:
            process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    warm(*sys.argv[1:])
