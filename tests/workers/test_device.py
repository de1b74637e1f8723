"""What a rank makes ready on its device before the first product."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from workers.execution import device
from workers.execution.device import THREAD_BYTES, num_threads, tune_cpu

DTYPES = ("bfloat16", "float16", "float32")


@pytest.fixture(autouse=True)
def as_it_was():
    before = torch.backends.mkldnn.matmul.fp32_precision
    yield
    torch.backends.mkldnn.matmul.fp32_precision = before


def packed(x: Tensor, weight: Tensor) -> Tensor:
    weight = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("product", [F.linear, packed, lambda x, weight: x @ weight.t()])
def test_float32_stays_float32_whatever_the_type_of_the_model_is(dtype, product):
    """What a router, a state and weights that are made float32 are multiplied in."""
    if product is packed and not torch.backends.mkldnn.is_available():
        pytest.skip("there is no oneDNN")
    tune_cpu(getattr(torch, dtype))
    generator = torch.Generator().manual_seed(0)
    for tokens, columns, rows in ((1, 256, 64), (8, 64, 64), (70, 512, 128), (256, 1024, 256)):
        x, weight = (torch.randn(count, columns, generator=generator) for count in (tokens, rows))
        exact = x.double() @ weight.double().t()
        assert (product(x, weight) - exact).norm() / exact.norm() < 1e-5  # rounded to bfloat16: 2e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("x86", "amx"), [(True, False), (True, True), (False, False)])
def test_where_there_is_a_kernel_that_rounds_float32_it_may_not(dtype, x86, amx, monkeypatch):
    monkeypatch.setattr(device, "X86", x86)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    tune_cpu(getattr(torch, dtype))
    may = dtype == "bfloat16" and x86 and not amx
    assert torch.backends.mkldnn.matmul.fp32_precision == ("bf16" if may else "ieee")


def test_a_further_thread_has_enough_weights_to_read():
    spec = SimpleNamespace(threads=4)
    weights = (0, THREAD_BYTES - 1, THREAD_BYTES, 3 * THREAD_BYTES, 100 * THREAD_BYTES)
    assert [num_threads(spec, each) for each in weights] == [1, 1, 2, 4, 4]
