"""OpenAI's dialects: what is understood, what is refused by name, what is ignored."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.dialects import openai_chat, openai_completions
from gateway.dialects.openai import json_string
from ipc.errors import Code, CortexError
from ipc.messages import Generate, Message, Tool, ToolCall

USER = {"role": "user", "content": "x"}
TOOL = {"type": "function", "function": {"name": "f", "strict": True}}


def chat(**fields: Any) -> Generate:
    body = {"model": "m", "messages": [USER]} | fields
    return openai_chat.parse(json.dumps(body).encode(), "r")[0]


def completion(**fields: Any) -> Generate:
    return openai_completions.parse(json.dumps({"model": "m", "prompt": "x"} | fields).encode(), "r")[0]


def refusal(parse: Any, **fields: Any) -> CortexError:
    with pytest.raises(CortexError) as caught:
        parse(**fields)
    return caught.value


def test_conversation_keeps_all_that_the_template_needs() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    request = chat(
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "2"},
            {"role": "assistant", "content": "two", "reasoning": "so"},
        ]
    )
    assert request.messages == [
        Message(role="system", content="be brief"),
        Message(role="user", content="a\nb"),
        Message(
            role="assistant", reasoning="hm", tool_calls=[ToolCall(id="c1", name="f", arguments='{"a": 1}')]
        ),
        Message(role="tool", content="2", tool_call_id="c1"),
        Message(role="assistant", content="two", reasoning="so"),
    ]


def test_sampling_is_taken_as_it_is_spelt() -> None:
    sampling = chat(
        temperature=0,
        top_p=1,
        top_k=-1,
        seed=-1,
        max_tokens=5,
        max_completion_tokens=6,
        stop="end",
        stop_token_ids=[7],
        ignore_eos=True,
    ).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0, 1, 0)
    assert (sampling.seed, sampling.max_tokens) == ((1 << 64) - 1, 6)
    assert (sampling.stop, sampling.stop_token_ids, sampling.ignore_eos) == (["end"], [7], True)
    assert chat().sampling == type(sampling)()


def test_effort_and_template_arguments_reach_the_template() -> None:
    assert chat(reasoning_effort="none").template_args["enable_thinking"] is False
    assert chat(reasoning_effort="low").template_args == {"enable_thinking": True, "reasoning_effort": "low"}
    args = chat(reasoning_effort="none", chat_template_kwargs={"enable_thinking": True}).template_args
    assert args["enable_thinking"] is True
    assert chat().template_args == {}


def test_tools_are_told_unless_the_client_says_none() -> None:
    assert chat(tools=[TOOL]).tools == [Tool(name="f")]
    assert chat(tools=[TOOL], tool_choice="auto").tools == [Tool(name="f")]
    assert chat(tools=[TOOL], tool_choice="none").tools == []


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"logprobs": True},
        {"top_logprobs": 3},
        {"logit_bias": {"5": 1}},
        {"response_format": {"type": "json_object"}},
        {"presence_penalty": 0.5},
        {"frequency_penalty": -1},
        {"audio": {"voice": "x"}},
        {"modalities": ["audio"]},
        {"functions": [{"name": "f"}]},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"web_search_options": {}},
        {"min_p": 0.1},
        {"guided_json": {}},
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(fields: dict[str, Any]) -> None:
    error = refusal(chat, **fields)
    assert (error.code, error.param) == (Code.NOT_SUPPORTED, next(iter(fields)))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"type": "custom"}]}]},
            "messages[0].tool_calls[0].type",
        ),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type"),
    ],
)
def test_what_is_no_text_is_refused_where_it_stands(fields: dict[str, Any], param: str) -> None:
    error = refusal(chat, **fields)
    assert (error.code, error.param) == (Code.NOT_SUPPORTED, param)


def test_hints_and_neutral_values_are_ignored() -> None:
    plain = chat()
    for fields in (
        {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "prompt_cache_key": "k"},
        {"parallel_tool_calls": False, "verbosity": "low", "safety_identifier": "s", "never_heard_of": [1]},
        {
            "n": 1,
            "logprobs": False,
            "logit_bias": {},
            "presence_penalty": 0.0,
            "response_format": {"type": "text"},
        },
        {"stream_options": {"include_usage": True, "include_obfuscation": False}, "modalities": ["text"]},
        {"n": None, "stop": None, "tools": None, "temperature": None, "max_tokens": None, "stream": None},
    ):
        assert chat(**fields) == plain


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"seed": "1"}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"stream": "yes"}, "stream"),
        ({"model": ""}, "model"),
        ({"messages": [USER, {"role": "robot", "content": "x"}]}, "messages[1].role"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ],
)
def test_wrong_type_or_range_is_a_bad_request_that_names_the_path(fields: dict[str, Any], param: str) -> None:
    error = refusal(chat, **fields)
    assert (error.code, error.param) == (Code.BAD_REQUEST, param)


@pytest.mark.parametrize(
    ("prompt", "taken"),
    [("x", "x"), (["x"], "x"), ([1, 2], [1, 2]), ([[1, 2]], [1, 2])],
)
def test_prompt_is_text_or_token_ids(prompt: Any, taken: Any) -> None:
    assert completion(prompt=prompt).prompt == taken


@pytest.mark.parametrize(
    ("prompt", "code", "param"),
    [
        (["a", "b"], Code.NOT_SUPPORTED, "prompt"),
        ([[1], [2]], Code.NOT_SUPPORTED, "prompt"),
        ("", Code.BAD_REQUEST, "prompt"),
        ([], Code.BAD_REQUEST, "prompt"),
        ([[]], Code.BAD_REQUEST, "prompt[0]"),
        ([1, "a"], Code.BAD_REQUEST, "prompt[1]"),
        ([[1, -1]], Code.BAD_REQUEST, "prompt[0][1]"),
        ([True], Code.BAD_REQUEST, "prompt[0]"),
        (7, Code.BAD_REQUEST, "prompt"),
    ],
)
def test_other_prompts_are_refused(prompt: Any, code: str, param: str) -> None:
    error = refusal(completion, prompt=prompt)
    assert (error.code, error.param) == (code, param)


def test_completions_refuse_what_they_do_not_do() -> None:
    for fields in ({"echo": True}, {"suffix": "x"}, {"best_of": 2}, {"logprobs": 0}):
        assert refusal(completion, **fields).param == next(iter(fields))


def test_json_text_is_one_line_for_everybody() -> None:
    text = 'a"\n\r\u0085\u2028\u2029é😀'
    encoded = json_string(text).decode()
    assert json.loads(encoded) == text
    assert len(encoded.splitlines()) == 1
