"""The compiled kernels of a step: each computes what its plain reference does, and nothing needs them."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from ipc.worker_messages import PAGE_SIZE
from workers.attention.blockwise import Chunk, PageRun, Scores, attend_chunk, attend_decode
from workers.cache.paged import write_kv
from workers.cache.quantised import Pages
from workers.checkpoints.rope import Rope
from workers.kernels import step
from workers.layers.norm import HeadNorm, RMSNorm
from workers.layers.rotary import Rotary, rotate_part
from workers.models.mlp import ACTIVATIONS, gated
from workers.weights.blocks import Empty

TYPES = [torch.bfloat16, torch.float16]
ULP = {torch.bfloat16: 2**-7, torch.float16: 2**-10}  # between two numbers next to each other, at most


@pytest.fixture(scope="module", autouse=True)
def library(built_library, compiled_library):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "library", lambda: built_library)
        yield built_library


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_alike(ours: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Equal but for what is rounded the other way, which is seldom."""
    assert ours.dtype == dtype
    expected = expected.to(dtype)
    torch.testing.assert_close(ours, expected, rtol=ULP[dtype], atol=1e-6)
    assert ((ours.float() - expected.float()).abs() > 1e-6).float().mean() < 0.02


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("size", [8, 24, 640])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_norm_is_that_of_float32_rounded_once(dtype, size, offset):
    norm = RMSNorm("norm", size, 1e-6, Empty(dtype), offset)
    norm.weight[:] = randn(size, dtype=dtype, seed=1)
    x, other = randn(5, size, dtype=dtype) * 3, randn(5, size, dtype=dtype, seed=2)
    wide = x.float()
    expected = (
        wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6) * (norm.weight.float() + offset)
    )
    assert step.takes(x, size)
    assert_alike(norm(x), expected, dtype)
    assert_alike(norm.added(other, x), other.float() + norm(x).float(), dtype)
    torch.testing.assert_close(norm(x), norm.plain(x), rtol=2 * ULP[dtype], atol=1e-6)
    total, normed = norm.of_sum(x, other)
    assert torch.equal(total, x + other)
    assert torch.equal(normed, norm(total))
    assert torch.equal(step.sum_of(x, other), total)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", step.ACTIVATIONS)
def test_a_gated_activation_is_that_of_torch(dtype, name):
    x = torch.cat([randn(7, 320, dtype=dtype) * 4, randn(7, 320, dtype=dtype, seed=1)], dim=1)
    x[0, :6] = torch.tensor([0.0, -0.0, 100.0, -100.0, 20.0, -20.0])
    gate, up = x.chunk(2, dim=1)
    expected = ACTIVATIONS[name](gate.double()).to(dtype) * up
    assert_alike(gated(x, name, exact=True), expected, dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("turned", [None, 16, 48, 64])
@pytest.mark.parametrize("offset", [None, 0.0, 1.0])
def test_heads_are_normalised_and_turned(dtype, turned, offset):
    """All of their dimensions or some, or none of them."""
    x = randn(3, 7, 64, dtype=dtype)  # 4 queries, 2 keys, 1 value
    angles = (
        None if turned is None else Rotary(Rope(), turned, torch.device("cpu"))(torch.tensor([0, 7, 3000]))
    )
    norm = HeadNorm(("q", "k"), (4, 2), 64, 1e-6, Empty(dtype), offset or 0.0)
    for seed, weight in enumerate(norm.weights):
        weight[:] = randn(64, dtype=dtype, seed=seed)
    expected = x[:, :6].float()
    if offset is not None:
        expected = norm(expected)
    if angles is not None:
        expected = rotate_part(expected, *angles)
    ours = x.clone()
    assert step.takes_heads(ours, turned or 0)
    step.heads(ours, (4, 2), None if offset is None else norm.weights, 1e-6, offset or 0.0, angles)
    assert_alike(ours[:, :6], expected, dtype)
    assert torch.equal(ours[:, 6:], x[:, 6:])


def paged(lengths: list[int], kv_heads: int, head_dim: int, dtype: torch.dtype, blocks: int = 2):
    """A cache whose rest is not a number, and what decode is told of sequences of these lengths."""
    counts = [-(-length // PAGE_SIZE) for length in lengths]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0)).tolist()
    shape = (
        sum(counts),
        3,
        blocks,
        kv_heads,
        PAGE_SIZE,
        head_dim,
    )  # of a pool that has three layers in each page
    kv = torch.full(shape, torch.nan, dtype=dtype)[:, 1].transpose(0, 1)
    pages, rows, seen = [], [], []
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        own, order = order[:count], order[count:]
        for number, page in enumerate(own):
            there = min(PAGE_SIZE, length - number * PAGE_SIZE)
            kv[:, page, :, :there] = randn(blocks, kv_heads, there, head_dim, dtype=dtype, seed=page)
            pages.append(page)
            rows.append(row)
            seen.append(length - number * PAGE_SIZE)
    return kv, tuple(torch.tensor(values) for values in (pages, rows, seen))


def reference(q, kv, value_dim, shown, window, scores):
    pages, rows, seen = shown
    place = torch.arange(PAGE_SIZE)
    hidden = place >= seen[:, None]
    if window:
        hidden |= place < seen[:, None] - window
    bias = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)[:, None, None]
    kv = kv.nan_to_num().float()
    seen = Pages(kv[0]), Pages(kv[-1][..., :value_dim])
    return attend_decode(q.float(), *seen, [PageRun(pages, rows, bias)], scores)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "window"), [(4, 1, 0), (6, 2, 40), (14, 2, 0), (3, 3, 1)])
def test_attention_of_one_token_is_that_over_its_pages(dtype, heads, kv_heads, window):
    """Over contexts of more than one run of pages, too; what is not written in a page reaches nothing."""
    kv, shown = paged([1, 31, 32, 33, 1200], kv_heads, 40, dtype)
    q = randn(5, heads + 2, 40, dtype=dtype)[:, :heads]
    for cap, sinks in itertools.product((None, 5.0), (None, randn(heads))):
        scores = Scores(0.2, cap, sinks)
        ours = step.attention(q, kv, 40, shown, window, 0.2, cap, sinks)
        expected = reference(q, kv, 40, shown, window, scores)
        torch.testing.assert_close(ours, expected.to(dtype), rtol=2 * ULP[dtype], atol=1e-4)


def test_values_may_be_a_part_of_keys():
    kv, shown = paged([50, 3], 1, 48, torch.bfloat16, blocks=1)
    q = randn(2, 8, 48, dtype=torch.bfloat16)
    expected = reference(q, kv, 32, shown, 0, Scores(0.1))
    ours = step.attention(q, kv, 32, shown, 0, 0.1, None, None)
    torch.testing.assert_close(ours.float(), expected, rtol=2 * ULP[torch.bfloat16], atol=1e-4)


def prompt(length: int, heads: int, kv_heads: int, head_dim: int, blocks: int = 2):
    """Queries for a whole context, a cache with its keys, and its pages."""
    kv, (pages, _, _) = paged([length], kv_heads, head_dim, torch.bfloat16, blocks)
    q = 2 * randn(length, heads + 2, head_dim, dtype=torch.bfloat16)[:, :heads]
    if not step.takes_chunk(q, kv, head_dim):
        pytest.skip("this CPU has no such instructions")
    return q, kv, pages


@pytest.mark.parametrize("mutual", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "window"), [(4, 1, 0), (6, 2, 40), (14, 2, 0), (3, 3, 1)])
def test_attention_of_a_prompt_is_that_over_its_pages(heads, kv_heads, window, mutual):
    """And of any part of it, behind what was there before; what is not written in a page reaches nothing."""
    length, part = 300, 83
    whole, kv, pages = prompt(length, heads, kv_heads, 40)
    clean = kv.nan_to_num().float()
    for cap, sinks, (value_dim, q) in itertools.product(
        (None, 5.0), (None, randn(heads)), ((40, whole), (40, whole[-part:]), (24, whole[-2:]))
    ):
        given = (0, length, window, mutual, 0.2, cap, sinks)
        ours = step.chunk_attention(q, kv, value_dim, pages, *given)
        chunk = Chunk(slice(0, len(q)), pages, length, window, 0, mutual)
        seen = Pages(clean[0]), Pages(clean[-1][..., :value_dim])
        expected = attend_chunk(q.float(), *seen, chunk, Scores(0.2, cap, sinks))
        torch.testing.assert_close(ours.float(), expected, rtol=2**-6, atol=0.02)


@pytest.mark.parametrize("window", [0, 40, 100])
def test_a_prompt_in_parts_and_with_any_threads_has_the_bits_of_one_shot(window, monkeypatch):
    length = 300
    q, kv, pages = prompt(length, 4, 2, 64)

    def attended(start: int, end: int) -> torch.Tensor:
        first = max(0, start - window + 1) // PAGE_SIZE if window else 0
        seen = pages[first : -(-end // PAGE_SIZE)], first, end - first * PAGE_SIZE
        return step.chunk_attention(q[start:end], kv, 64, *seen, window, False, 0.2, None, None)

    whole = attended(0, length)
    parts = ((0, 5), (5, 64), (64, 131), (131, 300))
    assert torch.equal(torch.cat([attended(*part) for part in parts]), whole)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(attended(0, length), whole)


def test_values_of_a_prompt_may_be_a_part_of_keys():
    q, kv, pages = prompt(90, 8, 1, 96, blocks=1)
    clean = kv.nan_to_num().float()
    ours = step.chunk_attention(q, kv, 64, pages, 0, 90, 0, False, 0.1, None, None)
    chunk = Chunk(slice(0, 90), pages, 90, 0, 0)
    seen = Pages(clean[0]), Pages(clean[0][..., :64])
    torch.testing.assert_close(
        ours.float(), attend_chunk(q.float(), *seen, chunk, Scores(0.1)), rtol=2**-6, atol=0.02
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_number_that_is_none_reaches_its_own_sequence_alone(value):
    kv, shown = paged([40, 70], 1, 16, torch.bfloat16)
    q = randn(2, 2, 16, dtype=torch.bfloat16)
    whole = step.attention(q, kv, 16, shown, 0, 0.2, None, None)
    kv[:, shown[0][0], :, 3] = value
    ours = step.attention(q, kv, 16, shown, 0, 0.2, None, None)
    assert not ours[0].isfinite().any()
    assert torch.equal(ours[1], whole[1])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_no_number_of_threads_changes_a_bit(threads, monkeypatch):
    kv, shown = paged([600, 900], 2, 64, torch.bfloat16)
    q, x = randn(2, 4, 64, dtype=torch.bfloat16), randn(300, 640, dtype=torch.bfloat16)
    weight = randn(640, dtype=torch.bfloat16)

    def results():
        return (
            step.attention(q, kv, 64, shown, 0, 0.2, None, None),
            step.norm(x, weight, 1e-6, 0.0),
            step.gated(x, "silu"),
        )

    expected = results()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert all(torch.equal(*pair) for pair in zip(results(), expected, strict=True))


def test_keys_and_values_are_written_where_they_belong():
    qkv = randn(4, 5, 16, dtype=torch.bfloat16)
    keys, values = qkv[:, 1:3], qkv[:, 3:]
    pages, places = torch.tensor([2, 0, 0, 1]), torch.tensor([0, 30, 31, 5])
    ours, expected = torch.zeros(2, 3, 4, 2, 2, PAGE_SIZE, 16, dtype=torch.bfloat16)[:, :, 1].transpose(1, 2)
    write_kv(expected, keys, values, pages, places)
    step.write(ours, keys, values, pages, places)
    assert torch.equal(ours, expected)
    assert expected.any()


def test_float32_and_odd_sizes_are_left_to_torch(monkeypatch):
    assert not step.takes(torch.zeros(2, 16), 16)
    assert not step.takes(torch.zeros(2, 12, dtype=torch.bfloat16), 12)
    x = randn(2, 24)
    assert torch.equal(gated(x, "silu", exact=False), F.silu(x[:, :12]) * x[:, 12:])
    monkeypatch.setattr(step, "library", lambda: None)
    assert not step.takes(torch.zeros(2, 16, dtype=torch.bfloat16), 16)
