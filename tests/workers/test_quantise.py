"""What plain weights become: near to what they were, the same with the compiled routine and without it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from ctypes import CDLL
from pathlib import Path

import gguf
import pytest
import torch

import workers.weights.quantise
from workers.checkpoints.blocks import FORMATS
from workers.weights.dequantise import dequantise
from workers.weights.quantise import KINDS, QUANTISERS, load, quantise


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> CDLL:
    """The compiled routine, built here where no install did."""
    found = workers.weights.quantise.library()
    if found is None:
        if shutil.which("gcc") is None:
            pytest.skip("there is no compiler")
        path = tmp_path_factory.mktemp("library") / "quantise.so"
        source = str(Path(workers.weights.quantise.__file__).with_suffix(".c"))
        options = ["-O2", "-std=gnu11", "-shared", "-fPIC"]
        subprocess.run(["gcc", *options, "-o", str(path), source], check=True, timeout=120)
        found = load(path)
    if found is None:
        pytest.skip("this CPU has no AVX2")
    return found


@pytest.fixture(params=["torch", "compiled"])
def either(request, monkeypatch) -> Iterator[None]:
    """With the compiled routine, and without it."""
    found = request.getfixturevalue("library") if request.param == "compiled" else None
    monkeypatch.setattr(workers.weights.quantise, "library", lambda: found)


ERRORS = {"Q8_0": 0.006, "Q6_K": 0.018, "Q4_K": 0.073, "INT8_128": 0.007, "FP8_128": 0.027}


@pytest.mark.parametrize("name", QUANTISERS)
def test_what_is_quantised_is_near_to_what_it_was(either, name):
    rows = torch.randn(32, 512, generator=torch.Generator().manual_seed(0))
    rows[3], rows[4, :256] = 0.0, 0.0
    made = quantise(name, rows)
    assert made.shape == (32, FORMATS[name].row_bytes(512))
    again = dequantise(name, made)
    assert not again[3].any()
    assert not again[4, :256].any()
    assert (again - rows).norm() / rows.norm() < ERRORS[name]


def test_q8_0_is_nearer_than_what_ggml_makes_of_it(either):
    rows = torch.randn(16, 256, generator=torch.Generator().manual_seed(1))
    made = gguf.quants.quantize(rows.numpy(), gguf.GGMLQuantizationType.Q8_0)
    theirs = torch.from_numpy(gguf.quants.dequantize(made, gguf.GGMLQuantizationType.Q8_0))
    assert (dequantise("Q8_0", quantise("Q8_0", rows)) - rows).norm() < 0.95 * (theirs - rows).norm()


@pytest.mark.parametrize("name", ["Q4_0", "Q5_0", "Q8_0"])
def test_what_had_few_bits_before_loses_nothing_in_q8_0(either, name):
    rows = torch.randn(16, 256, generator=torch.Generator().manual_seed(1)) * 0.02
    kind = gguf.GGMLQuantizationType[name]
    rows = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(rows.numpy(), kind), kind))
    assert torch.equal(dequantise("Q8_0", quantise("Q8_0", rows)), rows)


@pytest.mark.parametrize("name", QUANTISERS)
@pytest.mark.parametrize("least", [1e-37, 1e-40])
def test_weights_that_are_next_to_nothing_become_nothing(either, name, least):
    rows = torch.zeros(2, 256)
    rows[:, ::2] = least
    assert dequantise(name, quantise(name, rows)).abs().max() <= least
    rows = torch.linspace(0.5, 1, 512).view(2, 256)
    rows[:, 3] = -least
    made = dequantise(name, quantise(name, rows))
    assert (made - rows).abs().max() < 0.07  # the rest of their group is as ever


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_the_compiled_routine_finds_what_is_found_without_it(library, monkeypatch, name, dtype):
    generator = torch.Generator().manual_seed(0)
    rows = (torch.randn(24, 512, generator=generator) * 0.02).to(dtype)
    rows[0], rows[1, :256], rows[2, 5], rows[3, :32] = 0, 0, 3, 0.25
    made = {}
    for by in (None, library):
        monkeypatch.setattr(workers.weights.quantise, "library", lambda by=by: by)
        made[by] = dequantise(name, quantise(name, rows))
    errors = [float((each - rows).norm()) for each in made.values()]
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)
    assert (
        made[None] == made[library]
    ).float().mean() > 0.95  # sums in another order may end a tie otherwise


def test_a_library_of_another_source_is_not_used(library, tmp_path, monkeypatch):
    monkeypatch.setattr(workers.weights.quantise, "SOURCE", tmp_path / "quantise.c")
    (tmp_path / "quantise.c").write_text("/* as it will be one day */")
    assert load(Path(library._name)) is None


def test_rows_that_are_no_whole_blocks_of_the_compiled_routine_are_quantised_without_it(library, monkeypatch):
    monkeypatch.setattr(workers.weights.quantise, "library", lambda: library)
    rows = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    made = dequantise("Q8_0", quantise("Q8_0", rows))
    assert (made - rows).norm() / rows.norm() < ERRORS["Q8_0"]


@pytest.mark.parametrize("name", QUANTISERS)
def test_it_goes_where_it_is_wanted(either, name):
    rows = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    into = torch.zeros(6, FORMATS[name].row_bytes(256), dtype=torch.uint8)
    assert quantise(name, rows, into[1:5]).data_ptr() == into[1].data_ptr()
    assert torch.equal(into[1:5], quantise(name, rows))
    assert not into[0].any()
    assert not into[5].any()
