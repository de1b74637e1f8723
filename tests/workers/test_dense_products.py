"""The compiled products with weights of 16 bits: what they compute, and that nothing needs them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from workers.kernels import compiled, dense, step
from workers.layers.embedding import Embedding, Head, VocabularySlice
from workers.layers.linear import Linear, can_pack
from workers.parallel import RankGroup
from workers.weights.blocks import Empty

ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
LEVELS = ("AVX2", "AVX512-BF16")
pytestmark = pytest.mark.usefixtures("compiled_library")


@pytest.fixture(params=range(1, 3), ids=LEVELS)
def level(request, monkeypatch) -> int:
    if request.param > dense.level():
        pytest.skip("this CPU has no such instructions")
    monkeypatch.setattr(dense, "level", lambda: request.param)
    return request.param


def random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_a_product_is_that_in_float64_but_for_the_rounding_of_its_result(level, dtype):
    # columns that are no whole steps, rows that are no whole tiles, and more than lie apart from each other
    for rows, columns in ((1, 1), (2, 31), (5, 32), (37, 200), (1035, 48), (7, 2049)):
        whole = random(rows, columns + 5, dtype=dtype)
        weight = whole[:, 3 : columns + 3]  # its rows begin where no vector does
        assert dense.takes(weight)
        for tokens in (1, 2, 3, 4, 5, 6, 7, 13, 40):
            x, bias = random(tokens, columns, dtype=dtype), random(rows, dtype=dtype)
            for added in (None, bias):
                y = dense.product(x, weight, added)
                assert y.dtype == dtype
                exact = x.double() @ weight.double().t() + (0 if added is None else added.double())
                sums = x.double().abs() @ weight.double().abs().t()
                bound = exact.abs() * ROUNDING[dtype] + sums * 1e-6 + 1e-7
                assert ((y.double() - exact).abs() <= bound).all(), (rows, columns, tokens)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_a_token_has_the_same_bits_in_any_company(level, dtype, monkeypatch):
    weight = random(530, 616, dtype=dtype)
    linear = Linear(weight)
    linear.make_exact({})
    x = random(700, 616, dtype=dtype)  # more than are multiplied with all rows before the next ones are
    whole = linear(x)
    torch.testing.assert_close(whole, F.linear(x, weight), rtol=0.02, atol=0.2)
    for count in (1, 2, 5, 33, 256):
        parts = x[:264].split(count)
        assert torch.equal(torch.cat([linear(part) for part in parts]), whole[:264])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(linear(x), whole)


def test_what_is_not_finite_stays_in_its_row_and_token(level):
    weight, x = random(9, 40, dtype=torch.bfloat16), random(7, 40, dtype=torch.bfloat16)
    whole = dense.product(x, weight, None)
    weight[4, 39], x[2, 39] = float("nan"), float("inf")
    y = dense.product(x, weight, None)
    assert not y[2].isfinite().any()
    assert y[:, 4].isnan().all()
    tokens, rows = [0, 1, 3, 4, 5, 6], [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(y[tokens][:, rows], whole[tokens][:, rows])


def test_what_is_larger_than_the_type_is_infinite(level):
    for dtype, value in ((torch.float16, 300.0), (torch.bfloat16, 1e20)):
        x = torch.full((1, 8), value, dtype=dtype)
        assert torch.isposinf(dense.product(x, x, None)).all()


def test_many_tokens_are_multiplied_by_a_kernel_of_their_own(monkeypatch):
    """Of panels with one register of tokens to four, and of rows and columns that fill no block."""
    if dense.level() != dense.WITH_AVX512_BF16:
        pytest.skip("this CPU has no such instructions")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for rows, columns in ((1, 2), (5, 40), (37, 1100), (530, 616)):
        weight = random(rows, columns + 5, dtype=torch.bfloat16)[:, 3 : columns + 3]
        assert dense.takes_many(weight)
        x, bias = random(200, columns, dtype=torch.bfloat16), random(rows, dtype=torch.bfloat16)
        whole = Linear(weight, bias)(x)
        exact = x.double() @ weight.double().t() + bias.double()
        sums = x.double().abs() @ weight.double().abs().t()
        assert ((whole.double() - exact).abs() <= exact.abs() * 2**-8 + sums * 1e-6 + 1e-7).all()
        for count in (33, 48, 65, 100, 127):
            assert torch.equal(dense.many(x[:count], weight, bias), whole[:count])
        for threads in (3, 16):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            assert torch.equal(dense.many(x, weight, bias), whole)
        monkeypatch.undo()
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    x[2, 1] = torch.inf
    y = dense.many(x, weight, bias)
    assert not y[2].isfinite().any()
    assert torch.equal(y[3:], whole[3:])


@pytest.mark.parametrize("activation", compiled.ACTIVATIONS)
def test_gates_of_many_tokens_are_opened_with_their_product(activation, monkeypatch):
    """To the same bits as behind it; and what has no such kernel is left to others."""
    if dense.level() != dense.WITH_AVX512_BF16:
        pytest.skip("this CPU has no such instructions")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for rows, columns, threads in ((16, 40, 1), (48, 1100, 3), (1040, 200, 2)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        weight, bias = random(rows, columns, dtype=torch.bfloat16), random(rows, dtype=torch.bfloat16)
        x = random(100, columns, dtype=torch.bfloat16)
        linear = Linear(weight, bias)
        assert torch.equal(linear.gated(x, activation), step.gated(linear(x), activation))
    assert linear.gated(x, "gelu") is linear.gated(x[:32], activation) is None
    linear.make_exact({})
    assert linear.gated(x, activation) is None


def test_many_tokens_are_left_to_torch_where_it_has_more_than_the_kernel(monkeypatch):
    weight = random(12, 24, dtype=torch.bfloat16)
    assert not dense.takes_many(weight.half())
    assert not dense.takes_many(weight[:, 1:])
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert not dense.takes_many(weight)
    x = random(40, 24, dtype=torch.bfloat16)
    torch.testing.assert_close(Linear(weight)(x), F.linear(x, weight), rtol=0.02, atol=0.1)


def test_neither_a_layer_nor_a_tied_head_is_copied():
    empty = Empty(torch.bfloat16)
    vocabulary = VocabularySlice(50, RankGroup())
    embedding = Embedding("embedding", vocabulary, 32, empty)
    embedding.weight.copy_(random(50, 32, dtype=torch.bfloat16))
    head, layer = Head("head", vocabulary, 32, embedding, empty), Linear(embedding.weight)
    for each in (head, layer):
        each.pack()
        assert each.weight is embedding.weight
    assert head.copied == 0
    x = random(3, 32, dtype=torch.bfloat16)
    torch.testing.assert_close(head(x), F.linear(x, embedding.weight).float(), rtol=0.02, atol=0.05)


def test_float32_and_a_missing_library_are_left_to_torch(monkeypatch):
    weight, x = random(12, 24, dtype=torch.bfloat16), random(2, 24, dtype=torch.bfloat16)
    assert not dense.takes(weight.float())
    assert not dense.takes(weight.t())
    monkeypatch.setattr(compiled, "library", lambda: None)
    assert not dense.takes(weight)
    linear = Linear(weight)
    assert torch.equal(linear(x), F.linear(x, weight))
    linear.pack()
    assert (linear.packed is not None) == can_pack(torch.bfloat16, weight.device)
    torch.testing.assert_close(linear(x), F.linear(x, weight), rtol=0.02, atol=0.1)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_how_many_tokens_torch_is_left_is_known_of_each_type(dtype, monkeypatch):
    found = {}
    for avx512 in (False, True):
        for native in (False, True):
            monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda avx512=avx512: avx512)
            of_bfloat16 = native and dtype == torch.bfloat16  # one has nothing to say of the other
            of_float16 = native and dtype == torch.float16
            monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=of_bfloat16: has)
            monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda has=of_float16: has)
            dense.most_tokens.cache_clear()
            found[avx512, native] = dense.most_tokens(dtype)
    dense.most_tokens.cache_clear()
    assert [each for each, tokens in found.items() if tokens == dense.ALL] == [(True, False)]
