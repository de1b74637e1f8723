"""What one request computes reaches no other, whatever its numbers are."""

from __future__ import annotations

from array import array

import pytest

from ipc.errors import Code
from ipc.worker_messages import PAGE_SIZE, SamplingParams
from tests.workers.engines import DEVICES, Session, make_runner, request, serve
from workers.execution.model_runner import ModelRunner
from workers.step.pages import pages_for
from workers.step.plan import NewSequence, Scheduled, StepPlan

POISON = 7  # the token whose embedding is not finite
PAGES = 4


@pytest.fixture(params=DEVICES)
def runner(request, tiny):
    runner = make_runner(tiny("qwen3_untied_biased").folder, device=request.param, kv_pages=PAGES)
    runner.load(lambda fraction, message: None)
    if runner.graphs is not None:
        runner.graphs.paused = True  # so that logits are seen
    yield runner
    runner.close()


def greedy(runner: ModelRunner, prompt: list[int], pages: list[int], chunk: int = 1 << 20) -> list[bytes]:
    """The logits of each token of an answer that fills `pages`, with the prompt in chunks."""
    seen, logits = [], runner.model.logits
    runner.model.logits = lambda x: seen.append(logits(x)) or seen[-1].clone()
    new = NewSequence(0, len(prompt), array("I", prompt).tobytes(), SamplingParams(0.0))
    added, computed, length = [new], 0, len(prompt)
    while length < len(pages) * PAGE_SIZE:
        tokens = min(chunk, length - computed)
        given = pages[pages_for(computed) : pages_for(computed + tokens)]
        result = runner.execute(StepPlan(1, [], added, [Scheduled(0, tokens, [given])]))
        computed, added = computed + tokens, []
        if computed == length and result.tokens[0] < 0:
            break
        length += computed == length
    del runner.model.logits
    runner.empty()
    return [row.cpu().numpy().tobytes() for row in seen]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("chunk", [1 << 20, 20], ids=["whole", "chunked"])
def test_a_page_carries_nothing_from_one_request_into_another(runner, value, chunk):
    prompt = [(5 * i + 11) % 100 + 20 for i in range(45)]
    pages = list(range(PAGES))
    fresh = greedy(runner, prompt, pages, chunk)
    runner.model.embedding.weight[POISON] = value
    greedy(runner, [POISON] * (PAGES * PAGE_SIZE - 1), pages)
    assert not any(layer.isfinite().all() for layer in runner.cache.layers.values()), "nothing was poisoned"
    assert greedy(runner, prompt, pages[::-1], chunk) == fresh


def test_a_prompt_that_ended_in_error_is_computed_anew_when_the_cause_is_gone(runner):
    prompt = [(5 * i + 11) % 100 + 20 for i in range(70)] + [POISON] + [9] * 20
    fault = runner.model.embedding.weight[POISON].clone()
    limits = {"kv_pages": PAGES, "max_step_tokens": 40}
    [healthy] = serve(runner, [request(1, prompt, 5)], **limits)
    session = Session(runner, **limits)
    runner.model.embedding.weight[POISON] = float("inf")
    [broken] = session.answer([request(1, prompt, 5)])
    runner.model.embedding.weight[POISON] = fault
    [mended] = session.answer([request(2, prompt, 5)])
    session.end()
    assert (broken.finish, broken.code) == ("error", Code.INTERNAL)
    assert (mended.token_ids, mended.cached_tokens) == (healthy, 0)


KINDS = [
    "gemma3",
    "gemma3n_shared_sparse",
    "gpt_oss",
    "deepseek_v3",
    "qwen3_next",
    "lfm2",
    "llama4",
    "granitemoehybrid",
    "falcon_h1",
]


@pytest.mark.parametrize("name", KINDS)
def test_nor_does_any_other_kind_of_cache(tiny, name):
    """Windows, latents and states, in a pool that four broken requests had to themselves."""
    limits = {"kv_pages": 40, "max_sequences": 4}
    runner = make_runner(tiny(name).folder, **limits)
    runner.load(lambda fraction, message: None)
    prompts = [[(5 * i + 11 * j) % 100 + 20 for j in range(70 + 13 * i)] for i in range(4)]
    healthy = [request(i, prompt, 12, logprobs=3) for i, prompt in enumerate(prompts)]
    session = Session(runner, **limits)
    fresh = session.answer(healthy)
    said = {token for answer in fresh for token in answer.token_ids}
    poison = next(token for token in range(20) if token not in said)
    fault = runner.model.embedding.weight[poison].clone()
    runner.model.embedding.weight[poison] = float("nan")
    broken = [request(10 + i, [20 + i] * 33 + [poison] * 200, 5) for i in range(4)]
    beside = session.answer([*healthy[:2], *broken[:2]])
    assert [answer.finish for answer in session.answer(broken)] == ["error"] * 4
    runner.model.embedding.weight[poison] = fault
    after = session.answer(healthy)
    session.end()
    runner.close()
    assert [answer.finish for answer in beside[2:]] == ["error"] * 2
    assert [answer.token_ids for answer in beside[:2]] == [answer.token_ids for answer in fresh[:2]]
    assert [answer.token_ids for answer in after] == [answer.token_ids for answer in fresh]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_vector_that_is_not_finite_is_an_error_and_no_embedding(runner, pooling):
    runner.model.embedding.weight[POISON] = float("nan")
    asked = request(1, [20, POISON, 30], 1)
    asked.pooling = pooling
    session = Session(runner, kv_pages=PAGES)
    [answer] = session.answer([asked])
    session.end()
    assert (answer.finish, answer.code, answer.embedding) == ("error", Code.INTERNAL, b"")
