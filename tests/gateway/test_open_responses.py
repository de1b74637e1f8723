"""The cases of the Open Responses compliance suite, over HTTP, against the schemas of its specification."""

from __future__ import annotations

import base64
import json
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from tests.streams import responses
from tests.streams.responses_events import check_response
from tests.streams.sse import read

SPECIFICATION = Path(__file__).parents[2] / "../shared/data/specs/openresponses-core.json"

USER = {"type": "message", "role": "user"}
PIXEL = "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()
WEATHER = {
    "type": "function",
    "name": "add",
    "description": "Adds numbers",
    "parameters": {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]},
}
SAID = {
    "type": "message",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "Hello Alice!", "annotations": []}],
}
LOOK = {"type": "input_text", "text": "What is in this image?"}
CASES: dict[str, dict[str, Any]] = {
    "a basic answer": {"input": [USER | {"content": "Say hello in exactly 3 words."}]},
    "a system prompt": {
        "input": [
            {"type": "message", "role": "system", "content": "You are a pirate."},
            USER | {"content": "Say hello."},
        ]
    },
    "a tool that is called": {"model": "tools", "input": [USER | {"content": "Add."}], "tools": [WEATHER]},
    "an image": {"input": [USER | {"content": [LOOK, {"type": "input_image", "image_url": PIXEL}]}]},
    "several turns": {
        "input": [USER | {"content": "My name is Alice."}, SAID, USER | {"content": "What is my name?"}]
    },
    "settings": {
        "input": "hello",
        "instructions": "be brief",
        "temperature": 0.5,
        "top_p": 0.9,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "max_output_tokens": 16,
        "max_tool_calls": 2,
        "metadata": {"a": "b"},
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "tools": [WEATHER],
        "tool_choice": {
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [{"type": "function", "name": "add"}],
        },
        "truncation": "auto",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "service_tier": "default",
        "include": ["reasoning.encrypted_content"],
    },
}


@cache
def specification() -> dict[str, Any]:
    if not SPECIFICATION.exists():
        pytest.skip("the specification is not here")
    return json.loads(SPECIFICATION.read_text())


def check(name: str, value: Any) -> None:
    """Hold a value against a schema of the specification."""
    components = {"components": specification()["components"]}
    schema = components | {"$ref": f"#/components/schemas/{name}"}
    jsonschema.Draft202012Validator(schema).validate(value)


@pytest.fixture(params=CASES)
def body(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"model": "echo"} | CASES[request.param]


def test_answer_is_complete_and_has_every_field(http: httpx.Client, body: dict[str, Any]) -> None:
    reply = http.post("/v1/responses", json=body)
    assert reply.status_code == 200, reply.text
    response = reply.json()
    check_response(response)
    assert response["status"] == "completed"
    assert response["output"]
    if body["model"] == "tools":
        assert "function_call" in {item["type"] for item in response["output"]}
    check("ResponseResource", response)


def test_stream_is_complete_and_has_every_field(http: httpx.Client, body: dict[str, Any]) -> None:
    reply = http.post("/v1/responses", json=body | {"stream": True})
    assert reply.status_code == 200, reply.text
    assert responses(reply.content)["status"] == "completed"
    schemas = {
        kind: name
        for name, schema in specification()["components"]["schemas"].items()
        if name.endswith("StreamingEvent")
        for kind in schema["properties"]["type"]["enum"]
    }
    events = read(reply.content)
    for event in events:
        # Thoughts are told as OpenAI and Codex know them; here they would be `response.reasoning.delta`.
        kind = event.name.replace("reasoning_text", "reasoning")
        check(schemas[kind], event.data | {"type": kind})


def test_compacted_conversation_has_every_field(http: httpx.Client) -> None:
    reply = http.post("/v1/responses/compact", json={"model": "echo", "input": "hello"})
    check("CompactResource", reply.json())
