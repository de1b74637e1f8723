"""What a CPU is said to have decides what computes there, and no answer is another for it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch

from tests.workers.engines import logits_of
from tests.workers.random_blocks import weight_of
from tests.workers.test_model import load
from workers.kernels import compiled, dense, products, step

MULTIPLIES = ("AVX512-BF16", "AMX")  # which has it, too
pytestmark = pytest.mark.usefixtures("compiled_library")


@pytest.fixture(params=["AVX2", "AVX-512", *MULTIPLIES])
def cpu(request, monkeypatch) -> str:
    """The name of a CPU that everybody is told of who asks."""
    name = request.param
    if name in MULTIPLIES and dense.level() != dense.WITH_AVX512_BF16:
        pytest.skip("this CPU has no such instructions")
    if name not in MULTIPLIES:
        monkeypatch.setattr(dense, "level", lambda: 1)
    if name == "AVX2":
        monkeypatch.setattr(compiled, "level", lambda: 1)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: name != "AVX2")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: name in MULTIPLIES)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: name == "AMX")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: name != "AVX2")
    dense.most_tokens.cache_clear()
    yield name
    dense.most_tokens.cache_clear()


@pytest.fixture
def ran(monkeypatch) -> set[str]:
    """Which of the kernels have run that not every CPU has instructions for."""
    names: set[str] = set()

    def noted(name: str, kernel: Callable[..., torch.Tensor], *args: object, **more: object) -> torch.Tensor:
        names.add(name)
        return kernel(*args, **more)

    for module, name in ((dense, "many_of"), (step, "chunk_attention")):
        monkeypatch.setattr(module, name, partial(noted, name, getattr(module, name)))
    return names


@pytest.mark.parametrize("name", ["qwen3_untied_biased", "llama_yarn_biased"])
def test_a_model_is_as_close_to_float32_as_that_of_transformers(tiny, name, cpu, ran):
    folder, oracle = tiny(name)
    prompt = [(5 * i + 1) % oracle.config.vocab_size for i in range(100)]
    with torch.inference_mode():
        exact = oracle(torch.tensor([prompt])).logits[0, -1]
        theirs = copy.deepcopy(oracle).bfloat16()(torch.tensor([prompt])).logits[0, -1].float()
    ours = logits_of(load(folder, dtype="bfloat16"), prompt)
    assert (ours - exact).norm() <= 1.5 * (theirs - exact).norm()
    # what AMX multiplies plain weights with is torch's
    assert ran == {"AVX512-BF16": {"many_of", "chunk_attention"}, "AMX": {"chunk_attention"}}.get(cpu, set())


@pytest.mark.parametrize("kind", ["INT8_128", "FP8_ROW", "Q8_0"])
@pytest.mark.parametrize("tokens", [1, 40])
def test_a_quantised_weight_is_what_it_means(kind, tokens, cpu, ran):
    weight = weight_of(kind, 37, 640)
    x = torch.randn(tokens, 640, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = x.float() @ weight.float().t()
    y = products.product(x, weight)
    assert (y.float() - expected).norm() / expected.norm() < (1e-2 if kind == "Q8_0" else 3e-3)
    wide = kind != "Q8_0" and tokens > dense.FEW and cpu in MULTIPLIES
    assert ran == ({"many_of"} if wide else set())
