"""The bundled demo model: small, standard, and right on its ten questions without any of our serving code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tests.demo import DEMO
from tests.end_to_end.demo_questions import QUESTIONS, Question
from tools.demo_model import corpus, export


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(DEMO)


def test_folder_is_at_most_8_mb() -> None:
    assert sum(file.stat().st_size for file in DEMO.iterdir()) <= 8_000_000


def test_reference_and_training_model_give_the_same_logits(reference: PreTrainedModel) -> None:
    ours = export.load(DEMO).eval()
    tokens = torch.randint(0, ours.shape.vocab_size, (2, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), reference(tokens).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
def test_question_is_answered_right(
    question: Question, reference: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    inputs = tokenizer.apply_chat_template(
        question.messages,
        tools=question.tools,
        enable_thinking=question.enable_thinking,
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = reference.generate(**inputs, max_new_tokens=120)[0, inputs["input_ids"].shape[1] :]
    assert output[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(output[:-1])
    assert question.accepts(text), text


def test_same_seed_gives_the_same_corpus() -> None:
    first, again, other = (
        [list(corpus.render(talk)) for talk in islice(corpus.conversations(seed), 200)] for seed in (7, 7, 8)
    )
    assert first == again != other


def test_template_writes_what_the_model_was_trained_on(tokenizer: PreTrainedTokenizerBase) -> None:
    for talk in islice(corpus.conversations(3), 300):
        *spans, (_, learnt) = corpus.render(talk)
        assert learnt
        prompt = tokenizer.apply_chat_template(
            talk.messages[:-1],
            tools=talk.tools,
            enable_thinking=talk.thinking,
            add_generation_prompt=True,
            tokenize=False,
        )
        assert prompt == "".join(text for text, _ in spans)


def test_template_takes_arguments_as_object_or_as_json(tokenizer: PreTrainedTokenizerBase) -> None:
    def rendered(arguments: object) -> str:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        messages = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ]
        return tokenizer.apply_chat_template(messages, tokenize=False)

    arguments = {"city": "Köln", "n": 3}
    assert rendered(arguments) == rendered(json.dumps(arguments, ensure_ascii=False))
    assert '{"name": "f", "arguments": {"city": "Köln", "n": 3}}\n</tool_call>' in rendered(arguments)


def test_asking_in_plain_words_turns_thinking_on(tokenizer: PreTrainedTokenizerBase) -> None:
    def prompt(text: str) -> str:
        messages = [{"role": "user", "content": text}]
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    assert prompt("17 + 25").endswith("<think>\n\n</think>\n\n")
    assert prompt("17 + 25, step by step, please").endswith("<|im_start|>assistant\n")
