"""What we answer is what OpenAI's schema says. The schema is not ours; without it nothing is tested."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gateway.dialects.openai import chat, completions, embeddings
from gateway.dialects.openai.envelope import envelope
from gateway.refusals import Refusal
from ipc.errors import Code, CortexError
from ipc.messages.answers import Alternative, Choice, Timings, TokenLogprob, ToolCallDelta, Usage
from ipc.messages.conversation import ToolCall
from ipc.messages.replies import Delta, Embeddings, Finished, Started
from tests.gateway.parsing import TOOL, USER, parsed

SPECIFICATION = Path(__file__).parents[2] / "../shared/data/specs/openai-core.json"
pytestmark = pytest.mark.skipif(not SPECIFICATION.exists(), reason="the specification is not here")

TOP = [Alternative(token_id=2, token="b", raw=b"b", logprob=-2.0)]
LOGPROBS = [TokenLogprob(token_id=1, token="a", raw=b"a", logprob=-0.5, top=TOP)]
STARTED = Started(id=1, prompt_tokens=2)
USAGE = Usage(prompt_tokens=2, completion_tokens=3, cached_tokens=1, reasoning_tokens=1)
CUSTOM = {"type": "custom", "custom": {"name": "t"}}
CALLS = [
    ToolCall(id="c0", name="f", arguments="{}"),
    ToolCall(id="c1", name="t", arguments='{"input": "x"}'),
]


@cache
def validator(name: str) -> jsonschema.Draft202012Validator:
    specification = with_null(json.loads(SPECIFICATION.read_text()))
    return jsonschema.Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": specification["components"]}
    )


def with_null(schema: Any) -> Any:
    """The schema with `nullable`, which is OpenAPI's, in the words of JSON schema."""
    if isinstance(schema, list):
        return [with_null(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: with_null(value) for key, value in schema.items() if key != "nullable"}
    return {"anyOf": [inner, {"type": "null"}]} if schema.get("nullable") is True else inner


def check(name: str, answer: bytes) -> dict[str, Any]:
    value = json.loads(answer)
    validator(name).validate(value)
    return value


def check_stream(name: str, stream: bytes) -> list[dict[str, Any]]:
    *events, done, rest = stream.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return [check(name, event.removeprefix(b"data: ")) for event in events]


def finished(*choices: Choice) -> Finished:
    return Finished(id=1, choices=list(choices), usage=USAGE, timings=Timings())


STREAM = {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": True}}


@pytest.mark.parametrize(
    ("fields", "choice"),
    [
        ({}, Choice(reason="stop", text="a", reasoning="hm")),
        ({"logprobs": True, "top_logprobs": 1}, Choice(reason="length", text="a", logprobs=LOGPROBS)),
        ({"tools": [TOOL, CUSTOM]}, Choice(reason="tool_calls", tool_calls=CALLS)),
        ({"functions": [{"name": "f"}]}, Choice(reason="tool_calls", tool_calls=CALLS[:1])),
    ],
)
def test_chat(fields: dict[str, Any], choice: Choice) -> None:
    body = {"model": "m", "messages": [USER]} | fields
    answer = parsed(chat.parse, json.dumps(body).encode())[1]
    whole = check("CreateChatCompletionResponse", answer.whole(STARTED, finished(choice)))
    assert whole["usage"]["total_tokens"] == 5
    answer = parsed(chat.parse, json.dumps(body | STREAM).encode())[1]
    news = [
        ToolCallDelta(index=0, call_id=call.id, name=call.name, arguments=call.arguments)
        for call in choice.tool_calls
        if call.name == "f"  # what streams of a custom tool look like, the schema does not say
    ]
    delta = Delta(
        id=1,
        tokens=1,
        text=choice.text,
        reasoning=choice.reasoning,
        tool_calls=news,
        logprobs=choice.logprobs,
    )
    stream = answer.started(STARTED) + answer.delta(delta) + answer.finished(finished(choice))
    chunks = check_stream("CreateChatCompletionStreamResponse", stream)
    assert chunks[-1]["usage"] == whole["usage"]


@pytest.mark.parametrize("fields", [{}, {"logprobs": 1}])
def test_completion(fields: dict[str, Any]) -> None:
    body = {"model": "m", "prompt": "x"} | fields
    choice = Choice(reason="stop", text="a", logprobs=LOGPROBS if fields else [])
    answer = parsed(completions.parse, json.dumps(body).encode())[1]
    check("CreateCompletionResponse", answer.whole(STARTED, finished(choice)))
    answer = parsed(completions.parse, json.dumps(body | STREAM).encode())[1]
    told = answer.delta(Delta(id=1, tokens=1, text="a", logprobs=choice.logprobs))
    *chunks, last = check_stream_of_completion(
        answer.started(STARTED) + told + answer.finished(finished(choice))
    )
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, "stop"]
    assert last["choices"] == []


def check_stream_of_completion(stream: bytes) -> list[dict[str, Any]]:
    """Chunks of completions have no schema of their own: they are completions whose end is open."""
    *events, done, _ = stream.split(b"\n\n")
    assert done == b"data: [DONE]"
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events]
    for chunk in chunks:
        ended = [each | {"finish_reason": each["finish_reason"] or "stop"} for each in chunk["choices"]]
        usage = {"usage": chunk["usage"]} if chunk["usage"] else {}
        open_ended = {key: value for key, value in chunk.items() if key != "usage"}
        validator("CreateCompletionResponse").validate(open_ended | usage | {"choices": ended})
    return chunks


def test_embeddings() -> None:
    answer = parsed(embeddings.parse, b'{"model":"m","input":["a","b"]}')[1]
    told = check(
        "CreateEmbeddingResponse", answer.whole(Embeddings(id=1, vectors=[bytes(8)] * 2, prompt_tokens=2))
    )
    assert [each["index"] for each in told["data"]] == [0, 1]


def test_an_error() -> None:
    error = CortexError(Code.BAD_REQUEST, "n: no", param="n")
    check("ErrorResponse", envelope(Refusal.of(error)))
