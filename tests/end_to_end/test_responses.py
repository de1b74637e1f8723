"""The Responses API through the whole system, with the demo model."""

from __future__ import annotations

import json
import re

import pytest

from tests.end_to_end.demo_questions import WEATHER
from tests.end_to_end.harness import Cortex
from tests.streams import responses
from tests.streams.responses_events import check_response

TOOL = {"type": "function"} | WEATHER["function"]
CODE = {
    "type": "custom",
    "name": "enter",
    "description": "Enters a code.",
    "format": {"type": "grammar", "syntax": "regex", "definition": "[A-C]{3}-[0-9]{2}"},
}


def ask(cortex: Cortex, given: object, **fields: object) -> dict:
    body = {"model": "demo", "input": given, "temperature": 0} | fields
    reply = cortex.post("/v1/responses", **body)
    assert reply.status_code == 200, reply.text
    response = responses(reply.content) if fields.get("stream") else reply.json()
    check_response(response)
    return response


def kinds(response: dict) -> list[str]:
    return [item["type"] for item in response["output"]]


def test_a_tool_is_called_and_its_answer_used_in_a_chain(cortex: Cortex) -> None:
    first = ask(cortex, "What is the weather in Paris?", tools=[TOOL, {"type": "web_search"}])
    call = first["output"][-1]
    assert (call["type"], call["name"]) == ("function_call", "get_weather")
    assert "Paris" in json.loads(call["arguments"])["city"]
    output = {
        "type": "function_call_output",
        "call_id": call["call_id"],
        "output": '{"temperature": 21, "unit": "C"}',
    }
    second = ask(cortex, [output], tools=[TOOL], previous_response_id=first["id"], stream=True)
    assert "21" in second["output"][-1]["content"][0]["text"]
    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]


def test_thought_has_an_item_and_its_effort_an_effect(cortex: Cortex) -> None:
    for stream in (False, True):
        thinking = ask(cortex, "What is a neuron?", reasoning={"effort": "high"}, stream=stream)
        assert kinds(thinking) == ["reasoning", "message"]
        assert thinking["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
        quick = ask(cortex, "What is a neuron?", reasoning={"effort": "none"}, stream=stream)
        assert kinds(quick) == ["message"]


def test_required_call_of_a_custom_tool_holds_its_pattern(cortex: Cortex) -> None:
    for stream in (False, True):
        fields = {"tools": [CODE], "tool_choice": "required", "parallel_tool_calls": False}
        call = ask(cortex, "Enter it.", stream=stream, **fields)["output"][-1]
        assert (call["type"], call["name"]) == ("custom_tool_call", "enter")
        assert re.fullmatch("[A-C]{3}-[0-9]{2}", call["input"]), call


def test_answer_follows_its_form(cortex: Cortex) -> None:
    schema = {
        "type": "object",
        "properties": {"warm": {"type": "boolean"}},
        "required": ["warm"],
        "additionalProperties": False,
    }
    form = {"format": {"type": "json_schema", "name": "weather", "schema": schema}}
    response = ask(cortex, "Is it warm?", text=form)
    assert set(json.loads(response["output"][-1]["content"][0]["text"])) == {"warm"}
    form["format"]["schema"] = {"not": {}}
    reply = cortex.post("/v1/responses", model="demo", input="x", text=form)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"].startswith("text.format.schema")


def test_log_probabilities_are_of_each_token_of_the_text(cortex: Cortex) -> None:
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "max_output_tokens": 64}
    for stream in (False, True):
        part = ask(cortex, "What is a neuron?", stream=stream, **fields)["output"][-1]["content"][0]
        assert "".join(entry["token"] for entry in part["logprobs"]).startswith(part["text"])
        assert all(len(entry["top_logprobs"]) == 2 for entry in part["logprobs"])


def test_conversation_that_is_too_long_loses_its_beginning(cortex: Cortex) -> None:
    items = [{"role": "user", "content": f"Number {i}: " + "one two three " * 200} for i in range(40)]
    items.append({"role": "user", "content": "What is a neuron?"})
    refused = cortex.post("/v1/responses", model="demo", input=items).json()
    assert refused["error"]["code"] == "context_length_exceeded"
    response = ask(cortex, items, truncation="auto", max_output_tokens=32)
    assert response["usage"]["output_tokens"] <= 32
    context = refused["error"]["details"]["context_length"]
    turn = ask(cortex, items[:1], max_output_tokens=1)["usage"]["input_tokens"]
    assert 0 <= context - 32 - response["usage"]["input_tokens"] < turn  # one turn more would not have fitted


@pytest.mark.parametrize("model", ["demo", "simulated"])
def test_background_ends(cortex: Cortex, model: str) -> None:
    fields = {"background": True, "stream": True, "max_output_tokens": 20}
    response = ask(cortex, "Hello!", model=model, **fields)
    assert response["status"] in ("completed", "incomplete")
