"""Keys and values in 8 bits: near what they were, half as large, and the same whatever else goes on."""

from __future__ import annotations

import math

import pytest
import torch

from ipc.errors import CortexError
from ipc.model_settings import ModelSettings
from ipc.worker_messages import Submit
from neuron.description import described
from neuron.memory.fit import find_fit
from tests.neuron.folders import write_checkpoint
from tests.workers import encoders
from tests.workers.engines import Answer, Session, logits_of, make_runner, request
from tests.workers.equalities import short_of_memory
from tests.workers.thread_ranks import Ranks
from workers.cache.paged import KVCache
from workers.cache.quantised import CODES, dequantise, quantise
from workers.checkpoints.caches import page_bytes
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import WHOLE, Split
from workers.execution.model_runner import ModelRunner

FORMATS = list(CODES)
STEP = {"int8": 1 / 254, "fp8": 1 / 16}  # that rounding changes at most: of the greatest, and of each, number
SMALL = {"max_sequences": 8, "max_step_tokens": 64, "context_length": 512, "kv_pages": 60}


@pytest.mark.parametrize("kept", FORMATS)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_a_head_is_near_what_it_was_whatever_its_size(kept, size):
    x = torch.randn(40, 3, 64, generator=torch.Generator().manual_seed(0)) * size
    x[3, 1] = 0
    codes, scales = quantise(x, CODES[kept])
    assert (codes.itemsize, scales.shape) == (1, (40, 3))
    most = x.abs().amax(-1, keepdim=True)
    bound = most if kept == "int8" else x.abs().clamp(min=1e-4 * most)
    assert ((dequantise(codes, scales) - x).abs() <= 1.02 * STEP[kept] * bound).all()


@pytest.mark.parametrize("kept", FORMATS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_head_with_a_number_that_is_none_has_no_other(kept, value):
    x = torch.ones(2, 3, 64)
    x[0, 1, 5] = value
    found = dequantise(*quantise(x, CODES[kept]))
    assert not found[0, 1].isfinite().any()
    assert found[0, 0].isfinite().all()
    assert found[1].isfinite().all()


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", ["qwen3_tied", "gemma3", "qwen3_5"])
def test_a_pool_takes_the_bytes_that_are_planned_for_it(tiny, name, world_size):
    """Scales as well, in models whose layers are alike, have windows, or keep states."""
    card = read_card(tiny(name).folder)
    groups = card.cache_groups(Split.evenly(world_size).part, "float32", "int8")
    shapes = dict(enumerate(layer.shape_on_rank(Split.evenly(world_size).part) for layer in card.layers))
    cache = KVCache(
        [group for group in groups if group.kind != "state"],
        shapes,
        pages=3,
        dtype=torch.float32,
        device=torch.device("cpu"),
        kv_cache_dtype="int8",
    )
    assert cache.nbytes == 3 * page_bytes(groups)
    within = [each.untyped_storage().data_ptr() for each in (*cache.layers.values(), *cache.scales.values())]
    assert len(set(within)) == 1, "scales lie elsewhere"


@pytest.mark.parametrize("kept", FORMATS)
def test_the_same_memory_plans_nearly_twice_the_tokens(tmp_path, kept):
    """Of bfloat16, with heads of 128: 130 bytes where there were 256."""
    card = read_card(write_checkpoint(tmp_path / "model", head_dim=128, max_position_embeddings=40_000))
    pages = {}
    for each in (None, kept):
        settings = ModelSettings(id="m", kv_memory=16 << 20, kv_cache_dtype=each)
        fit = find_fit(described(settings, card).need(settings), {"cpu": 8 << 30}, [], "lru")
        assert fit.context_length == fit.kv_tokens
        pages[each] = fit.kv_pages
    assert pages[kept] == pages[None] * 256 // 130
    assert card.kv_bytes_per_token(WHOLE, None, kept) * 256 == card.kv_bytes_per_token(WHOLE) * 130


def test_latent_vectors_are_refused_by_name(tiny):
    folder, reason = tiny("deepseek_v3").folder, "its layers keep latent vectors, which are compressed"
    with pytest.raises(CortexError, match=f"cannot be served with kv_cache_dtype int8: {reason}"):
        described(ModelSettings(id="m", kv_cache_dtype="int8"), read_card(folder))
    with pytest.raises(CortexError, match=reason):
        load(folder, kv_cache_dtype="fp8")


def test_an_encoder_is_refused_by_name(tmp_path):
    encoders.write("bert", tmp_path)
    with pytest.raises(CortexError, match="kv_cache_dtype fp8: it reads every text as a whole, and keeps no"):
        described(ModelSettings(id="m", kv_cache_dtype="fp8"), read_card(tmp_path))


def load(folder, **changes) -> ModelRunner:
    runner = make_runner(folder, **SMALL | changes)
    runner.load(lambda fraction, message: None)
    return runner


PROMPT = [(7 * i + 3) % 96 for i in range(100)]
REQUESTS = [
    request(0, PROMPT, 5, prompt_logprobs=1, logprobs=1),
    request(1, PROMPT[:70], 30, temperature=1.0, seed=3, logprobs=1),
    request(2, [*PROMPT[:64], 5, 6], 4, logprobs=1),
    request(3, [9], 35, temperature=1.0, seed=7, logprobs=1),
    request(4, PROMPT[40:73], 5, temperature=1.0, seed=8, logprobs=1),
]


def answers(
    runner: ModelRunner, submits: list[Submit], times: int = 1, **limits: int
) -> tuple[list[Answer], list[int]]:
    """What a scheduler of its own brings, the last of so many times; what was cached of it stands beside."""
    session = Session(runner, **SMALL | limits)
    for _ in range(times):
        found = session.answer(submits)
    session.end()
    cached = [answer.cached_tokens for answer in found]
    for answer in found:
        answer.cached_tokens = 0
    return found, cached


@pytest.mark.parametrize(("name", "kept"), [("gemma3", "int8"), ("gpt_oss", "fp8"), ("qwen3_5", "int8")])
def test_circumstances_change_no_bit(tiny, name, kept):
    """In company, in parts, from the cache, and preempted; in models with windows, sinks and states.

    Computed exactly, so that nothing but what is kept could differ.
    """
    runner = load(tiny(name).folder, exact=True, kv_cache_dtype=kept)
    alone = [answer for submit in REQUESTS for answer in answers(runner, [submit])[0]]
    assert answers(runner, REQUESTS)[0] == alone
    assert answers(runner, REQUESTS, max_step_tokens=17)[0] == alone
    found, cached = answers(runner, REQUESTS, times=2)
    assert found == alone
    assert cached[1]
    assert cached[2]
    session = Session(runner, **SMALL)
    with short_of_memory(session, runner):
        preempted = session.answer(REQUESTS)
    session.end()
    assert session.scheduler.statistics()["preemptions"]
    assert [answer.token_ids for answer in preempted] == [answer.token_ids for answer in alone]
    assert [answer.logprobs for answer in preempted] == [answer.logprobs for answer in alone]
    runner.close()


def probabilities(runner: ModelRunner) -> torch.Tensor:
    """Of the token after the prompt, as logarithms."""
    found = logits_of(runner, PROMPT).double().log_softmax(-1)
    runner.close()
    return found


@pytest.mark.parametrize(("kept", "most"), [("int8", 1e-3), ("fp8", 3e-2)])
def test_what_it_loses_is_little(tiny, kept, most):
    """In nats, of models with random weights."""
    folder = tiny("qwen3_tied").folder
    exact, found = probabilities(load(folder)), probabilities(load(folder, kv_cache_dtype=kept))
    lost = float((exact.exp() * (exact - found)).sum())
    assert 0 < lost < most


@pytest.mark.parametrize("kept", FORMATS)
def test_two_ranks_keep_what_one_does(tiny, monkeypatch, kept):
    folder = tiny("qwen3_tied").folder
    limits = {"kv_cache_dtype": kept, **SMALL}
    ranks = Ranks(folder, 2, monkeypatch, **limits)
    [shared] = Session(ranks, **SMALL).answer(REQUESTS[:1])
    monkeypatch.undo()
    [alone] = Session(load(folder, **limits), **SMALL).answer(REQUESTS[:1])
    assert shared.token_ids == alone.token_ids
    told = [[each.logprob for each in answer.prompt_logprobs] for answer in (shared, alone)]
    # sums of ranks are rounded otherwise, and so, seldom, is a code
    torch.testing.assert_close(*map(torch.tensor, told), rtol=0, atol=1e-3)
    ranks.close()
