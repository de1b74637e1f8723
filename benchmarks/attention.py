"""What attention over pages takes on a device: part `attention` of `benchmarks.gpu`.

It is right first: bfloat16 beside float32 in plain torch, over heads, windows, caps and sinks. Then decode
and prompts are timed as graphs that are replayed, over keys that no cache holds: decode beside the rate at
which the device reads, a prompt beside that of its products. Shapes that are no default stand beside the
default, so that one run tells which is best.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from benchmarks.kernels import Compiled, compile_for
from benchmarks.products import at_once, label_of, reading, replayed
from ipc.model_settings import KVCacheDtype
from ipc.worker_messages import PAGE_SIZE
from workers.cache.quantised import CODES, dequantise, quantise
from workers.checkpoints.caches import SCALE_BYTES
from workers.kernels import attention_triton, fused
from workers.kernels.attention_triton import Rows, Sequences, Tile, num_splits, tile
from workers.kernels.cache_triton import write
from workers.kernels.eight_bits_triton import INT8, WHOLE
from workers.kernels.fused import Turn
from workers.kernels.gates import Gates
from workers.kernels.heads_triton import turn_and_write
from workers.step.pages import pages_for

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128  # of Qwen3-8B
DECODE = tuple((batch, context) for context in (512, 4096, 16_384) for batch in (1, 8, 32))
IN_CODES = ((1, 16_384), (32, 4096))
PROMPTS = (2048, 8192)
NO_CACHE = 256 << 20  # bytes of keys and values, one after the other
SECONDS = 45.0
FEW = (Tile(16, 32, 4, 3), Tile(16, 64, 4, 3), Tile(16, 64, 8, 2), Tile(16, 32, 2, 3))
MANY = (Tile(128, 64, 8, 3), Tile(128, 32, 8, 3), Tile(128, 64, 8, 2), Tile(128, 128, 8, 2))


TOKENS = ("single", "few", "prompt")  # of a sequence


class Case(NamedTuple):
    """Sequences of one length with the same number of new tokens each."""

    count: int
    tokens: int  # new, of each
    context: int
    heads: int = HEADS
    kv_heads: int = KV_HEADS
    head_dim: int = HEAD_DIM
    value_dim: int = 0  # 0: as large as keys; otherwise values are the first part of keys
    kind: str = "full"
    window: int = 0
    cap: float | None = None
    sinks: bool = False
    kept: KVCacheDtype | None = None  # keys and values in 8 bits


RIGHT = {
    "decode": Case(3, 1, 700),
    "decode of 1 head a key head": Case(3, 1, 333, 4, 4, 64),
    "decode of 7 heads a key head": Case(2, 1, 4500, 7, 1, 80),
    "decode with a window": Case(2, 1, 1000, 8, 4, 256, kind="window", window=300, cap=30.0),
    "decode in chunks with sinks": Case(2, 1, 1000, 8, 1, 64, kind="chunk", window=512, sinks=True),
    "decode of latent vectors": Case(2, 1, 500, 128, 1, 576, 512),
    "five tokens": Case(2, 5, 900),
    "prompt": Case(2, 300, 300),
    "prompt behind another": Case(2, 200, 500, 12, 2, 96),
    "prompt with a window": Case(1, 500, 700, 8, 4, 256, kind="window", window=100, cap=30.0),
    "prompt with sinks": Case(1, 300, 300, 16, 2, 64, kind="window", window=128, sinks=True),
    "prompt of latent vectors": Case(1, 40, 90, 16, 1, 576, 512),
    "prompt of heads of 512": Case(1, 70, 90, 8, 1, 512),
    "decode over int8": Case(3, 1, 700, kept="int8"),
    "decode over fp8 with a window": Case(2, 1, 1000, 8, 4, 256, kind="window", window=300, kept="fp8"),
    "five tokens over fp8 with sinks": Case(2, 5, 900, sinks=True, kept="fp8"),
    "prompt over int8": Case(2, 200, 500, 12, 2, 96, kept="int8"),
    "prompt over fp8": Case(1, 300, 300, kept="fp8"),
}


class Inputs:
    """Random queries, keys and values of a case, in pages at random; one of `pools` is a layer's."""

    def __init__(self, case: Case, device: str, pools: int = 1) -> None:
        self.case, blocks = case, 1 if case.value_dim else 2
        pages, rows = case.count * pages_for(case.context), case.count * case.tokens
        shape = (blocks, pages, case.kv_heads, PAGE_SIZE, case.head_dim)

        def random(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_()

        self.pools = [random(*shape) for _ in range(pools)]
        each = pages // case.count
        for pool in self.pools:  # what is behind a context must not matter
            last = pool.view(blocks, case.count, each, *shape[2:])[:, :, -1]
            last[..., case.context % PAGE_SIZE or PAGE_SIZE :, :] = torch.nan
        self.scales: list[Tensor | None] = [None] * pools
        if case.kept is not None:
            codes = [quantise(pool, CODES[case.kept]) for pool in self.pools]
            self.pools, self.scales = ([*each] for each in zip(*codes, strict=True))
        self.qkv = random(rows, case.heads + 2 * case.kv_heads, case.head_dim)
        self.q = self.qkv[:, : case.heads]
        self.value_dim = case.value_dim or case.head_dim
        self.y = random(rows, case.heads, self.value_dim)
        self.sinks = random(case.heads) if case.sinks else None
        order = torch.arange(case.count, device=device)
        self.owners = order.repeat_interleave(case.tokens)
        places = [[*torch.randperm(each - 1).tolist(), each - 1] for _ in range(case.count)]
        numbers = torch.tensor(places, device=device) + order[:, None] * each
        starts = torch.arange(0, rows + 1, case.tokens, device=device)
        contexts = torch.full((case.count,), case.context, device=device)
        self.sequences = Sequences(order, starts, contexts, order * each, numbers.flatten())
        few = case.tokens <= 16
        first = case.context - case.tokens
        lowest = {"full": 0, "window": max(0, first - case.window + 1)}.get(case.kind)
        lowest = first // case.window * case.window if lowest is None else lowest
        self.rows = Rows(0, case.count, case.tokens, few, num_splits(lowest, case.context) if few else 0)

    def attend(self, pool: int = 0, shape: Tile | None = None) -> Tensor:
        case = self.case
        attention_triton.attention(
            *(self.q, self.pools[pool], self.value_dim, self.y, self.sequences, self.rows),
            *(case.kind, case.window, case.head_dim**-0.5, case.cap, self.sinks, shape, self.scales[pool]),
        )
        return self.y

    def reference(self) -> Tensor:  # [rows, heads, value_dim] float32
        case, kv = self.case, self.pools[0]
        if case.kept is not None:
            kv = dequantise(kv, self.scales[0])
        numbers = self.sequences.pages.view(case.count, -1)
        keys, values = (
            pool[numbers].transpose(2, 3).flatten(1, 2)[:, : case.context].float() for pool in (kv[0], kv[-1])
        )
        group = case.heads // case.kv_heads
        keys, values = (x.repeat_interleave(group, dim=2) for x in (keys, values[..., : self.value_dim]))
        q = self.q.float().view(case.count, case.tokens, case.heads, case.head_dim)
        scores = torch.einsum("sqhd,skhd->shqk", q, keys) * case.head_dim**-0.5
        if case.cap is not None:
            scores = torch.tanh(scores / case.cap) * case.cap
        position = torch.arange(case.context - case.tokens, case.context, device=q.device)[:, None]
        place = torch.arange(case.context, device=q.device)
        unseen = place > position
        if case.kind == "window":
            unseen |= place <= position - case.window
        if case.kind == "chunk":
            unseen |= place < position // case.window * case.window
        scores = scores.masked_fill(unseen, -torch.inf)
        if self.sinks is not None:
            sinks = self.sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
            scores = torch.cat((scores, sinks), dim=-1)
        weights = scores.softmax(-1)[..., : case.context]
        return torch.einsum("shqk,skhd->sqhd", weights, values).flatten(0, 1)


def right(device: str) -> Iterator[tuple[str, bool, float]]:
    """Name, whether it is right, and the error, of every case."""
    for name, case in RIGHT.items():
        inputs = Inputs(case, device)
        found, expected = inputs.attend().float(), inputs.reference()
        error = float((found - expected).norm() / expected.norm())
        yield name, error < 0.01, error


def rates(device: str, until: float) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Name, text and figures of each case, as long as there is time."""
    limit = reading(device)
    yield "reading", f"{limit / 1e9:.0f} GB/s", {"per_second": limit}
    for batch, context in DECODE:
        if time.monotonic() > until:
            return
        case = Case(batch, 1, context)
        nbytes = batch * context * KV_HEADS * HEAD_DIM * 4
        inputs = Inputs(case, device, pools := max(2, min(32, -(-NO_CACHE // nbytes))))
        took = replayed([partial(inputs.attend, pool) for pool in range(pools)])
        text = f"{took * 1e6:.1f} µs, {nbytes / took / limit:.0%} of reading"
        figures = {"seconds": took, "share": nbytes / took / limit}
        for shape in FEW:
            other = replayed([partial(inputs.attend, pool, shape) for pool in range(pools)])
            label = label_of(shape)
            text, figures[label] = f"{text}; {label}: {other * 1e6:.1f}", other
        yield f"decode {batch} at {context}", text, figures
    for kept, (batch, context) in product(CODES, IN_CODES):
        if time.monotonic() > until:
            return
        nbytes = batch * context * KV_HEADS * (HEAD_DIM + SCALE_BYTES) * 2
        inputs = Inputs(
            Case(batch, 1, context, kept=kept), device, pools := max(2, min(32, NO_CACHE // nbytes))
        )
        took = replayed([partial(inputs.attend, pool) for pool in range(pools)])
        figures = {"seconds": took, "share": nbytes / took / limit}
        text = f"{took * 1e6:.1f} µs, {figures['share']:.0%} of reading"
        yield f"decode {batch} at {context} over {kept}", text, figures
    size = 4096
    left = torch.randn(2 * size, 2 * size, device=device).bfloat16()
    products = 2 * (2 * size) ** 3 / replayed([partial(torch.mm, left, left)] * 4)
    for tokens in PROMPTS:
        if time.monotonic() > until:
            return
        inputs = Inputs(Case(1, tokens, tokens), device, 2)
        operations = 2 * HEADS * HEAD_DIM * tokens * (tokens + 1)  # two products, of half of the square
        text, figures = "", {}
        for shape in (None, *MANY):
            took = replayed([partial(inputs.attend, pool, shape) for pool in range(2)])
            label = label_of(shape or ())
            rate = f"{took * 1e6:.0f} µs, {operations / took / products:.0%} of products"
            text += f"; {label}: {rate}" if label else rate
            figures[label or "seconds"] = took
        yield f"prompt of {tokens}", text, figures
    yield from small(device)


def small(device: str) -> Iterator[tuple[str, str, dict[str, float]]]:
    """What stands between the products of a layer, at a few numbers of tokens."""
    hidden, inner = 4096, 12_288
    for tokens in (1, 32, 2048):
        inputs = Inputs(Case(tokens, 1, 33), device)
        weight, head = (torch.ones(n, dtype=torch.bfloat16, device=device) for n in (hidden, HEAD_DIM))
        x, y = (torch.randn(tokens, hidden, device=device).bfloat16() for _ in range(2))
        gate_up = torch.randn(tokens, 2 * inner, device=device).bfloat16()
        angles = tuple(torch.rand(tokens, 1, HEAD_DIM, device=device) for _ in range(2))
        heads = inputs.qkv.split((HEADS, KV_HEADS, KV_HEADS), dim=1)
        given = inputs.owners, inputs.sequences
        turn = Turn((head, head), 0.0, 1e-6, angles)
        calls = {
            "norm of a sum": partial(fused.norm_of_sum, x, y, weight, 1e-6, 0.0),
            "gate": partial(fused.gated, gate_up, Gates("silu")),
            "heads and pages": partial(turn_and_write, inputs.pools[0], *heads, turn, *given),
            "pages alone": partial(write, inputs.pools[0], *heads[1:], *given),
        }
        for name, call in calls.items():
            took = replayed([call] * 8)
            yield f"{name} at {tokens}", f"{took * 1e6:.1f} µs", {"seconds": took}


def compile_attention(
    capability: int,
    tokens: str,
    head_dim: int,
    dtype: str = "bf16",
    window: int = 0,
    special: bool = False,
    kind: int = WHOLE,
    mutual: bool = False,
) -> Compiled:
    """The kernel for cards of that capability; needs no device.

    Args:
        tokens: of a sequence: of `TOKENS`.
        window: the number of its kind.
        kind: in which keys and values are kept.
        mutual: tokens see each other.
        special: with caps and sinks. Where heads have 576 dimensions, 512 of them are values.
    """
    few = tokens != "prompt"
    of_type = 4 if dtype == "fp32" else 2, capability, special, kind != WHOLE, window > 0
    shape = tile(few, head_dim, *of_type)
    value_dim = 512 if head_dim == 576 else head_dim
    pointers = dict.fromkeys(("q", "keys", "values", "y", "sinks"), f"*{dtype}")
    pointers |= dict.fromkeys(("key_scales", "value_scales"), f"*{dtype}")
    if kind:
        pointers |= dict.fromkeys(("keys", "values"), "*i8" if kind == INT8 else "*u8")
        pointers |= dict.fromkeys(("key_scales", "value_scales"), "*fp16")
    pointers |= dict.fromkeys(("parts", "sums"), "*fp32")
    pointers |= dict.fromkeys(("order", "starts", "contexts", "tables", "pages"), "*i64")
    strides = ("q_stride", "head_stride", "page_stride", "scale_stride")
    numbers = dict.fromkeys(("first", "tokens", "programs", "room", "window", *strides), "i32")
    numbers |= {"scale": "fp32", "cap": "fp32"}
    constants = {
        "SINGLE": tokens == "single",
        "HEADS": 32,
        "GROUP": 4,
        "HEAD_DIM": head_dim,
        "VALUE_DIM": value_dim,
        "PAGE": PAGE_SIZE,
        "WINDOW": window,
        "CAPPED": special,
        "SINKS": special,
        "SHARED": value_dim < head_dim,
        "KIND": kind,
        "MUTUAL": mutual,
        "MOST": attention_triton.MOST_SPLITS if few else 0,
        "UNIT": attention_triton.SPLIT,
        "BLOCK_M": shape.rows,
        "BLOCK_N": shape.keys,
        "BLOCK_D": max(16, triton.next_power_of_2(value_dim)),
        "BLOCK_REST": max(16, triton.next_power_of_2(head_dim - value_dim)),
        "BLOCK_V": max(16, triton.next_power_of_2(value_dim)),
    }
    given = attention_triton.attention_kernel, pointers | numbers, constants, (*pointers, *strides)
    options = {"num_warps": shape.warps, "num_stages": shape.stages, "maxnreg": shape.registers}
    return Compiled(compile_for(capability, *given, **options), True)


def warm(number: int, device: str) -> None:
    """Compile what `rates` calls, in the shape of that number; Triton keeps it on disk."""
    for shapes, case in ((FEW, Case(1, 1, 512)), (MANY, Case(1, 64, 64))):
        shape = None if number == 0 else shapes[number - 1]
        Inputs(case, device).attend(0, shape)
    torch.cuda.synchronize()


def compile_all(device: str, seconds: float) -> None:
    """All shapes at once, each in a process of its own."""
    at_once("benchmarks.attention", range(1 + len(FEW)), device, seconds)


if __name__ == "__main__":
    warm(int(sys.argv[1]), sys.argv[2])
