"""Every field that OpenAI's schema has for a request: it has its effect, or is refused by its name where it
would change the answer, or is a hint that leaves the answer as it is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gateway.dialects.openai import chat as openai_chat
from gateway.dialects.openai import completions as openai_completions
from gateway.dialects.openai import embeddings as openai_embeddings
from ipc.errors import Code, CortexError
from ipc.messages.answers import Choice, Timings, Usage
from ipc.messages.conversation import ToolCall
from ipc.messages.replies import Delta, Embeddings, Finished, Started
from tests.gateway.parsing import TOOL, USER, parsed

SPECIFICATION = Path(__file__).parents[2] / "../shared/data/specs/openai-core.json"
PARSE = {
    "CreateChatCompletionRequest": (openai_chat.parse, {"model": "m", "messages": [USER]}),
    "CreateCompletionRequest": (openai_completions.parse, {"model": "m", "prompt": "x"}),
    "CreateEmbeddingRequest": (openai_embeddings.parse, {"model": "m", "input": "x"}),
}

# By request and field: a value that asks for something, and what the request needs beside it.
SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
EFFECT: dict[str, dict[str, tuple[Any, dict[str, Any]]]] = {
    "CreateChatCompletionRequest": {
        "messages": ([{"role": "user", "content": "another"}], {}),
        "model": ("another", {}),
        "frequency_penalty": (0.5, {}),
        "function_call": ({"name": "f"}, {"functions": [{"name": "f"}]}),
        "functions": ([{"name": "f"}], {}),
        "logit_bias": ({"5": 1}, {}),
        "logprobs": (True, {}),
        "max_completion_tokens": (5, {}),
        "max_tokens": (5, {}),
        "n": (2, {}),
        "parallel_tool_calls": (False, {"tools": [TOOL]}),
        "presence_penalty": (0.5, {}),
        "prompt_cache_key": ("k", {}),
        "reasoning_effort": ("low", {}),
        "response_format": (SCHEMA, {}),
        "seed": (5, {}),
        "stop": (["x"], {}),
        "stream": (True, {}),
        "stream_options": ({"include_usage": True}, {"stream": True}),
        "temperature": (0.5, {}),
        "tool_choice": ("required", {"tools": [TOOL]}),
        "tools": ([TOOL], {}),
        "top_logprobs": (2, {"logprobs": True}),
        "top_p": (0.5, {}),
    },
    "CreateCompletionRequest": {
        "model": ("another", {}),
        "prompt": ("another", {}),
        "echo": (True, {}),
        "frequency_penalty": (0.5, {}),
        "logit_bias": ({"5": 1}, {}),
        "logprobs": (2, {}),
        "max_tokens": (5, {}),
        "n": (2, {}),
        "presence_penalty": (0.5, {}),
        "seed": (5, {}),
        "stop": (["x"], {}),
        "stream": (True, {}),
        "stream_options": ({"include_usage": True}, {"stream": True}),
        "suffix": ("x", {}),
        "temperature": (0.5, {}),
        "top_p": (0.5, {}),
    },
    "CreateEmbeddingRequest": {
        "model": ("another", {}),
        "input": ("another", {}),
        "dimensions": (1, {}),
        "encoding_format": ("base64", {}),
    },
}
REFUSED: dict[str, dict[str, Any]] = {
    "CreateChatCompletionRequest": {
        "audio": {"voice": "alloy", "format": "wav"},
        "modalities": ["text", "audio"],
        "moderation": {"model": "omni-moderation-latest"},
        "web_search_options": {"search_context_size": "low"},
    },
    "CreateCompletionRequest": {"best_of": 2},
    "CreateEmbeddingRequest": {},
}
HINTS: dict[str, dict[str, Any]] = {
    "CreateChatCompletionRequest": {
        "metadata": {"a": "b"},
        "prediction": {"type": "content", "content": "x"},
        "prompt_cache_options": {"mode": "auto"},
        "prompt_cache_retention": "24h",
        "safety_identifier": "s",
        "service_tier": "flex",
        "store": True,
        "user": "u",
        "verbosity": "low",
    },
    "CreateCompletionRequest": {"user": "u"},
    "CreateEmbeddingRequest": {"user": "u"},
}


def cases(table: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    return [(request, field) for request, fields in table.items() for field in fields]


def read(request: str, fields: dict[str, Any]) -> tuple[Any, list[bytes]]:
    """What a neuron would be asked, and how the client would be answered."""
    parse, required = PARSE[request]
    asked, answer = parsed(parse, json.dumps(required | fields).encode())
    if request == "CreateEmbeddingRequest":
        return asked, [answer.whole(Embeddings(id=1, vectors=[bytes(8)], prompt_tokens=1))]
    calls = [ToolCall(id="c", name="f", arguments="{}")]
    choices = [
        Choice(reason="tool_calls", index=index, tool_calls=calls) for index in range(fields.get("n") or 1)
    ]
    finished = Finished(id=1, choices=choices, usage=Usage(), timings=Timings())
    started = Started(id=1, prompt_tokens=1)
    stream = (
        answer.started(started) + answer.delta(Delta(id=1, tokens=1, text="a")) + answer.finished(finished)
    )
    written = [answer.whole(started, finished), stream]
    return asked, [re.sub(rb'"created":\d+', b"", each) for each in written]


@pytest.mark.parametrize(("request_", "field"), cases(EFFECT))
def test_a_field_with_an_effect_has_it(request_: str, field: str) -> None:
    value, beside = EFFECT[request_][field]
    assert read(request_, beside | {field: value}) != read(request_, beside)


@pytest.mark.parametrize(("request_", "field"), cases(REFUSED))
def test_a_field_that_would_change_the_answer_is_refused_by_name(request_: str, field: str) -> None:
    with pytest.raises(CortexError) as refused:
        read(request_, {field: REFUSED[request_][field]})
    assert (refused.value.code, refused.value.param) == (Code.NOT_SUPPORTED, field)
    assert field in refused.value.message


@pytest.mark.parametrize(("request_", "field"), cases(HINTS))
def test_a_hint_changes_nothing(request_: str, field: str) -> None:
    assert read(request_, {field: HINTS[request_][field]}) == read(request_, {})


@pytest.mark.parametrize(("request_", "field"), [*cases(EFFECT), *cases(REFUSED), *cases(HINTS)])
def test_null_asks_for_nothing(request_: str, field: str) -> None:
    required = PARSE[request_][1]
    if field in required:
        with pytest.raises(CortexError) as refused:
            read(request_, {field: None})
        assert (refused.value.code, refused.value.param) == (Code.BAD_REQUEST, field)
    else:
        assert read(request_, {field: None}) == read(request_, {})


WRONG = ({"wrong": []}, ["wrong", {}], 10**30, "wrong", True, -(10**30), 1.5, [[[]]])


@pytest.mark.parametrize(("request_", "field"), [*cases(EFFECT), *cases(REFUSED)])
def test_a_wrong_value_is_refused_by_name(request_: str, field: str) -> None:
    """Of each kind of value that the field does not take."""
    beside, errors = EFFECT[request_].get(field, ("", {}))[1], []
    for value in WRONG:
        try:
            read(request_, beside | {field: value})
        except CortexError as error:
            errors.append(error)
    assert len(errors) >= 4
    for error in errors:
        assert error.code in (Code.BAD_REQUEST, Code.NOT_SUPPORTED), error
        assert re.fullmatch(rf"{field}([.\[].*)?", error.param), error


def test_the_table_has_every_field_of_the_schema_and_no_other() -> None:
    if not SPECIFICATION.exists():
        pytest.skip("the specification is not here")
    schemas = json.loads(SPECIFICATION.read_text())["components"]["schemas"]
    for request in PARSE:
        told = [EFFECT[request], REFUSED[request], HINTS[request]]
        fields = properties(schemas, request)
        assert fields == {field for table in told for field in table}
        assert sum(map(len, told)) == len(fields), "a field stands in two tables"


def test_the_page_tells_of_every_field() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    items = [item.partition("\n\n")[0] for item in page.split("\n* **")]
    refused, hints = (
        next(item for item in items if item.startswith(start)) for start in ("Refused with", "Hints that")
    )
    for table, row in ((EFFECT, page), (REFUSED, refused), (HINTS, hints)):
        for request, field in cases(table):
            if field not in PARSE[request][1]:
                assert f"`{field}`" in row or f'"{field}"' in row, (
                    request,
                    field,
                )  # as code, or in an example


def properties(schemas: dict[str, Any], name: str) -> set[str]:
    """The fields of an object, inherited ones included."""
    schema = schemas[name]
    found = set(schema.get("properties", {}))
    for part in schema.get("allOf", ()):
        found |= (
            properties(schemas, part["$ref"].rpartition("/")[2])
            if "$ref" in part
            else set(part["properties"])
        )
    return found
