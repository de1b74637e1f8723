"""A step waits for its device once, for its tokens; as far as that can be known without a device.

Fake tensors hold no numbers: who asks one for its value, or for as many elements as there turn out to be,
gets an error where a GPU would be waited for.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor, FakeTensorMode

from ipc.worker_messages import PAGE_SIZE, SamplingParams
from tests.workers.engines import make_runner
from workers.cache.paged import KVCache
from workers.checkpoints.card import ModelCard
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import WHOLE
from workers.execution.model_runner import ModelRunner
from workers.execution.overlap import LatestTokens
from workers.kernels import grouped
from workers.kernels.fused import INTERPRETED
from workers.models.registry import MODELS
from workers.models.stages import Stages
from workers.parallel import RankGroup
from workers.sampling.draws import FILTERED, PLAIN, choose
from workers.sampling.inputs import Wishes
from workers.sampling.sampler import Sampler
from workers.step.plan import UNKNOWN, NewSequence, Scheduled, StepPlan
from workers.weights.blocks import Empty

SETTINGS = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 1.0, "top_k": 20, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 0.0, "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    {"temperature": 0.0, "logprobs": 5},
    {"temperature": 1.0, "top_p": 0.5, "logprobs": 0},
    {"temperature": 0.0, "logit_bias": {3: 1.0}, "allowed_token_ids": [3, 4], "bad_words": [[4]]},
    {"temperature": 0.0, "min_tokens": 3, "stop_ids": [0], "no_repeat_ngram": 2},
]
PAGES = 1  # of each sequence


@pytest.fixture
def waits(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of the tensors that were waited for. They turn out to be full of ones."""
    seen: list[tuple[int, ...]] = []

    def tolist(tensor: FakeTensor) -> list[int]:
        seen.append(tuple(tensor.shape))
        [count] = tensor.shape
        return [1] * count

    monkeypatch.setattr(FakeTensor, "tolist", tolist, raising=False)
    return seen


def empty_runner(folder: str) -> ModelRunner:
    """An engine without weights, whose sampler behaves as on a GPU."""
    runner = make_runner(folder)
    config, pages = runner.card.config, PAGES * len(SETTINGS)
    runner.model = MODELS[runner.card.family](config, RankGroup(), torch.float32)
    runner.stages = Stages((), config.norm_eps, Empty(torch.float32))
    runner.sampler = Sampler(config.vocab_size)
    runner.sampler.looks = False
    groups = runner.card.cache_groups(WHOLE, "float32")
    shapes = dict(enumerate(layer.shape_on_rank(WHOLE) for layer in config.layers))
    kind = {"dtype": torch.float32, "device": torch.device("cpu")}
    runner._attend_over(groups, KVCache(groups, shapes, pages=pages * len(groups), **kind), 0)
    runner.most_bytes = 1 << 60
    return runner


@contextmanager
def a_gpu(card: ModelCard, **limits: Any) -> Iterator[tuple[ModelRunner, list[int]]]:
    """An engine on a GPU that computes nothing, and as many numbers as it was waited for."""
    pytest.importorskip("triton")
    from tests.workers import counted

    waited: list[int] = []
    limits |= {"dtype": "float32", "max_step_tokens": 64, "context_length": 256}
    # Within what that replaces: it is put back before that is.
    with counted.on_a_gpu(card, **limits) as runner, pytest.MonkeyPatch.context() as within:
        within.setattr(FakeTensor, "tolist", lambda x: pytest.fail("it is looked at"))
        within.setattr(
            "workers.sampling.sampler.fetched", lambda x: lambda: waited.append(1) or [0] * x.numel()
        )
        yield runner, waited


@pytest.mark.parametrize("name", ["gemma3", "gemma3n_shared_sparse"])
def test_a_step_waits_for_its_tokens_and_for_nothing_else(tiny, waits, name):
    runner = empty_runner(tiny(name).folder)
    tables, slots = range(len(runner.cache.groups)), range(len(SETTINGS))

    def pages(slot: int) -> list[list[int]]:
        start = slot * PAGES * len(tables)
        return [[*range(start + table * PAGES, start + (table + 1) * PAGES)] for table in tables]

    prompt = array("I", range(2, 2 + PAGE_SIZE // 2))
    added = [
        NewSequence(slot, len(prompt), prompt.tobytes(), SamplingParams(**settings))
        for slot, settings in enumerate(SETTINGS)
    ]
    prefill = StepPlan(1, [], added, [Scheduled(slot, len(prompt), pages(slot)) for slot in slots])
    decode = StepPlan(2, [], [], [Scheduled(slot, 1) for slot in slots])
    with FakeTensorMode(allow_non_fake_inputs=True):
        for plan in (prefill, decode):
            waits.clear()
            assert runner.execute(plan).tokens == [1] * len(SETTINGS)
            assert len(waits) == 1


def test_nor_does_it_ask_how_many_tokens_an_expert_has(tiny, waits, monkeypatch):
    runner = empty_runner(tiny("qwen3_moe").folder)
    for block in runner.model.blocks:
        block.mlp.in_pairs = True
    monkeypatch.setattr(grouped, "product", grouped.reference)
    slots = range(len(SETTINGS))
    added = [NewSequence(slot, 3, bytes(12), SamplingParams()) for slot in slots]
    prefill = StepPlan(1, [], added, [Scheduled(slot, 3, [[slot]]) for slot in slots])
    decode = StepPlan(2, [], [], [Scheduled(slot, 1) for slot in slots])
    with FakeTensorMode(allow_non_fake_inputs=True):
        for plan in (prefill, decode):
            waits.clear()
            runner.execute(plan)
            assert len(waits) == 1


@pytest.mark.skipif(INTERPRETED, reason="kernels are to do nothing, and are not to be interpreted")
def test_nor_for_the_drafts_that_a_head_makes_on_a_gpu(tiny):
    card = read_card(tiny("qwen3_5_moe").folder)
    card = msgspec.structs.replace(card, config=card.config.with_mtp())
    prompt = array("I", range(2, 18))
    added = [
        NewSequence(slot, len(prompt), prompt.tobytes(), SamplingParams(**settings))
        for slot, settings in enumerate([*SETTINGS[:2], *SETTINGS[5:7]])
    ]
    with a_gpu(card, speculation="mtp") as (runner, waited):
        pages = [[0] for _ in runner.groups]
        for number, new in enumerate(added, 1):
            runner.execute(StepPlan(number, [], [new], [Scheduled(new.slot, len(prompt), pages)]))
        assert len(waited) == len(added)
        for step, ahead in enumerate((4, 1, 3), len(added) + 1):
            plan = [Scheduled(slot, 1 + ahead, [], [UNKNOWN] * ahead) for slot in (0, 1)]
            result = runner.execute(StepPlan(step, [], [], [*plan, Scheduled(2, 1), Scheduled(3, 1)]))
            assert result.tokens == [0] * (2 * ahead + 4)
            assert result.drafts == [0] * (2 * ahead)
            assert len(waited) == step


@pytest.mark.skipif(INTERPRETED, reason="kernels are to do nothing, and are not to be interpreted")
@pytest.mark.parametrize("name", ["granitemoehybrid", "nemotron_h", "falcon_h1"])
def test_nor_for_states_of_mamba_on_a_gpu(tiny, name):
    """Prompts, drafts beside a single token, which are adopted, and single tokens."""
    prompt = array("I", range(2, 18))
    added = [NewSequence(slot, len(prompt), prompt.tobytes(), SamplingParams(0.0)) for slot in range(3)]
    with a_gpu(read_card(tiny(name).folder), speculation="ngram") as (runner, waited):
        pages = [[0] for _ in runner.groups]
        prompts = [Scheduled(slot, len(prompt), pages) for slot in range(3)]
        drafts = [Scheduled(0, 1), Scheduled(1, 4, [], [0] * 3), Scheduled(2, 2, [], [0])]
        runner.execute(StepPlan(1, [], added, prompts))
        assert len(waited) == 1
        assert runner.execute(StepPlan(2, [], [], drafts)).tokens == [0] * 7
        assert len(waited) == 2
        runner.execute(StepPlan(3, [], [], [Scheduled(slot, 1) for slot in range(3)]))
        assert len(waited) == 3


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.version.cuda, reason="torch is for CPUs")),
    ],
)
@pytest.mark.parametrize("ways", [0, PLAIN, FILTERED, PLAIN | FILTERED])
def test_a_draw_within_a_recorded_step_never_looks_and_stays_on_its_device(device, ways):
    rows = 5
    with FakeTensorMode():
        logits = torch.empty(rows, 4096, device=device)
        wishes = Wishes.of(torch.empty(5 * rows, dtype=torch.int64, device=device).view(torch.float64))
        tokens = choose(logits, wishes, ways, block_rows=2)
        latest = LatestTokens(rows, RankGroup(device=device))
        latest.keep(torch.empty(rows, dtype=torch.int64, device=device), tokens)
        fed = latest.fill_in(tokens)
    assert (tokens.shape, tokens.dtype, tokens.device.type) == ((rows,), torch.int64, device)
    assert fed.device.type == device


def test_a_look_at_numbers_on_the_way_would_be_found():
    sampler = Sampler(40)
    with FakeTensorMode():
        sampler.add(0, SamplingParams(1.0, top_p=0.9), [1])
        with pytest.raises(DynamicOutputShapeException):
            sampler.sample(torch.zeros(1, 40), [0])
