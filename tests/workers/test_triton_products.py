"""Products with weights in blocks on a GPU: right where they are interpreted, and compiled for every card."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from tests.workers.engines import GPU
from tests.workers.interpreted_products import KINDS
from tests.workers.random_blocks import random_weight, weight_of
from workers.kernels import grouped
from workers.kernels.pairs import Pairs
from workers.kernels.products import product
from workers.weights.blocks import Blocks, Weight

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="torch for the CPU has no Triton")


@pytest.mark.parametrize(
    ("kind", "tokens", "capability"),
    [
        ("Q8_0", 1, 86),
        ("Q4_K", 64, 120),
        ("Q5_K", 32, 80),
        ("Q6_K", 64, 86),
        ("INT8_128", 1, 90),
        ("FP8_128", 64, 89),
        ("FP8_ROW", 1, 86),
        ("INT4_128", 64, 89),
        ("NVFP4", 32, 120),
        ("NF4_64", 64, 86),
        ("MXFP4", 1, 90),
        ("Q5_0", 64, 120),
    ],
)
def test_a_kernel_fits_its_card_and_spills_nothing(kind, tokens, capability):
    from benchmarks.kernels import ALIGNED, SHARED_BYTES, compile_product

    found = compile_product(capability, kind, tokens)
    assert found.shared <= SHARED_BYTES[capability]
    assert found.spilt == 0
    assert found.load == 16 or kind not in ALIGNED


def test_products_in_float32_which_no_tensor_core_has_spill_nothing():
    from benchmarks.kernels import compile_experts, compile_product

    assert compile_product(120, "Q5_K", 64, "fp32").spilt == 0
    assert compile_experts(86, "Q6_K", 64, "fp32").spilt == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 40, 200])
@pytest.mark.parametrize("device", [pytest.param("cuda:0", marks=GPU)])
def test_a_device_computes_what_the_reference_does(kind, tokens, device):
    weight = weight_of(kind, 300, 512)
    x = torch.randn(tokens, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = x.float() @ weight.float().bfloat16().float().t()
    y = product(x.to(device), Blocks(weight.format, weight.data.to(device), torch.bfloat16))
    assert (y.float().cpu() - expected).norm() / expected.norm() < 0.004


@pytest.mark.parametrize(
    ("kind", "tokens", "capability"),
    [("PLAIN", 1, 86), ("PLAIN", 64, 120), ("Q4_K", 32, 80), ("Q6_K", 64, 86), ("MXFP4", 64, 90)],
)
def test_a_kernel_of_experts_fits_its_card_and_spills_nothing(kind, tokens, capability):
    from benchmarks.kernels import ALIGNED, SHARED_BYTES, compile_experts

    found = compile_experts(capability, kind, tokens)
    assert found.shared <= SHARED_BYTES[capability]
    assert found.spilt == 0
    assert found.load == 16 or kind not in (*ALIGNED, "PLAIN")


@pytest.mark.parametrize("kind", ["PLAIN", "Q4_K", "MXFP4"])
@pytest.mark.parametrize("tokens", [1, 40, 500])
@pytest.mark.parametrize("device", [pytest.param("cuda:0", marks=GPU)])
def test_a_device_computes_pairs_as_the_reference_does(kind, tokens, device):
    generator, experts = torch.Generator().manual_seed(0), 6
    weight: Weight = torch.randn(experts * 96, 512, generator=generator).bfloat16()
    if kind != "PLAIN":
        weight = random_weight(kind, experts * 96, 512)
        weight = Blocks(weight.format, weight.data, torch.bfloat16)
    numbers = torch.randint(experts + 1, (tokens * 2,), generator=generator)  # some go elsewhere
    x = torch.randn(tokens, 512, generator=generator).bfloat16()
    bias = torch.randn(experts, 96, generator=generator).bfloat16()
    expected, found = (torch.zeros(tokens * 2, 96, dtype=torch.bfloat16) for _ in range(2))
    grouped.reference(x, weight, bias, Pairs.of(numbers, experts, 2), expected)
    there = (
        Blocks(weight.format, weight.data.to(device), torch.bfloat16)
        if kind != "PLAIN"
        else weight.to(device)
    )
    found = found.to(device)
    grouped.product(x.to(device), there, bias.to(device), Pairs.of(numbers.to(device), experts, 2), found)
    assert (found.float().cpu() - expected.float()).norm() / expected.float().norm() < 0.004


@pytest.mark.skipif(find_spec("triton") is None, reason="there is no Triton")
@pytest.mark.parametrize(("kind", "capability"), [("Q4_K", 90), ("FP8_128", 90), ("FP8_128", 120)])
def test_all_that_a_step_loads_for_one_token_is_on_its_way_before_its_first_product(kind, capability):
    from benchmarks.kernels import compile_skinny

    loop = compile_skinny(capability, kind, 1).loop
    assert "LDG" in loop
    assert "LDG" not in loop[loop.index("HMMA") :]
