"""With `exact`, bfloat16 too gives every token the same bits, whatever else the engine does."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import msgspec
import pytest
import torch

from ipc.worker_messages import Submit
from tests.demo import DEMO
from tests.workers import ranks
from tests.workers.engines import DEVICES, GPU, Answer, Session, make_runner, request
from tests.workers.equalities import VOCABULARY, Observed
from tests.workers.oracle import fill
from tests.workers.ranks import Job
from tests.workers.tiny_models import (
    deepseek_v3,
    falcon_h1,
    gemma3n,
    gpt_oss,
    granite_hybrid,
    lfm2_moe,
    nemotron_h,
    qwen2_moe,
    qwen3,
    qwen3_5,
)
from workers.execution.model_runner import ModelRunner
from workers.kernels import compiled
from workers.layers.heads import HeadLinear
from workers.layers.linear import Linear
from workers.layers.steady import COUNTS, blocks, elementwise, steadily, steady_counts
from workers.parallel import RankGroup
from workers.weights.blocks import Empty


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Wide enough for products that a library adds in more than one order."""
    torch.manual_seed(11)
    sizes = {"hidden_size": 320, "intermediate_size": 704, "num_attention_heads": 8, "head_dim": 64}
    model = qwen3(vocab_size=VOCABULARY, tie_word_embeddings=True, num_key_value_heads=4, **sizes)
    fill(model, std=0.05)
    folder = tmp_path_factory.mktemp("exact")
    model.save_pretrained(folder)
    shutil.copy(DEMO / "tokenizer.json", folder)
    return folder


@pytest.fixture(scope="module", params=[1, 2, 4, pytest.param("cuda", marks=GPU)])
def seen(request, folder) -> Observed:
    every = 5 if request.param == 4 else 3  # four processes take their time on two cores
    device, size = ("cuda", 1) if request.param == "cuda" else ("cpu", request.param)
    job = Job(str(folder), "observe", device, dtype="bfloat16", exact=True, every=every)
    [result] = ranks.run([job], size)
    return result.observed


@pytest.mark.parametrize("circumstance", ["batched", "chunked", "cached", "preempted"])
def test_circumstances_change_no_bit(seen, circumstance):
    for answer, alone in zip(seen.answers[circumstance], seen.answers["alone"], strict=True):
        answer.cached_tokens = alone.cached_tokens
        assert msgspec.json.encode(answer) == msgspec.json.encode(alone)
    assert seen.preemptions


# Odd sizes, of which torch computes the last elements another way.
ROUTED = {
    "sigmoid_latent": lambda: deepseek_v3(n_routed_experts=12, moe_intermediate_size=52),
    "clamped_biased_sinks": lambda: gpt_oss(intermediate_size=52),
    "states": lambda: qwen3_5(),
    "predictions": lambda: gemma3n(
        hidden_size=52,
        intermediate_size=84,
        altup_num_inputs=3,
        activation_sparsity_pattern=[0.9] * 3 + [0.0] * 2,
    ),
    "space": lambda: granite_hybrid(mamba_n_heads=4, mamba_d_state=19),
    "space_alone": lambda: nemotron_h(
        layers_block_type=["linear_attention", "moe", "full_attention"], moe_intermediate_size=52
    ),
    "space_beside_attention": lambda: falcon_h1(),
    "convolutions": lambda: lfm2_moe(moe_intermediate_size=52),
    "softmax_beside_a_gate": lambda: qwen2_moe(moe_intermediate_size=52, shared_expert_intermediate_size=84),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ROUTED)
def test_experts_latents_and_states_change_no_bit_either(tmp_path, name, device):
    torch.manual_seed(12)
    model = ROUTED[name]()
    fill(model, std=0.1)
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")  # nobody reads a text here
    runner = make_runner(tmp_path, device=device, dtype="bfloat16", exact=True, max_step_tokens=256)
    runner.load(lambda fraction, message: None)
    submits = [request(n, [*range(n, 9 * n)], 6, temperature=1.0, seed=n, logprobs=3) for n in range(1, 8)]
    alone = [answer for submit in submits for answer in answers(runner, [submit])]
    for limits in ({"max_step_tokens": 256}, {"max_step_tokens": 17}):
        assert answers(runner, submits, **limits) == alone
    runner.close()


def answers(runner: ModelRunner, submits: list[Submit], **limits: int) -> list[Answer]:
    """What a scheduler of its own brings, to the last bit of each log-probability."""
    session = Session(runner, **limits)
    found = session.answer(submits)
    session.end()
    return found


@pytest.mark.parametrize("columns", [1, 12, 52, 64, 4000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_element_of_a_function_is_the_same_alone_and_among_others(dtype, columns):
    x = torch.randn(100, columns, generator=torch.Generator().manual_seed(2)).to(dtype)
    whole = elementwise(torch.sigmoid, x)
    torch.testing.assert_close(whole, torch.sigmoid(x))
    for start, end in ((0, 1), (7, 8), (3, 6), (11, 100)):
        assert torch.equal(elementwise(torch.sigmoid, x[start:end]), whole[start:end])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("packed", [True, False])
def test_a_row_of_a_product_of_torchs_is_the_same_alone_and_among_others(dtype, packed, monkeypatch):
    monkeypatch.setattr(compiled, "library", lambda: None)
    generator = torch.Generator().manual_seed(2)
    linear = Linear(torch.randn(900, 640, generator=generator).to(dtype))
    if packed:
        linear.pack()
    linear.make_exact({})
    x = torch.randn(400, 640, generator=generator).to(dtype)
    alone = torch.cat([linear(row[None]) for row in x])
    rng = random.Random(3)
    for _ in range(20):
        start = rng.randrange(400)
        end = rng.randint(start + 1, 400)
        assert torch.equal(linear(x[start:end]), alone[start:end])


def test_what_is_found_for_a_product_holds_for_no_other_kind_of_the_same_shape(monkeypatch):
    monkeypatch.setattr(compiled, "library", lambda: None)  # whose products need no trial
    known = {}
    for dtype in (torch.float32, torch.bfloat16):
        for bias in (None, torch.zeros(8, dtype=dtype)):
            for _ in range(2):
                Linear(torch.zeros(8, 16, dtype=dtype), bias).make_exact(known)
    assert len(known) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("sizes", "rank"), [((64, 48), 256), ((16, 12), 32), ((16, 12), 24)])
def test_a_token_in_a_product_of_each_head_is_the_same_alone_and_among_others(dtype, sizes, rank):
    generator = torch.Generator().manual_seed(4)
    heads = HeadLinear("kv", sizes, rank, 4, RankGroup(), Empty(dtype))
    heads.weight.copy_(torch.randn(heads.weight.shape, generator=generator))
    heads.make_exact()
    keys, values = (torch.randn(300, 4, size, generator=generator).to(dtype) for size in (sizes[0], rank))
    for product, x in ((heads.through_keys, keys), (heads.through_values, values)):
        alone = torch.cat([product(row[None]) for row in x])
        for count in (5, 17, 64, 128, 300):
            assert torch.equal(product(x[:count]), alone[:count])


def test_numbers_of_rows_that_differ_are_found():
    """A product that adds in another order where there are few rows, and by place where there are many."""

    def product(x: torch.Tensor) -> torch.Tensor:
        y = x * 3
        if len(x) < 8:
            return y + 1
        return y + torch.arange(len(x))[:, None] if len(x) > 64 else y

    probe = torch.ones(COUNTS[0], 1)
    assert steady_counts(product, probe) == [64, 32, 16, 8]
    assert torch.equal(steadily(product, torch.ones(75, 1), [64, 32, 16, 8]), torch.full((75, 1), 3.0))
    assert steady_counts(lambda x: x + torch.arange(len(x))[:, None], probe) == [1]


@pytest.mark.parametrize("total", [1, 3, 8, 9, 64, 65, 127, 300])
@pytest.mark.parametrize("counts", [[256, 64, 8], [1], [4, 2, 1]])
def test_blocks_cover_all_rows_and_pad_less_than_the_smallest_block_or_half_of_them(total, counts):
    found = blocks(total, counts)
    ends = [start + count for start, count in found]
    assert [start for start, _ in found] == [0, *ends[:-1]]
    assert total <= ends[-1] < total + max(counts[-1], total // 2 + 1)
    assert {count for _, count in found} <= set(counts)
