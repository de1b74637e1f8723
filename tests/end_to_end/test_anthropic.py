"""Anthropic's API, from the demo model through the whole system."""

from __future__ import annotations

from typing import Any

import pytest

from tests import streams

HELLO = {"model": "demo", "max_tokens": 200, "messages": [{"role": "user", "content": "Hello!"}]}
GREEDY = {"temperature": 0}
WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def ask(cortex):
    def ask(**fields: Any) -> dict[str, Any]:
        answer = cortex.post("/v1/messages", **HELLO | GREEDY | fields)
        assert answer.status_code == 200, answer.text
        return streams.anthropic(answer.content) if fields.get("stream") else answer.json()

    return ask


def text_of(message: dict[str, Any]) -> str:
    return "".join(block["text"] for block in message["content"] if block["type"] == "text")


def input_of(message: dict[str, Any]) -> int:
    usage = message["usage"]
    return usage["input_tokens"] + usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"]


def test_a_message_streamed_and_not(ask):
    whole, streamed = ask(), ask(stream=True)
    assert "cortex" in text_of(whole)
    assert whole["stop_reason"] == "end_turn"
    assert streamed["content"] == whole["content"]
    assert streamed["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


def test_a_count_is_what_the_message_then_has(cortex, ask):
    fields = {
        "system": "Be brief.",
        "tools": [WEATHER],
        "messages": [{"role": "user", "content": "Hi " * 90}],
    }
    counted = cortex.post("/v1/messages/count_tokens", model="demo", **fields).json()["input_tokens"]
    assert [input_of(ask(max_tokens=1, stream=stream, **fields)) for stream in (False, True)] == [counted] * 2


def test_a_prompt_that_was_read_before_counts_as_cached(ask):
    fields = {"max_tokens": 0, "messages": [{"role": "user", "content": "Once more. " * 60}]}
    first = ask(**fields)
    assert (first["content"], first["stop_reason"]) == ([], "max_tokens")
    again = ask(**fields | {"max_tokens": 1})
    assert again["usage"]["cache_read_input_tokens"] > 0
    assert input_of(again) == input_of(first)


def test_an_answer_that_the_client_has_begun_is_gone_on_with(ask):
    whole = text_of(ask())
    begun, rest = whole[:12].rstrip(), whole[len(whole[:12].rstrip()) :]
    turns = [*HELLO["messages"], {"role": "assistant", "content": begun}]
    assert text_of(ask(messages=turns)) == rest


def test_a_stop_sequence_ends_it_and_is_told(ask):
    for stream in (False, True):
        message = ask(stop_sequences=["model", "never said"], stream=stream)
        assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "model")
        assert "model" not in text_of(message)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_read(ask, stream):
    fields = {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "get_weather"}, "stream": stream}
    message = ask(**fields)
    [call] = message["content"]
    assert message["stop_reason"] == "tool_use"
    assert (call["type"], call["name"], list(call["input"])) == ("tool_use", "get_weather", ["city"])
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": [{"type": "text", "text": "warm"}]}
    turns = [
        *HELLO["messages"],
        {"role": "assistant", "content": message["content"]},
        {"role": "user", "content": [result]},
    ]
    assert ask(messages=turns, tools=[WEATHER])["type"] == "message"


def test_an_answer_follows_a_schema(ask):
    schema = {"type": "object", "properties": {"warm": {"type": "boolean"}}, "required": ["warm"]}
    form = {"type": "json_schema", "schema": schema | {"additionalProperties": False}}
    assert '"warm"' in text_of(ask(output_config={"format": form}))


def test_a_prompt_that_is_too_long_is_told_with_both_numbers(cortex):
    turns = [{"role": "user", "content": "word " * 60_000}]
    answer = cortex.post("/v1/messages", **HELLO | {"messages": turns})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("prompt is too long: ")


def test_an_image_for_a_model_that_takes_none_is_refused_in_its_place(cortex):
    source = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image", "source": source}]}
    ]
    answer = cortex.post("/v1/messages", **HELLO | {"system": "Be brief.", "messages": turns})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.json()["error"]["message"].startswith("messages.0.content.1: ")


@pytest.mark.parametrize("display", ["summarized", "omitted"])
def test_a_thought_is_shown_or_carried_and_taken_back(ask, display):
    sums = [{"role": "user", "content": "What is 17 plus 25?"}]
    fields = {"messages": sums, "thinking": {"type": "adaptive", "display": display}, "max_tokens": 400}
    whole, streamed = ask(**fields), ask(stream=True, **fields)
    assert [block["type"] for block in whole["content"]] == ["thinking", "text"]
    assert streamed["content"] == whole["content"]
    assert bool(whole["content"][0]["thinking"]) == (display == "summarized")
    turns = [*sums, {"role": "assistant", "content": whole["content"]}, *HELLO["messages"]]
    assert text_of(ask(messages=turns))
    assert [block["type"] for block in ask(messages=sums)["content"]] == ["text"]
