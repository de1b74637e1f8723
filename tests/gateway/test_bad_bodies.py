"""Bodies that nobody should send, to every address of OpenAI's kind: an error of ours, and never another."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects import RequestContext
from gateway.dialects.openai import chat, completions, embeddings
from gateway.dialects.vllm import rerank, tokens
from ipc.errors import Code, CortexError
from ipc.model_settings import MAX_MODEL_ID
from tests.gateway.parsing import TOOL, USER

PARSE: dict[str, Callable[[bytes, RequestContext], Any]] = {
    "/v1/chat/completions": chat.parse,
    "/v1/completions": completions.parse,
    "/v1/embeddings": embeddings.parse,
    "/tokenize": tokens.parse_tokenize,
    "/detokenize": tokens.parse_detokenize,
    "/v1/rerank": rerank.parse,
}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
PART = {"type": "text", "text": "x"}
CUSTOM = {"type": "custom", "custom": {"name": "t", "description": "d", "format": {"type": "text"}}}
ALLOWED = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]}
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "m",
        "messages": [
            USER,
            {"role": "user", "content": [PART], "name": "n"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [CALL],
                "reasoning_content": "r",
                "refusal": None,
            },
            {"role": "tool", "tool_call_id": "c", "content": "x"},
            {"role": "assistant", "reasoning_details": [{"text": "t"}], "function_call": CALL["function"]},
        ],
        "tools": [TOOL, CUSTOM],
        "tool_choice": {"type": "allowed_tools", "allowed_tools": ALLOWED},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"type": "object"}},
        },
        "stream": True,
        "stream_options": {"include_usage": True},
        "logit_bias": {"5": 1},
        "reasoning": {"effort": "low"},
        "thinking": {"type": "enabled", "budget_tokens": 5},
        "chat_template_kwargs": {"a": 1},
        "stop": ["x"],
        "seed": 1,
        "n": 2,
    },
    "/v1/completions": {
        "model": "m",
        "prompt": ["x"],
        "suffix": "s",
        "logprobs": 1,
        "stop": "x",
        "n": 1,
        "seed": 1,
    },
    "/v1/embeddings": {
        "model": "m",
        "input": ["x"],
        "dimensions": 5,
        "encoding_format": "float",
        "user": "u",
    },
    "/tokenize": {"model": "m", "messages": [USER], "tools": [TOOL], "add_special_tokens": True},
    "/detokenize": {"model": "m", "tokens": [1, 2]},
    "/v1/rerank": {"model": "m", "query": "q", "documents": ["a", {"text": "b"}], "top_n": 1},
}
PATHS = pytest.mark.parametrize("path", PARSE)


def outcome(path: str, body: bytes) -> CortexError | None:
    """The error that a body meets, before any neuron is asked; what has none can be sent to one."""
    try:
        request, _ = asyncio.run(PARSE[path](body, RequestContext("r")))
    except CortexError as error:
        return error
    msgspec.msgpack.encode(request)
    return None


@PATHS
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b"\x00",
        b'{"model": "\xff"}',
        b'{"model": "m"} {}',
        b"{'a': 1}",
    ],
)
def test_what_is_no_json_object_is_told_so(path: str, body: bytes) -> None:
    error = outcome(path, body)
    assert error.code == Code.BAD_REQUEST
    assert len(error.message) < 300


@PATHS
@pytest.mark.parametrize("nest", [b"[", b'{"a":'])
@pytest.mark.parametrize(
    "field", [b"nobody_knows", b"messages", b"input", b"prompt", b"tools", b"response_format"]
)
def test_ten_megabytes_of_nesting_are_refused(path: str, nest: bytes, field: bytes) -> None:
    body = b'{"model":"m","%s":%s' % (field, nest * (10_000_000 // len(nest)))
    assert outcome(path, body).code == Code.BAD_REQUEST


@PATHS
def test_ten_megabytes_of_a_wrong_value_are_not_repeated(path: str) -> None:
    for name in VALID[path]:
        error = outcome(path, json.dumps(VALID[path] | {name: {"x" * 10_000_000: 1}}).encode())
        assert error is None or len(error.message) < 1000


@PATHS
def test_of_a_key_that_comes_twice_the_last_one_counts(path: str) -> None:
    body = json.dumps(VALID[path]).encode()
    twice = b'{"model":"another",' + body[1:]
    request, _ = asyncio.run(PARSE[path](twice, RequestContext("r")))
    assert request.model == "m"
    assert outcome(path, body[:-1] + b',"model":5}').param == "model"


@PATHS
def test_an_empty_body_is_called_that(path: str) -> None:
    assert outcome(path, b"").message == "the body is not valid JSON: it is empty"


@PATHS
def test_a_name_that_no_neuron_would_read_is_refused_here(path: str) -> None:
    for length, refused in ((MAX_MODEL_ID, None), (MAX_MODEL_ID + 1, "model")):
        error = outcome(path, json.dumps(VALID[path] | {"model": "x" * length}).encode())
        assert (error and error.param) == refused


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**25), 10**25)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def spoilt(draw: st.DrawFn) -> tuple[str, str, dict[str, Any]]:
    """A path, a request to it in which one value was replaced, and the field in which that was."""
    path = draw(st.sampled_from(sorted(VALID)))
    body = copy.deepcopy(VALID[path])
    field = draw(st.sampled_from(sorted(body)))
    holder, key = body, field
    while isinstance(value := holder[key], dict | list) and value and draw(st.booleans()):
        holder, key = (
            value,
            draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value)))),
        )
    holder[key] = draw(JSON)
    return path, field, body


@given(spoilt())
def test_one_wrong_value_is_refused_by_its_name_or_taken(case: tuple[str, str, dict[str, Any]]) -> None:
    path, field, body = case
    error = outcome(path, json.dumps(body).encode())
    if error is None:
        return
    assert error.code in (Code.BAD_REQUEST, Code.NOT_SUPPORTED)
    # What refers to another field may be told at either end.
    related = {"tools": ("tool_choice",), "tool_choice": ("tools",), "stream": ("stream_options",)}
    related["messages"] = ("prompt",)
    root = (error.param or "").partition(".")[0].partition("[")[0]
    assert root in (field, *related.get(field, ())), (error, body)


@PATHS
def test_an_error_over_http_has_openais_shape(http: httpx.Client, path: str) -> None:
    bodies = (b"{", b"\xff", b"[" * 100_000, b'{"model":5}', b'{"model":"m","stream":true}')
    for body in bodies:
        answer = http.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400, (body[:20], answer.text)
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["type"], error["code"]) == ("invalid_request_error", "bad_request")
