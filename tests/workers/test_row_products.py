"""The compiled products with rows that have their numbers first: nothing in them is rounded."""

from __future__ import annotations

import pytest
import torch

from tests.workers.random_blocks import weight_of
from workers.kernels import compiled, dense, products, rows
from workers.layers.linear import Linear

COLUMNS = 640
pytestmark = pytest.mark.usefixtures("compiled_library")


@pytest.fixture(params=[1, 2], ids=["AVX2", "AVX-512"])
def level(request, monkeypatch) -> int:
    if request.param > compiled.level():
        pytest.skip("this CPU has no such instructions")
    monkeypatch.setattr(compiled, "level", lambda: request.param)
    return request.param


def inputs(tokens: int) -> torch.Tensor:
    return torch.randn(tokens, COLUMNS, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", rows.KINDS)
def test_a_product_is_that_of_the_weight(kind, level):
    weight = weight_of(kind, 37, COLUMNS)  # the last rows are no whole tile
    for dtype, rounding in ((torch.float32, 1e-6), (torch.bfloat16, 3e-3), (torch.float16, 4e-4)):
        for tokens in (1, 2, 7, rows.FEW + 1):
            x, bias = inputs(tokens).to(dtype), torch.arange(37).to(dtype)
            y = rows.product(x, weight, bias)
            assert y.dtype == dtype
            expected = x.float() @ weight.float().t() + bias.float()
            assert (y.float() - expected).norm() / expected.norm() < rounding


@pytest.mark.parametrize("kind", rows.IN_BYTES)
def test_many_tokens_are_multiplied_with_numbers_of_8_bits_as_bfloat16(kind, monkeypatch):
    """Which are exact in it, and their scales are float32: so all that is rounded is the result."""
    if dense.level() != dense.WITH_AVX512_BF16:
        pytest.skip("this CPU has no such instructions")
    weight, x = weight_of(kind, 530, COLUMNS), inputs(170).bfloat16()
    bias = torch.arange(530).bfloat16()
    whole = rows.product(x, weight, bias)
    exact = x.double() @ weight.float().double().t() + bias.double()
    sums = x.double().abs() @ weight.float().double().abs().t()
    assert ((whole.double() - exact).abs() <= exact.abs() * 2**-8 + sums * 1e-6 + 1e-7).all()
    assert torch.equal(rows.product(x[:83], weight, bias), whole[:83])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(rows.product(x, weight, bias), whole)


@pytest.mark.parametrize("kind", ["INT4_64", "NF4_64", "FP8_128", "INT8_128", "INT8_ROW"])
def test_a_row_has_the_same_bits_whatever_stands_beside_it(kind, level, monkeypatch):
    weight, x = weight_of(kind, 30, COLUMNS), inputs(rows.FEW)
    whole = products.product(x, weight)
    for count in (1, 3, 4, 7):
        assert torch.equal(torch.cat([products.product(part, weight) for part in x.split(count)]), whole)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(products.product(x, weight), whole)
    linear = Linear(weight)
    linear.make_exact({})
    assert max(linear._counts) == rows.FEW


def test_columns_that_are_no_whole_steps_and_a_missing_library_are_left_to_torch(monkeypatch):
    x = inputs(2)
    for columns, found in ((COLUMNS - 32, compiled.library()), (COLUMNS, None)):
        monkeypatch.setattr(compiled, "library", lambda found=found: found)
        weight = weight_of("INT4_32", 8, columns)
        assert not rows.takes(x.device, weight)
        part = x[:, :columns].contiguous()
        assert torch.equal(products.product(part, weight), products.widened(part, weight, None))
