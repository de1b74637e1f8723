"""What products with quantised weights take on a device: part `products` of `benchmarks.gpu`.

Each is right first: in every format and for every way that a number of rows is computed. Then it is timed as
graphs that are replayed, one product after the other with weights that no cache holds, so that neither a
launch nor a cache counts; as bytes of the weight a second, beside the rate at which the same device reads.
The kernel's shapes that are no default stand beside it, so that one run tells which is best.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

from workers.checkpoints.blocks import FORMATS, LINE
from workers.kernels import experts_triton, grouped, products, skinny
from workers.kernels.pairs import Pairs
from workers.kernels.skinny import Shape
from workers.weights.blocks import Blocks, Weight

KINDS = ("Q4_K", "Q6_K", "Q8_0", "FP8_128", "INT8_128", "MXFP4", "INT4_128", "NVFP4")
SHAPES = ((4096, 4096), (12_288, 4096), (4096, 12_288))  # rows, columns: an 8B's
SMALL = ((6144, 1024), (1024, 3072))  # a 0.6B's, in bfloat16 alone
TOKENS = (1, 8, 16, 32, 64, 512)
NO_CACHE = 256 << 20  # bytes of weights, one after the other
SECONDS = 55.0
# Of a number of tokens: what else a program may have.
VARIANTS = {
    1: (Shape(8, 32, 16), Shape(8, 16, 24), Shape(8, 32, 24)),
    16: (Shape(8, 32, 16), Shape(16, 16, 16), Shape(16, 32, 12, 2)),
    32: (Shape(16, 32, 12), Shape(32, 64, 6, 2)),
    64: (Shape(64, 64, 6, 2), Shape(64, 64, 6, 3)),
}
ALONE = ((16, 24), (32, 24), (64, 12))  # for a token or two: rows and warps
PLAIN = {1: (Shape(8, 16, 16), Shape(8, 32, 16)), 16: (Shape(16, 16, 16), Shape(16, 32, 16))}
EXPERTS = (Shape(8, 16, 24), Shape(8, 32, 16), Shape(8, 16, 32))


def variants(tokens: int, kind: str) -> Iterator[Shape]:
    """What a product of so many tokens is measured with beside its own shape."""
    others = VARIANTS.get(tokens, ())
    if few := skinny.alone(kind) if tokens == 1 else 0:
        others = (*others, *(Shape(few, *each) for each in ALONE))
    yield from (shape for shape in others if shape != skinny.shape_of(tokens, kind))


class Timing(NamedTuple):
    """Of one product, and the bytes of its weight."""

    seconds: float
    nbytes: int

    def text(self, reading: float) -> str:
        rate = self.nbytes / self.seconds
        return f"{self.seconds * 1e6:.1f} µs, {rate / 1e9:.0f} GB/s, {rate / reading:.0%} of reading"


def right(device: str) -> Iterator[tuple[str, bool, float]]:
    """Name, whether it is right, and the error, of every format in planes at several numbers of tokens."""
    from tests.workers.random_blocks import weight_of
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


def reading(device: str) -> float:
    """Bytes a second that are read."""
    big = torch.ones(1 << 30, device=device)
    return big.nbytes / replayed([big.sum] * 2)


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


def label_of(shape: tuple[int | None, ...]) -> str:
    """Its numbers, without those that are left to the assembler."""
    return "x".join(str(each) for each in shape if each is not None)


def weights_of(kind: str, rows: int, columns: int, device: str) -> list[Blocks]:
    """As many as no cache holds, of random bits, in planes."""
    form = FORMATS[kind]
    size = form.row_bytes(columns)
    stride = -(-size // LINE) * LINE
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
    limit = reading(device)
    yield "reading", f"{limit / 1e9:.0f} GB/s", {"per_second": limit}
    yield from of_experts(device, limit, until)
    for rows, columns in (*SMALL, *SHAPES):
        count = min(64, max(4, NO_CACHE // (2 * rows * columns)))
        plain = [torch.randn(rows, columns, device=device).bfloat16() for _ in range(count)]
        for tokens in (1, 16):
            x = torch.randn(tokens, columns, device=device).bfloat16()
            took = Timing(replayed([partial(F.linear, x, weight) for weight in plain]), plain[0].nbytes)
            text, figures = took.text(limit), {"seconds": took.seconds}
            for shape in PLAIN[tokens]:
                calls = [partial(skinny.product, x, each, "PLAIN", None, shape=shape) for each in plain]
                other = replayed(calls)
                label = label_of(shape)
                text += f"; {label}: {other * 1e6:.1f}"
                figures[label] = other
            yield f"bf16 {rows}x{columns} at {tokens}", text, figures
        for kind in KINDS if (rows, columns) in SHAPES else ():
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
                for shape in variants(tokens, kind):
                    calls = [
                        partial(skinny.product, x, each.data, kind, None, shape=shape) for each in weights
                    ]
                    other = replayed(calls)
                    label = label_of(shape)
                    text += f"; {label}: {other * 1e6:.1f}"
                    figures[label] = other
                yield f"{kind} {rows}x{columns} at {tokens}", text, figures


def of_experts(device: str, limit: float, until: float) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Both products of a layer of Qwen3-30B-A3B, by what its chosen experts take of memory's rate."""
    hidden, inner, count, chosen = 2048, 768, 128, 8
    for kind in ("PLAIN", "Q4_K", "FP8_128"):
        for rows, columns in ((2 * inner, hidden), (hidden, inner)):
            weights = expert_weights(kind, count * rows, columns, device)
            for tokens in (1, 8, 64):
                if time.monotonic() > until:
                    return
                scores = torch.rand(tokens, count, device=device)
                numbers = scores.topk(chosen, dim=-1).indices.flatten()
                pairs = Pairs.of(numbers, count, chosen)
                x = torch.randn(tokens, columns, device=device).bfloat16()
                y = x.new_empty(len(numbers), rows)
                found = len(numbers.unique())
                ways: dict[str, Shape | None] = {"": None}
                if tokens < 64:
                    ways |= {label_of(shape): shape for shape in EXPERTS}
                text, figures = "", {}
                for label, shape in ways.items():
                    if shape is None:
                        calls = [partial(grouped.product, x, each, None, pairs, y) for each in weights]
                    else:
                        calls = [
                            partial(experts_triton.product, x, each, None, pairs, y, None, None, shape)
                            for each in weights
                        ]
                    took = Timing(replayed(calls), weights[0].nbytes * found // count)
                    text += f"; {label}: {took.seconds * 1e6:.1f}" if label else took.text(limit)
                    figures[label or "seconds"] = took.seconds
                yield f"experts {kind} {rows}x{columns} at {tokens}, {found} chosen", text, figures


def expert_weights(kind: str, rows: int, columns: int, device: str) -> list[Weight]:
    if kind == "PLAIN":
        return [torch.randn(rows, columns, device=device).bfloat16() for _ in range(8)]
    return weights_of(kind, rows, columns, device)[:8]


def warm(kind: str, device: str) -> None:
    """Compile what `rates` calls in that format; Triton keeps it on disk."""
    if kind == "experts":
        for _ in of_experts(device, 1.0, float("inf")):
            pass
        return
    if kind == "bf16":
        weight = torch.zeros(4096, 4096, dtype=torch.bfloat16, device=device)
        for tokens, shapes in PLAIN.items():
            for shape in shapes:
                skinny.product(weight[:tokens], weight, "PLAIN", None, shape=shape)
        torch.cuda.synchronize()
        return
    weights = weights_of(kind, 4096, 4096, device)[:1]
    for tokens in TOKENS:
        x = torch.randn(tokens, 4096, device=device).bfloat16()
        products.product(x, weights[0])
        for shape in variants(tokens, kind):
            skinny.product(x, weights[0].data, kind, None, shape=shape)
    torch.cuda.synchronize()


def compile_all(device: str, seconds: float) -> None:
    """All formats at once, each in a process of its own."""
    at_once("benchmarks.products", (*KINDS, "experts", "bf16"), device, seconds)


def at_once(module: str, parts: Iterable[object], device: str, seconds: float) -> None:
    """Run `python -m MODULE PART DEVICE` for each part, none of them longer than that."""
    running = [subprocess.Popen([sys.executable, "-m", module, str(part), device]) for part in parts]
    end = time.monotonic() + seconds
    for process in running:
        try:
            process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    warm(*sys.argv[1:])
