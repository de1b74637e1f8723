"""Whatever shares the batch, the cache or the ranks, a request gets what it would have got alone."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from ipc.worker_messages import Logprobs, Submit
from tests.demo import DEMO
from tests.workers import ranks
from tests.workers.engines import DEVICES, Answer, prompt_of
from tests.workers.equalities import CLOSE, VOCABULARY, Observed, assert_close, assert_equal, requests, vector
from tests.workers.oracle import fill
from tests.workers.ranks import Job, Result
from tests.workers.tiny_models import SIZES, qwen3


@pytest.fixture(scope="module")
def oracle() -> PreTrainedModel:
    torch.manual_seed(11)
    model = qwen3(vocab_size=VOCABULARY, tie_word_embeddings=True)
    fill(model, std=0.3)
    return model


@pytest.fixture(scope="module")
def folder(oracle, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("equalities")
    oracle.save_pretrained(folder)
    shutil.copy(DEMO / "tokenizer.json", folder)
    return folder


@pytest.fixture(scope="module")
def one_rank(folder) -> Result:
    """What one rank on the CPU saw."""
    [result] = ranks.run([Job(str(folder), "observe")], 1)
    return result


@pytest.fixture(scope="module")
def alone(one_rank, every) -> dict[str, list[Answer]]:
    """What that got for each request alone, of which every so many is answered."""
    answers = one_rank.observed.answers
    return {"alone": answers["alone"][::every], "single": answers["single"]}


@pytest.fixture(scope="module", params=[1, 2, 4], ids="{}_ranks".format)
def world_size(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def every(world_size) -> int:
    """Of the requests one of so many is answered: four processes take their time on two cores."""
    return 3 if world_size > 2 else 1


@pytest.fixture(scope="module", params=DEVICES)
def results(request, world_size, every, folder, one_rank, alone) -> list[Result]:
    """What so many ranks saw, and what they resumed after they had been started again."""
    if request.param != "cpu" and torch.cuda.device_count() < world_size:
        pytest.skip(f"there are no {world_size} GPUs")
    observe = Job(str(folder), "observe", request.param, every=every)
    resume = Job(str(folder), "resume", request.param, alone["alone"], every=every)
    if (world_size, request.param) == (1, "cpu"):
        return [one_rank, *ranks.run([resume], 1)]
    return ranks.run([observe, resume], world_size)


@pytest.fixture(scope="module")
def seen(results) -> Observed:
    return results[0].observed


@pytest.mark.parametrize("circumstance", ["batched", "chunked", "cached", "preempted"])
def test_circumstances_change_no_answer(seen, alone, circumstance):
    assert_equal(seen.answers[circumstance], alone["alone"])


def test_the_circumstances_came_about(seen, every):
    assert seen.preemptions > 5 / every
    cached = [answer.cached_tokens for answer in seen.answers["cached"]]
    assert [count > 0 for count in cached] == [
        len(prompt_of(submit)) > 32 and submit.pooling != "mean" and submit.params.prompt_logprobs is None
        for submit in requests(every)
    ]
    written = {token for answer in seen.answers["batched"] for token in answer.token_ids}
    assert len(written) > 100 / every, "answers too dull to prove much"
    assert {answer.finish for answer in seen.answers["batched"]} == {"stop", "length"}


def test_what_was_stopped_is_resumed_by_another_engine_as_if_nothing_had_happened(results, alone):
    assert results[1].outputs == [answer.token_ids for answer in alone["alone"]]


def test_choices_of_one_request_equal_single_requests_with_their_seeds(seen, alone):
    assert_equal(seen.answers["choices"], alone["single"])
    assert len({tuple(answer.token_ids) for answer in seen.answers["choices"]}) == len(
        seen.answers["choices"]
    )
    cached = [answer.cached_tokens for answer in seen.answers["choices"]][1:]
    assert cached[1:] == [96] * 3
    # where a step is sent before the last one is over, its page is not there yet
    assert cached[0] in (64, 96)


def test_ranks_meet_once_after_attention_once_after_the_mlp_and_for_the_vocabulary(seen, results, world_size):
    assert results[0].all_reduce == world_size
    layers = SIZES["num_hidden_layers"]
    assert seen.step_collectives == (2 * layers + 2 if world_size > 1 else 0)


@torch.no_grad()
def hidden_of(oracle: PreTrainedModel, tokens: list[int]) -> torch.Tensor:  # [tokens, hidden]
    return oracle.model(torch.tensor([tokens])).last_hidden_state[0]


@torch.no_grad()
def expected(oracle: PreTrainedModel, tokens: list[int], first: int, count: int) -> list[Logprobs]:
    """Of the tokens from number `first` on."""
    rows = oracle.lm_head(hidden_of(oracle, tokens)).log_softmax(-1)
    entries = []
    for row, token in zip(rows[first - 1 :], tokens[first:], strict=False):
        top = row.topk(count)
        entries.append(
            Logprobs(
                token,
                float(row[token]),
                1 + int((row > row[token]).sum()),
                [*zip(top.indices.tolist(), top.values.tolist(), strict=True)],
            )
        )
    return entries


def asked(seen: Observed, every: int, name: str) -> list[tuple[Submit, Answer, int]]:
    pairs = zip(requests(every), seen.answers["batched"], strict=True)
    return [(s, a, count) for s, a in pairs if (count := getattr(s.params, name)) is not None]


def test_logprobs_equal_those_of_transformers(seen, every, oracle):
    for submit, answer, count in asked(seen, every, "logprobs"):
        prompt = prompt_of(submit)
        assert_close(answer.logprobs, expected(oracle, prompt + answer.token_ids, len(prompt), count))
        assert all(len(entry.top) == count for entry in answer.logprobs)


def test_logprobs_of_prompts_equal_those_of_transformers(seen, every, oracle):
    for submit, answer, count in asked(seen, every, "prompt_logprobs"):
        assert_close(answer.prompt_logprobs, expected(oracle, prompt_of(submit), 1, count))
        assert len(answer.prompt_logprobs) == len(prompt_of(submit)) - 1


def test_embeddings_equal_the_hidden_states_of_transformers(seen, every, oracle):
    for submit, answer in zip(requests(every), seen.answers["batched"], strict=True):
        if submit.pooling:
            hidden = hidden_of(oracle, prompt_of(submit))
            wanted = hidden[-1] if submit.pooling == "last" else hidden.mean(dim=0)
            torch.testing.assert_close(vector(answer), wanted, rtol=CLOSE, atol=CLOSE)
            assert (answer.finish, answer.token_ids) == ("stop", [])
            assert not math.isclose(float(wanted.norm()), 1.0, abs_tol=0.1), "it is not normalised here"
