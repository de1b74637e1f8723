"""Completions and embeddings of OpenAI, and what vLLM has beside them: understood, or refused by name."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.dialects import RequestContext
from gateway.dialects.anthropic import messages as anthropic_messages
from gateway.dialects.fields import MAX_INT
from gateway.dialects.openai import chat as openai_chat
from gateway.dialects.openai import embeddings as openai_embeddings
from gateway.dialects.openai.responses import request as responses_request
from gateway.dialects.vllm import rerank
from ipc.errors import Code, CortexError
from ipc.messages.sampling import Sampling, Structured
from tests.gateway.parsing import USER, chat, completion, embed, parsed, refusal


@pytest.mark.parametrize(
    "prompt",
    ["x", ["x"], ["a", "b"], [1, 2], [[1, 2]], [[1], [2, 3]], ["x"] * 128],
)
def test_prompts_are_texts_or_token_ids(prompt: Any) -> None:
    assert completion(prompt=prompt).prompt == prompt


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ("", "prompt"),
        ([], "prompt"),
        ([[]], "prompt[0]"),
        (["a", ""], "prompt[1]"),
        ([[1], []], "prompt[1]"),
        ([1, "a"], "prompt[1]"),
        (["a", 1], "prompt[1]"),
        (["a", [1]], "prompt[1]"),
        ([[1, -1]], "prompt[0][1]"),
        ([[1], [2, "a"]], "prompt[1][1]"),
        ([True], "prompt[0]"),
        (7, "prompt"),
    ],
)
def test_other_prompts_are_refused(prompt: Any, param: str) -> None:
    error = refusal(completion, prompt=prompt)
    assert (error.code, error.param) == (Code.BAD_REQUEST, param)


@pytest.mark.parametrize(("prompts", "n"), [(129, 1), (2, 65), (128, 2)])
def test_more_choices_than_the_limit_are_refused_with_it(prompts: int, n: int) -> None:
    error = refusal(completion, prompt=["x"] * prompts, n=n)
    assert (error.code, error.param) == (Code.BAD_REQUEST, "prompt")
    assert "128" in error.message


def test_completions_refuse_what_they_do_not_do() -> None:
    for fields in (
        {"best_of": 2},
        {"add_special_tokens": False},
        {"prompt_embeds": "AAAA"},
        {"return_tokens_as_token_ids": True},
        {"logits_processors": ["x"]},
        {"max_completion_tokens": 5},
        {"top_logprobs": 2},
    ):
        assert refusal(completion, **fields).param == next(iter(fields))
    assert completion(suffix="x").suffix == "x"
    assert completion(prompt="", suffix="x").prompt == ""
    assert completion(suffix="") == completion()
    neutral = {"add_special_tokens": True, "return_tokens_as_token_ids": False, "top_logprobs": 0}
    assert completion(**neutral) == completion()


@pytest.mark.parametrize("given", ["x", ["x"], ["a", "b"], [1, 2], [[1, 2]], [[1], [2, 3]]])
def test_inputs_are_texts_or_token_ids(given: Any) -> None:
    one = isinstance(given, str) or isinstance(given[0], int)
    assert embed(input=given).input == ([given] if one else given)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": [1, "a"]}, "input[1]"),
        ({"input": [True]}, "input[0]"),
        ({"input": ["a", 1]}, "input[1]"),
        ({"input": [[1, "a"]]}, "input[0][1]"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": MAX_INT + 1}, "dimensions"),
        ({"priority": -MAX_INT - 2}, "priority"),
    ],
)
def test_other_inputs_are_refused(fields: dict[str, Any], param: str) -> None:
    error = refusal(embed, **fields)
    assert (error.code, error.param) == (Code.BAD_REQUEST, param)


@pytest.mark.parametrize(
    ("given", "theirs", "param"),
    [("x", "input[0]", "input"), ([7], "input[0][0]", "input[0]"), (["x"], "input[0]", "input[0]")],
)
def test_a_neurons_error_names_the_input_that_the_client_sent(given: Any, theirs: str, param: str) -> None:
    _, answer = parsed(openai_embeddings.parse, json.dumps({"model": "m", "input": given}).encode())
    error = answer.in_client_words(CortexError(Code.BAD_REQUEST, f"{theirs} is bad", param=theirs))
    assert (error.param, error.message) == (param, f"{param} is bad")


def test_everything_about_sampling_reaches_the_neuron() -> None:
    sampling = chat(
        n=2,
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=-1,
        frequency_penalty=0.5,
        logit_bias={"5": -100},
        allowed_token_ids=[5, 6],
        bad_words=["x"],
        min_tokens=3,
        include_stop_str_in_output=True,
        logprobs=True,
        top_logprobs=4,
        prompt_logprobs=1,
    ).sampling
    assert sampling == Sampling(
        n=2,
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=-1,
        frequency_penalty=0.5,
        logit_bias={5: -100},
        allowed_token_ids=[5, 6],
        bad_words=["x"],
        min_tokens=3,
        include_stop=True,
        logprobs=4,
        prompt_logprobs=1,
    )
    assert chat(logprobs=True).sampling.logprobs == 0
    assert completion(logprobs=3).sampling.logprobs == 3
    request = completion(echo=True, max_tokens=0, priority=-1, cache_salt="mine")
    assert (request.echo, request.sampling.max_tokens) == (True, 0)
    assert (request.priority, request.cache_salt) == (-1, "mine")


@pytest.mark.parametrize(
    ("given", "seconds"), [(None, None), ("5m", 300.0), (0, 0.0), ("0", 0.0), (-1, -1.0), (12.5, 12.5)]
)
def test_keep_alive_is_read_as_ollama_has_it_wherever_a_model_is_loaded(
    given: Any, seconds: float | None
) -> None:
    def body(**fields: Any) -> bytes:
        return json.dumps({"model": "m", "keep_alive": given} | fields).encode()

    requests = [parse(keep_alive=given) for parse in (chat, completion, embed)]
    requests.append(parsed(rerank.parse, body(query="q", documents=["d"]))[0])
    requests.append(parsed(anthropic_messages.parse, body(messages=[USER], max_tokens=9))[0])
    asker = RequestContext("r")
    requests.append(asyncio.run(responses_request.read(body(input="x"), asker, None)).generate)
    assert [request.keep_alive for request in requests] == [seconds] * len(requests)
    assert refusal(chat, keep_alive="soon").param == "keep_alive"


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("fields", "structured"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Structured(json_object=True)),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
            Structured(json=SCHEMA),
        ),
        ({"structured_outputs": {"json": SCHEMA}}, Structured(json=SCHEMA)),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, Structured(json=SCHEMA)),
        ({"structured_outputs": {"regex": "a+"}}, Structured(regex="a+")),
        ({"structured_outputs": {"choice": ["a", "b"]}}, Structured(choice=["a", "b"])),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, Structured(grammar='start: "a"')),
        ({"structured_outputs": {"json_object": True}}, Structured(json_object=True)),
        ({"guided_json": SCHEMA}, Structured(json=SCHEMA)),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, Structured(json=SCHEMA)),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, Structured(json=SCHEMA)),
        ({"json_schema": SCHEMA}, Structured(json=SCHEMA)),
        ({"json_schema": json.dumps(SCHEMA)}, Structured(json=SCHEMA)),
        ({"regex": "a+"}, Structured(regex="a+")),
        ({"guided_choice": ["a"]}, Structured(choice=["a"])),
    ],
)
def test_what_an_answer_must_look_like_is_understood_in_every_spelling(
    fields: dict[str, Any], structured: Structured | None
) -> None:
    assert chat(**fields).structured == structured
    assert completion(**fields).structured == structured


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"seed": 1.5}, "seed"),
        ({"seed": "one"}, "seed"),
        ({"min_p": 1.1}, "min_p"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"stop": [f"{i}" for i in range(17)]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
    ],
)
def test_what_is_out_of_range_or_contradicts_is_named(fields: dict[str, Any], param: str) -> None:
    error = refusal(chat, **fields)
    assert (error.code, error.param) == (Code.BAD_REQUEST, param)


def test_no_tokens_need_an_echo() -> None:
    assert refusal(completion, max_tokens=0).param == "max_tokens"
    assert refusal(completion, logprobs=21).param == "logprobs"


def test_a_neuron_s_complaint_is_told_in_the_words_of_the_client() -> None:
    def param(field: str, **fields: Any) -> str | None:
        body = {"model": "m", "messages": [USER]} | fields
        _, answer = parsed(openai_chat.parse, json.dumps(body).encode())
        return answer.in_client_words(CortexError(Code.BAD_REQUEST, "no", param=field)).param

    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    schema = "structured_outputs.json"
    assert param(schema, response_format=form) == "response_format.json_schema.schema"
    assert param(schema, structured_outputs={"json": SCHEMA}) == schema
    assert param(schema, guided_json=SCHEMA) == "guided_json"
    bare = {"type": "json_object", "schema": SCHEMA}
    assert param(schema, response_format=bare) == "response_format.schema"
    assert param("max_tokens", max_completion_tokens=5) == "max_completion_tokens"
    assert param("messages") == "messages"
