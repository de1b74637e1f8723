"""What else goes on in the engine never changes an answer."""

from __future__ import annotations

import pytest

from ipc.worker_messages import SamplingParams
from tests.workers.engines import make_spec, request, serve, some_requests
from workers.runner import Runner

VOCABULARY = 131


@pytest.fixture(scope="module")
def runner(tiny):
    runner = Runner(make_spec(tiny("qwen3_untied_biased").folder))
    runner.load(lambda fraction, message: None)
    return runner


def unlike_requests(count: int):
    """Greedy and sampled ones, each with its own seed and settings."""
    settings = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 5},
        {"temperature": 1.5, "top_p": 0.8},
        {"temperature": 3.0, "top_k": 40, "top_p": 0.95},
        {"temperature": 2.0, "min_p": 0.02, "repetition_penalty": 1.3, "min_tokens": 5},
        {"temperature": 0.0, "presence_penalty": 0.7, "frequency_penalty": 0.4, "logit_bias": {7: 4.0}},
        {"temperature": 1.0, "bad_words": [[3], [5, 9]], "allowed_token_ids": list(range(60))},
    ]
    for submit in some_requests(count, VOCABULARY, seed=3):
        chosen = settings[submit.request_id % len(settings)]
        submit.params = SamplingParams(**chosen, seed=1000 + submit.request_id)
        yield submit


def alone(runner, requests):
    outputs = []
    for submit in requests:
        outputs += serve(runner, [submit])
    return outputs


@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_batched_answers_equal_answers_alone(runner, count):
    requests = list(unlike_requests(count))
    expected = alone(runner, requests)
    assert serve(runner, requests) == expected


def test_preempted_sequences_go_on_as_if_nothing_had_happened(runner):
    requests = [*unlike_requests(8)]
    for submit in requests:
        submit.prompt = submit.prompt[: 4 * 20]
        submit.max_tokens = 100
    expected = alone(runner, requests)
    plans = []
    execute = runner.execute
    runner.execute = lambda plan: plans.append(plan) or execute(plan)
    outputs = serve(runner, requests, kv_pages=12)
    del runner.execute
    assert sum(len(plan.added) for plan in plans) >= len(requests) + 3, "nothing was preempted"
    assert outputs == expected


def test_answers_do_not_depend_on_what_pages_held_before(runner):
    requests = list(unlike_requests(6))
    before = alone(runner, requests)
    for layer in runner.cache.layers:
        layer.fill_(1e4)
    assert alone(runner, requests) == before


def test_a_seed_draws_the_same_and_another_seed_draws_something_else(runner):
    def draw(seed):
        return serve(runner, [request(1, [5, 6, 7], 30, temperature=5.0, seed=seed)])

    assert draw(1) == draw(1) != draw(2)


def test_load_tells_what_it_holds_and_how_far_it_is(tiny):
    heard = []
    spec = make_spec(tiny("llama_untied").folder, kv_pages=3)
    runner = Runner(spec)
    loaded = runner.load(lambda fraction, message: heard.append(fraction))
    parameters = sum(parameter.numel() for parameter in tiny("llama_untied").oracle.parameters())
    page_bytes = 2 * 2 * 2 * 32 * 12 * 4  # layers, keys and values, heads, tokens, head_dim, float32
    assert (loaded.memory.weights, loaded.memory.kv_pool) == (4 * parameters, 3 * page_bytes)
    assert loaded.kv_pages == 3
    assert heard == sorted(heard)
    assert heard[-1] == 1.0
