"""The compiled products with rows that have their numbers first: nothing in them is rounded."""

from __future__ import annotations

import pytest
import torch

from tests.workers.random_blocks import weight_of
from workers.checkpoints.blocks import FORMATS
from workers.kernels import compiled, dense, products, rows
from workers.layers.linear import Linear

COLUMNS = 640
pytestmark = pytest.mark.usefixtures("compiled_library")
# what rows.c multiplies with, and dense.c
LEVELS = {"AVX2": (1, 1), "AVX-512": (2, 1), "AVX512-BF16": (2, dense.WITH_AVX512_BF16)}


@pytest.fixture(params=LEVELS)
def level(request, monkeypatch) -> str:
    ours, of_dense = LEVELS[request.param]
    if ours > compiled.level() or of_dense > dense.level():
        pytest.skip("this CPU has no such instructions")
    monkeypatch.setattr(compiled, "level", lambda: ours)
    monkeypatch.setattr(dense, "level", lambda: of_dense)
    return request.param


def inputs(tokens: int, columns: int = COLUMNS) -> torch.Tensor:
    return torch.randn(tokens, columns, generator=torch.Generator().manual_seed(0))


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


@pytest.mark.parametrize("tokens", [rows.FEW, 170])
@pytest.mark.parametrize("columns", [COLUMNS, 17 * 128, 192])  # scales of two lines; half a group at the end
@pytest.mark.parametrize("kind", rows.IN_BYTES)
def test_numbers_of_8_bits_are_multiplied_as_bfloat16(kind, columns, tokens, monkeypatch):
    """Which are exact in it, and their scales are float32: so all that is rounded is the result."""
    if dense.level() != dense.WITH_AVX512_BF16:
        pytest.skip("this CPU has no such instructions")
    if columns % FORMATS[kind].elements:
        pytest.skip("such a weight has whole groups")
    weight, x = weight_of(kind, 530, columns), inputs(tokens, columns).bfloat16()
    bias, some = torch.arange(530).bfloat16(), tokens // 2 + 1
    whole = rows.product(x, weight, bias)
    exact = x.double() @ weight.float().double().t() + bias.double()
    sums = x.double().abs() @ weight.float().double().abs().t()
    assert ((whole.double() - exact).abs() <= exact.abs() * 2**-8 + sums * 1e-6 + 1e-7).all()
    assert torch.equal(rows.product(x[:some], weight, bias), whole[:some])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(rows.product(x, weight, bias), whole)


@pytest.mark.parametrize("kind", ["INT4_64", "NF4_64", *rows.IN_BYTES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_whatever_stands_beside_it(kind, dtype, level, monkeypatch):
    weight, x = weight_of(kind, 30, COLUMNS), inputs(rows.FEW).to(dtype)
    whole = rows.product(x, weight, None)
    for count in range(1, 10):
        assert torch.equal(torch.cat([rows.product(part, weight, None) for part in x.split(count)]), whole)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(rows.product(x, weight, None), whole)


def test_a_projection_that_is_exact_takes_as_many_rows_at_once():
    linear = Linear(weight_of("INT8_128", 30, COLUMNS))
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
