"""What a plan knows of this CPU is what torch finds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from neuron.catalogue.catalogue import DEMO_FOLDER
from neuron.config import ModelSettings
from neuron.description import described
from neuron.memory import step_bytes
from workers.checkpoints.reading import read_card
from workers.kernels import compiled, dense, rows
from workers.layers.embedding import Embedding, Head, VocabularySlice
from workers.parallel import RankGroup
from workers.weights.blocks import Empty


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_plan_knows_whether_a_tied_head_is_packed_here(dtype):
    empty = Empty(getattr(torch, dtype))
    vocabulary = VocabularySlice(64, RankGroup())
    head = Head("head", vocabulary, 32, Embedding("embedding", vocabulary, 32, empty), empty)
    head.pack()
    assert step_bytes.packs_head(dtype) == (head.copied > 0)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ("flags\t\t: fpu avx2 fma\n", [False, False]),
        ("flags\t\t: avx512bw avx512dq avx512vl avx512_fp16 avx512_bf16\n", [False, False]),
        ("Features\t: fp asimd fphp asimdhp\n", [False, True]),
        ("Features\t: fp asimd fphp asimdhp bf16\n", [True, True]),
        ("processor\t: 0\n", [False, False]),
    ],
)
def test_instructions_say_what_is_packed(monkeypatch, tmp_path: Path, facts, expected):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{facts}\nprocessor\t: 1\n{facts}")
    monkeypatch.setattr(step_bytes, "CPU_FACTS", tmp_path / "cpuinfo")
    assert [step_bytes.packs_head(dtype) for dtype in ("bfloat16", "float16")] == expected
    assert step_bytes.packs_head("float32")


def test_a_head_is_booked_where_it_is_packed(monkeypatch):
    card = read_card(DEMO_FOLDER)
    head = card.config.vocab_size * card.config.hidden_size * 2
    booked = {}
    for packs in (False, True):
        monkeypatch.setattr("neuron.description.packs_head", lambda dtype, packs=packs: packs)
        for quantization in (None, "q8"):
            overhead = described(ModelSettings(id="demo", quantization=quantization), card).overhead
            booked[packs, quantization] = overhead.of_step("cpu", 512, 16)
    assert booked[True, None] - booked[False, None] == head
    assert booked[True, "q8"] == booked[False, "q8"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_plan_knows_whether_steps_are_compiled_here(dtype):
    if compiled.library() is None and any(compiled.FOLDER.glob(f"{compiled.STEM}*.so")):
        pytest.skip("the library was built from other sources, and is not used")
    is_there = dtype != "float32" and compiled.library() is not None
    assert step_bytes.is_compiled(dtype) == is_there
    multiplies = is_there and dense.level() == dense.WITH_AVX512_BF16
    assert step_bytes.kernels_of(dtype).attends == multiplies


@pytest.mark.parametrize("multiplies", [False, True])
def test_a_plan_knows_which_products_copy_their_inputs(monkeypatch, multiplies):
    flags = step_bytes.COMPILED_CPUS | (step_bytes.MULTIPLYING_CPUS if multiplies else set())
    monkeypatch.setattr(step_bytes, "_listed", lambda name: flags)
    monkeypatch.setattr(step_bytes, "is_compiled", lambda dtype: dtype != "float32")

    def copied(*formats: str, dtype: str = "bfloat16", **settings: bool) -> int:
        return step_bytes.kernels_of(dtype, formats, **settings).copied

    assert set(rows.IN_BYTES) == step_bytes.LAID
    for name in rows.KINDS:
        laid = multiplies and name in rows.IN_BYTES
        assert copied(name) == (0 if name in compiled.KINDS else 2 if laid else 4)
    assert not any(copied(name) for name in compiled.KINDS)
    assert copied() == 2 * multiplies
    assert step_bytes.kernels_of("bfloat16").opens == multiplies
    for unlike in ({"exact": True}, {"adapters": True}, {"formats": ["Q8_0"]}):
        assert not step_bytes.kernels_of("bfloat16", **unlike).opens
    assert copied("INT8_128", dtype="float16") == 4
    assert copied("INT8_128", dtype="float32") == copied(exact=True) == 0
    flags |= {"amx_tile"}  # which multiplies what is plain
    assert copied() == 0
    assert copied("INT8_128") == (2 if multiplies else 4)
