"""The compiled products: what they compute, in what they differ from float32, and that nothing needs them."""

from __future__ import annotations

import ctypes
import shutil

import pytest
import torch

from tests.workers.compiled_library import build
from tests.workers.random_blocks import COLUMNS, random_weight
from workers.kernels import compiled, products
from workers.kernels.products import widened
from workers.layers.linear import Linear
from workers.weights import built

pytestmark = pytest.mark.usefixtures("compiled_library")


def rounded(x: torch.Tensor) -> torch.Tensor:
    """`x` as the products see it: integers up to 127, in groups of 32 that share a scale."""
    groups = x.float().view(len(x), -1, 32)
    scale = groups.abs().amax(-1, keepdim=True) / 127
    return ((groups / scale).round() * scale).view(len(x), -1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", compiled.KINDS)
def test_a_product_is_that_of_the_rounded_input(name, dtype):
    weight = random_weight(name, 37)  # the last rows are no whole tile
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, COLUMNS, generator=generator).to(dtype)
    bias = torch.randn(37, generator=generator).to(dtype)
    assert compiled.takes(x.device, x.dtype, weight)
    y = products.product(x, weight, bias)
    assert y.dtype == dtype
    expected = rounded(x) @ weight.float().t() + bias.float()
    error = (y.float() - expected).norm() / expected.norm()
    assert error < (0.004 if dtype == torch.bfloat16 else 0.0006)  # the rounding of its own type
    exact = widened(x.float(), weight, bias.float())
    assert (expected - exact).norm() / exact.norm() < 0.01


@pytest.mark.parametrize("name", compiled.KINDS)
def test_a_row_has_the_same_bits_whatever_stands_beside_it(name, monkeypatch):
    weight = random_weight(name, 64)
    x = torch.randn(11, COLUMNS, generator=torch.Generator().manual_seed(0)).bfloat16()
    whole = compiled.product(x, weight, None)
    for count in (1, 3, 4, 7):
        parts = [compiled.product(part, weight, None) for part in x.split(count)]
        assert torch.equal(torch.cat(parts), whole)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(compiled.product(x, weight, None), whole)


@pytest.mark.parametrize("name", compiled.KINDS)
def test_what_a_cpu_has_beyond_avx2_changes_no_bit(name, monkeypatch):
    if (level := compiled.level()) == 1:
        pytest.skip("this CPU has no VNNI with AVX-512")
    generator = torch.Generator().manual_seed(0)
    for rows, tokens in ((37, 1), (37, 4), (37, 13), (2100, 9)):
        weight, x = random_weight(name, rows), torch.randn(tokens, COLUMNS, generator=generator).bfloat16()
        bias = torch.randn(rows, generator=generator)
        y = []
        for each in (1, level):
            monkeypatch.setattr(compiled, "level", lambda each=each: each)
            y.append(compiled.product(x, weight, bias))
        assert torch.equal(*y)


def test_exact_products_are_cut_into_no_more_blocks_than_others():
    linear = Linear(random_weight("Q4_K", 64))
    linear.make_exact({})
    assert linear._counts[0] == 256
    assert linear._counts[-1] == 1


def test_float32_is_not_rounded():
    x, weight = torch.randn(2, COLUMNS), random_weight("Q8_0", 8)
    assert not compiled.takes(x.device, x.dtype, weight)
    assert torch.equal(products.product(x, weight), widened(x, weight, None))


def test_without_the_library_products_are_those_of_the_weights(monkeypatch):
    monkeypatch.setattr(compiled, "library", lambda: None)
    x, weight = torch.randn(2, COLUMNS).bfloat16(), random_weight("Q8_0", 8)
    assert torch.equal(products.product(x, weight), widened(x, weight, None))


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -float("inf")])
def test_what_is_not_finite_stays_in_its_row(value):
    weight = random_weight("Q4_K", 16)
    x = torch.randn(5, COLUMNS, generator=torch.Generator().manual_seed(0)).bfloat16()
    whole = compiled.product(x, weight, None)
    x[2, 40] = value
    y = compiled.product(x, weight, None)
    assert not y[2].isfinite().any()
    assert torch.equal(torch.cat([y[:2], y[3:]]), torch.cat([whole[:2], whole[3:]]))


def test_a_file_that_is_no_library_is_left_alone(tmp_path):
    (tmp_path / "blocks.so").write_bytes(b"no library")
    assert compiled.load(tmp_path / "blocks.so") is None


def test_a_library_of_other_sources_is_not_used_and_the_log_says_what_to_run(tmp_path, monkeypatch, caplog):
    for name in ("formats.h", "lanes.h", "source.h", "vectors.h"):
        shutil.copy(compiled.FOLDER / name, tmp_path)
    (tmp_path / "blocks.c").write_text('#define OWN_SOURCE\n#include "formats.h"\nSOURCE(blocks)\n')
    (tmp_path / "many.c").write_text('#define OWN_LANES\n#include "lanes.h"\nSOURCE(many)\n')
    for name in ("blocks_vnni", "chunks", "dense", "rows", "step"):
        (tmp_path / f"{name}.c").write_text(f'#include "vectors.h"\nSOURCE({name})\n')
    found = ctypes.CDLL(str(build(tmp_path, tmp_path / "library.so", "-O0")))
    monkeypatch.setattr(compiled, "FOLDER", tmp_path)
    sources = [tmp_path / name for name in compiled.SOURCES]
    assert built.other_source(found, sources) is None
    with (tmp_path / "step.c").open("a") as file:
        file.write("/* as it will be one day */\n")
    assert compiled.load(tmp_path / "library.so") is None
    (record,) = [record for record in caplog.records if record.name == built.logger.name]
    assert "another step.c" in record.getMessage()
    assert "pip install -e ." in record.getMessage()
    (tmp_path / "step.c").unlink()  # as in a package
    assert built.other_source(found, sources) is None
