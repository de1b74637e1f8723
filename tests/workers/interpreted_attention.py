"""In a process that interprets: attention as GPUs compute it, on the CPU.

bfloat16 is left to devices: the interpreter multiplies its bits as if they were integers.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from torch import Tensor

from ipc.worker_messages import PAGE_SIZE, CacheGroup
from tests.workers.attention_steps import attend_in_any_cut
from workers.cache.quantised import CODES, MOST, dequantise, quantise
from workers.step.pages import pages_for

GROUPS = [
    CacheGroup(kind="full", layers=[1]),
    CacheGroup(kind="window", layers=[0], window=7),
    CacheGroup(kind="chunk", layers=[2], window=32),
]


class Case(NamedTuple):
    """A long sequence and a short one, with as many new tokens each, which one launch computes."""

    context: int
    tokens: int = 1
    heads: int = 8
    kv_heads: int = 1
    head_dim: int = 64
    value_dim: int = 64  # where it is less, values are the first part of keys
    kind: str = "full"
    window: int = 0
    cap: float | None = None
    sinks: bool = False
    kept: torch.dtype | None = None  # of keys and values, where it is not float32
    block: int = 64  # keys that a program takes at once; where its share of them begins is a multiple


LONG = 65_535  # the last page lacks a token
CASES = [
    # one token, whose keys 32 programs have at most: each 2,048 of all, and less of what a window leaves
    Case(LONG, head_dim=32, value_dim=32, kept=CODES["fp8"], block=1024),
    Case(LONG, heads=7, kind="window", window=4097, cap=20.0, sinks=True),
    Case(LONG, heads=2, kv_heads=2, kind="chunk", window=32_768, sinks=True, block=1024),
    Case(LONG, heads=5, kind="window", window=40_896, cap=30.0, sinks=True, kept=CODES["int8"], block=256),
    # some tokens; and a prompt's last ones, whose keys are not divided
    Case(LONG, 5, heads=4, head_dim=32, value_dim=32, sinks=True, block=1024),
    Case(LONG, 40, heads=1, kind="window", window=30_001, cap=30.0, block=2048),
    # heads of all sizes
    Case(97, heads=6, kv_heads=2, head_dim=80, value_dim=80, sinks=True),
    Case(300, 3, heads=4, kv_heads=1, head_dim=96, value_dim=96, kind="window", window=70),
    Case(129, 20, heads=8, kv_heads=4, head_dim=128, value_dim=128, cap=30.0, block=32),
    Case(64, heads=1, head_dim=192, value_dim=192, kept=CODES["int8"], block=32),
    Case(200, 2, heads=8, kv_heads=1, head_dim=256, value_dim=256, kind="chunk", window=128, block=32),
    Case(65, heads=2, head_dim=512, value_dim=512, block=16),
    Case(100, heads=16, head_dim=576, value_dim=512, block=16),
]


def beside_whole_sequences(case: Case, seed: int) -> None:
    """Attend with a new token or some, over pages of which many are the same, to take little memory."""
    from workers.attention.cuda import FEW_TOKENS
    from workers.kernels.attention_triton import Rows, Sequences, Tile, attention, num_splits

    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    contexts, tokens, pool = (case.context, case.tokens + 2), case.tokens, 61
    shared = case.value_dim < case.head_dim
    kv = torch.randn(2 - shared, pool, case.kv_heads, PAGE_SIZE, case.head_dim, generator=generator)
    numbers = [[rng.randrange(pool) for _ in range(pages_for(context))] for context in contexts]
    q = torch.randn(2 * tokens, case.heads, case.head_dim, generator=generator)
    sinks = torch.randn(case.heads, generator=generator) if case.sinks else None
    kept, scales = (kv, None) if case.kept is None else quantise(kv, case.kept)
    places = torch.tensor([0, len(numbers[0])])
    starts, ends = torch.tensor([0, tokens, 2 * tokens]), torch.tensor(contexts)
    sequences = Sequences(torch.tensor([1, 0]), starts, ends, places, torch.tensor(numbers[0] + numbers[1]))
    if tokens == 1:  # these stand in their order
        sequences = sequences._replace(order=torch.arange(2))
    first = [_first_seen(case, context - tokens) for context in contexts]
    few = tokens <= FEW_TOKENS
    splits = max(map(num_splits, first, contexts)) if few else 0
    y = torch.full((2 * tokens, case.heads, case.value_dim), torch.nan)
    attention(
        *(q, kept, case.value_dim, y, sequences, Rows(0, 2, tokens, few, splits), case.kind, case.window),
        *(case.head_dim**-0.5, case.cap, sinks, Tile(16, case.block, 4, 1), scales),
    )
    if case.kept is not None:
        kv = dequantise(kept, scales)
    for number, context in enumerate(contexts):
        rows = slice(number * tokens, (number + 1) * tokens)
        keys, values = (
            block[numbers[number]].transpose(1, 2).flatten(0, 1)[:context] for block in (kv[0], kv[-1])
        )
        wanted = _attended(case, q[rows], keys, values[..., : case.value_dim], sinks)
        torch.testing.assert_close(y[rows], wanted, msg=lambda text: f"{case}: {text}")


def _first_seen(case: Case, position: int) -> int:
    seen = {"window": position - case.window + 1, "chunk": position // max(case.window, 1) * case.window}
    return max(0, seen.get(case.kind, 0))


def _attended(case: Case, q: Tensor, keys: Tensor, values: Tensor, sinks: Tensor | None) -> Tensor:
    """The same in plain torch, of one sequence."""
    group, context = case.heads // case.kv_heads, len(keys)
    out = torch.empty(*q.shape[:2], case.value_dim)
    for token, head in torch.cartesian_prod(torch.arange(len(q)), torch.arange(case.heads)).tolist():
        position = context - len(q) + token
        seen = slice(_first_seen(case, position), position + 1)
        scores = keys[seen, head // group] @ q[token, head] * case.head_dim**-0.5
        if case.cap is not None:
            scores = case.cap * torch.tanh(scores / case.cap)
        if sinks is not None:
            scores = torch.cat((scores, sinks[head : head + 1]))
        out[token, head] = scores.softmax(-1)[: position + 1 - seen.start] @ values[seen, head // group]
    return out


def attention() -> None:
    """Every token attends over what it may see."""
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

    every_code()
    for number, case in enumerate(CASES):
        beside_whole_sequences(case, number)


def every_code() -> None:
    """All numbers that there are codes for, and all halves between two of them, of which each becomes the one
    that is even; in heads whose greatest number is the greatest code's, so that their scales are one."""
    from workers.kernels.attention_triton import Sequences
    from workers.kernels.cache_triton import write

    size = 32
    for dtype in CODES.values():
        most = MOST[dtype]
        codes = torch.arange(127, dtype=torch.uint8)
        numbers = codes.view(torch.float8_e4m3fn).float() if dtype == torch.uint8 else torch.arange(128.0)
        numbers = torch.cat((numbers, (numbers[1:] + numbers[:-1]) / 2))
        numbers = torch.cat((numbers, -numbers))
        heads = torch.nn.functional.pad(numbers, (0, -len(numbers) % (size - 1))).view(-1, size - 1)
        heads = torch.nn.functional.pad(heads, (1, 0), value=most)[None]  # [1, heads, size]
        kept = torch.zeros(1, 1, heads.shape[1], PAGE_SIZE, size, dtype=dtype)
        scales = torch.zeros(kept.shape[:-1], dtype=torch.float16)
        zero = torch.tensor([0])
        sequences = Sequences(zero, torch.tensor([0, 1]), torch.tensor([1]), zero, zero)
        write(kept, heads, None, zero, sequences, scales)
        found, expected = dequantise(kept, scales)[0, 0, :, 0], dequantise(*quantise(heads, dtype))[0]
        assert torch.equal(found, expected), (found[found != expected], expected[found != expected])
        assert (scales[0, 0, :, 0] == 1).all()
