"""The models answer as transformers does."""

from __future__ import annotations

import copy

import pytest
import torch

from ipc.worker_messages import Submit
from tests.workers.checkpoints import VARIANTS
from tests.workers.engines import Answer, Session, logits_of, make_runner, request, serve
from tests.workers.oracle import fill, greedy
from tests.workers.thread_ranks import Ranks
from tests.workers.tiny_models import phi3
from workers.execution.model_runner import ModelRunner
from workers.layers.linear import Linear


def load(folder, **changes) -> ModelRunner:
    runner = make_runner(folder, **changes)
    runner.load(lambda fraction, message: None)
    return runner


LONG = [(7 * i + 3) % 131 for i in range(100)]  # tokens, more than a step takes
LENGTHS = (1, 25, 33, 58, 64)  # of other prompts
TOKENS = 10  # of each answer: four of them go on over the end of a page, or begin at one
FEWER = 8  # the same on two ranks, which divide weights and not tokens
SMALL = {"max_sequences": 8, "max_step_tokens": 128, "context_length": 512, "kv_pages": 120}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_family_answers_as_transformers_does(tiny, name, monkeypatch):
    """Each greedily, in chunks, in a batch, the last one from what is cached, on one rank and on two."""
    folder, oracle = tiny(name)
    vocabulary, prompt = oracle.config.get_text_config().vocab_size, [token % 96 for token in LONG]
    prompts = [[(i * k + k) % vocabulary for i in range(length)] for k, length in enumerate(LENGTHS, 3)]
    prompts = [prompt, *prompts, prompt[:70] + prompt[:22]]
    runner = load(folder, **SMALL)
    with torch.inference_mode():
        expected = oracle(torch.tensor([prompt])).logits[0, -1]
    torch.testing.assert_close(logits_of(runner, prompt), expected, rtol=1e-4, atol=1e-4)
    two = Ranks(folder, 2, monkeypatch, **SMALL)
    answers, fewer = (
        answer_in_turn(engine, [request(i, each, tokens) for i, each in enumerate(prompts)])
        for engine, tokens in ((runner, TOKENS), (two, FEWER))
    )
    for each, answer in zip(prompts, answers, strict=True):
        assert answer.token_ids == greedy(oracle, each, answer.token_ids)
        assert len(answer.token_ids) == TOKENS
    assert [answer.token_ids for answer in fewer] == [answer.token_ids[:FEWER] for answer in answers]
    for found in (answers, fewer):
        assert [answer.cached_tokens for answer in found] == [0] * (len(found) - 1) + [64]
        assert len({token for answer in found for token in answer.token_ids}) > 10, "answers too dull"
    two.close()


def answer_in_turn(engine: ModelRunner | Ranks, requests: list[Submit]) -> list[Answer]:
    """The last one comes when the others have been writing for a while."""
    session = Session(engine, **SMALL | {"max_step_tokens": 41})
    *first, last = requests
    for submit in first:
        session.scheduler.submit(submit)
    answers = {submit.request_id: Answer() for submit in requests}
    while not all(answer.finish for answer in answers.values()):
        if last is not None and len(answers[0].token_ids) > 4:
            session.scheduler.submit(last)
            last = None
        session.scheduler.observe(session.engine.execute(session.scheduler.plan()))
        for report in session.scheduler.take_reports():
            answers[report.request_id].take(report)
    return list(answers.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "name",
    ["qwen3_untied_biased", "llama_yarn_biased", "gemma4", "gemma3n_shared_sparse", "llama4", "phimoe"],
)
def test_half_precision_is_as_close_to_float32_as_that_of_transformers(tiny, name, dtype):
    folder, oracle = tiny(name)
    prompt = [(5 * i + 1) % oracle.config.vocab_size for i in range(100)]
    rounded = copy.deepcopy(oracle).to(dtype)
    with torch.inference_mode():
        exact = oracle(torch.tensor([prompt])).logits[0, -1]
        theirs = rounded(torch.tensor([prompt])).logits[0, -1].float()
    ours = logits_of(load(folder, dtype=str(dtype).removeprefix("torch.")), prompt)
    assert (ours - exact).norm() <= 1.5 * (theirs - exact).norm()
    assert 0 < (ours - exact).norm() < 0.2 * exact.norm()


@pytest.mark.parametrize("name", ["qwen3_tied", "llama_tied_llama3", "qwen3_yarn"])
def test_a_long_prompt_in_chunks_equals_the_same_prompt_in_one_piece(tiny, name):
    folder, oracle = tiny(name)
    prompt = [(i * i + 5) % oracle.config.vocab_size for i in range(3000)]
    runner = load(folder, max_step_tokens=4096)
    [whole] = serve(runner, [request(1, prompt, 12)], max_step_tokens=4096)
    runner.slots.clear()
    [chunked] = serve(runner, [request(1, prompt, 12)], max_step_tokens=257)
    assert chunked == whole == greedy(oracle, prompt, whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 2, 3, 50])
def test_products_are_rounded_once_whether_there_are_kernels_for_the_type_or_not(dtype, rows):
    generator = torch.Generator().manual_seed(1)
    x, weight, bias = (
        torch.randn(*shape, generator=generator).to(dtype) for shape in ((rows, 700), (900, 700), (900,))
    )
    exact = x.double() @ weight.double().t() + bias.double()
    linear = Linear(weight, bias)
    plain = linear(x)
    linear.pack()
    for product in (plain, linear(x)):
        assert product.dtype == dtype
        torch.testing.assert_close(product.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-4)


@pytest.mark.parametrize(("context", "length"), [(4096, 100), (64, 40)], ids=["long", "short"])
def test_a_longrope_has_the_factors_of_the_context_that_is_served(tmp_path, context, length):
    torch.manual_seed(3)
    factors = {"short_factor": [1.0 + i / 10 for i in range(6)], "long_factor": [2.0 + i for i in range(6)]}
    oracle = phi3(
        rope_parameters={"rope_type": "longrope", "rope_theta": 10_000.0, **factors},
        original_max_position_embeddings=64,
    )
    fill(oracle)
    oracle.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    prompt = [(5 * i + 2) % 131 for i in range(length)]
    [output] = serve(load(tmp_path, context_length=context), [request(1, prompt, 20)])
    assert output == greedy(oracle, prompt, output)
    assert len(set(output)) > 5


def test_a_long_answer_of_a_model_with_windows_takes_the_pages_of_a_window(tiny):
    folder, oracle = tiny("mistral_window")
    prompt, pages = [(5 * i + 2) % 131 for i in range(50)], 5
    [output] = serve(load(folder, kv_pages=pages), [request(1, prompt, 250)], kv_pages=pages)
    assert len(output) == 250  # 10 pages, if all of it were kept
    assert output == greedy(oracle, prompt, output)
