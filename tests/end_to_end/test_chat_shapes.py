"""The shapes that clients of chats send and read, through the whole system, with the OpenAI SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests import streams
from tests.end_to_end.harness import PATIENCE, Cortex
from tests.scripted import ScriptedModel, call

PATCH = 'line "one"\n\tline two é'
CUSTOM = {"type": "custom", "custom": {"name": "apply_patch", "description": "Edits files."}}
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
SUB = {"type": "function", "function": {"name": "sub", "parameters": {"type": "object"}}}
USER = {"role": "user", "content": "go on"}


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cortex]:
    folder = tmp_path_factory.mktemp("scripted")
    model = ScriptedModel(special=("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_sep|>"))
    model.answer(call("apply_patch", input=PATCH), when="calls == 0 and 'apply_patch' in names")
    model.answer(call("add", a=1), when="calls == 0 and 'add' in names")
    model.answer("It is done.", when="calls == 1")
    model.answer("Only sub is there.", when="'sub' in names")
    model.answer("<think>\nHm.\n</think>\n\nSo.", when="last == 'think'")
    model.answer("Hello!")
    model.completion(["x", " +", " 1", "<|file_sep|>", "another", " file"])
    with Cortex(folder, "--model", str(model.write(folder / "scripted"))) as system:
        yield system


@pytest.fixture(scope="module")
def sdk(scripted: Cortex) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{scripted.base}/v1", api_key="none", timeout=PATIENCE, max_retries=0
    ) as client:
        yield client


def ask(system: Cortex, **fields: Any) -> httpx.Response:
    body = {"model": "scripted", "messages": [USER], "max_tokens": 200} | fields
    response = system.post("/v1/chat/completions", **body)
    assert response.status_code == 200, response.text
    return response


def test_a_custom_tool_is_called_with_its_text_and_its_result_is_read(sdk: openai.OpenAI) -> None:
    fields = {"model": "scripted", "tools": [CUSTOM], "max_tokens": 200}
    message = sdk.chat.completions.create(messages=[USER], **fields).choices[0].message
    (made,) = message.tool_calls
    assert (made.type, made.custom.name, made.custom.input) == ("custom", "apply_patch", PATCH)
    result = {"role": "tool", "tool_call_id": made.id, "content": "ok"}
    answer = sdk.chat.completions.create(messages=[USER, message, result], **fields).choices[0]
    assert (answer.finish_reason, answer.message.content) == ("stop", "It is done.")


def test_the_text_of_a_custom_tool_streams(scripted: Cortex) -> None:
    body = ask(scripted, tools=[CUSTOM], stream=True).content
    chunks = [event.data for event in streams.read(body)[:-1]]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    calls = [each for delta in deltas for each in delta.get("tool_calls", ())]
    assert (calls[0]["type"], calls[0]["custom"]) == ("custom", {"name": "apply_patch", "input": ""})
    assert "".join(each["custom"]["input"] for each in calls) == PATCH
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_an_old_client_calls_a_function_and_tells_what_it_came_to(sdk: openai.OpenAI) -> None:
    fields = {"model": "scripted", "functions": [{"name": "add", "parameters": {"type": "object"}}]}
    choice = sdk.chat.completions.create(messages=[USER], max_tokens=99, **fields).choices[0]
    made = choice.message.function_call
    assert (choice.finish_reason, made.name, json.loads(made.arguments)) == ("function_call", "add", {"a": 1})
    history = [
        USER,
        {"role": "assistant", "content": None, "function_call": made.model_dump()},
        {"role": "function", "name": "add", "content": "1"},
    ]
    answer = sdk.chat.completions.create(messages=history, max_tokens=99, **fields).choices[0]
    assert answer.message.content == "It is done."


def test_the_model_is_told_of_the_allowed_tools_alone(scripted: Cortex) -> None:
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "sub"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    answer = ask(scripted, tools=[ADD, SUB], tool_choice=choice).json()
    assert answer["choices"][0]["message"]["content"] == "Only sub is there."


def test_a_history_of_every_shape_is_answered(scripted: Cortex) -> None:
    def function(arguments: Any) -> dict[str, Any]:
        return {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}

    messages = [
        {"role": "developer", "content": "be brief"},
        USER,
        {"role": "assistant", "content": None, "refusal": "no"},
        USER,
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": None, "tool_calls": [function({"a": {"b": 1}})]},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "1"}]},
        {"role": "assistant", "content": "", "tool_calls": [function('{"a": "cut o')], "reasoning": "hm"},
        {"role": "tool", "tool_call_id": "another", "content": "?"},
        {"role": "assistant", "content": "well", "reasoning_details": [{"text": "hm"}]},
        {"role": "tool", "content": "nobody asked"},
        USER,
    ]
    assert ask(scripted, messages=messages).json()["choices"][0]["message"]["content"]


def test_a_thought_comes_under_both_names_or_not_at_all(scripted: Cortex) -> None:
    thinking = {"messages": [{"role": "user", "content": "think"}]}
    message = ask(scripted, **thinking).json()["choices"][0]["message"]
    assert (message["reasoning"], message["reasoning_content"], message["content"]) == ("Hm.", "Hm.", "So.")
    hidden = ask(scripted, include_reasoning=False, **thinking).json()["choices"][0]["message"]
    assert (hidden["reasoning"], hidden["content"]) == (None, "So.")
    body = ask(scripted, reasoning={"exclude": True}, stream=True, **thinking).content
    assert streams.chat(body)["choices"][0]["message"]["reasoning_content"] is None


def test_an_obfuscated_stream_is_the_same_to_the_sdk(sdk: openai.OpenAI) -> None:
    options = {"include_usage": True, "include_obfuscation": True}
    chunks = list(
        sdk.chat.completions.create(model="scripted", messages=[USER], stream=True, stream_options=options)
    )
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == "Hello!"
    assert all(isinstance(chunk.obfuscation, str) for chunk in chunks)


def test_what_is_filled_in_ends_where_another_file_would_begin(sdk: openai.OpenAI) -> None:
    fields = {"model": "scripted", "prompt": "def f(x):\n    return ", "max_tokens": 50}
    choice = sdk.completions.create(suffix="\n\nprint(f(1))", **fields).choices[0]
    assert (choice.text, choice.finish_reason) == ("x + 1", "stop")
    assert sdk.completions.create(**fields).choices[0].text == "x + 1another file"


def test_a_model_that_writes_does_not_rank(scripted: Cortex) -> None:
    response = scripted.post("/v1/rerank", model="scripted", query="q", documents=["a"])
    assert (response.status_code, response.json()["error"]["param"]) == (400, "model")
    assert "cannot rank documents" in response.json()["error"]["message"]
