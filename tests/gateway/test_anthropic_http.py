"""Anthropic's API over HTTP, from a gateway in front of a fake neuron."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests import streams
from tests.gateway.conftest import GatewayProcess, NeuronThread

HELLO = {"max_tokens": 100, "messages": [{"role": "user", "content": "one two three"}]}
ADD = {"name": "add", "description": "adds", "input_schema": {"type": "object"}}
THINKING = {"thinking": {"type": "adaptive"}}


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "echo"},
        {"model": "echo", "max_tokens": 2},
        {"model": "echo", "max_tokens": 2, **THINKING},
        {"model": "tools", "tools": [ADD]},
        {"model": "tools", "tools": [ADD], **THINKING},
        {"model": "tools", "tools": [ADD], "thinking": {"type": "adaptive", "display": "omitted"}},
    ],
)
def test_a_stream_adds_up_to_the_unstreamed_message(http: httpx.Client, fields: dict[str, Any]) -> None:
    ask = HELLO | fields
    whole = http.post("/v1/messages", json=ask)
    assert whole.status_code == 200, whole.text
    streamed = http.post("/v1/messages", params={"beta": "true"}, json=ask | {"stream": True})
    assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
    message = streams.anthropic(streamed.content)
    told = whole.json()
    assert message.pop("id") != told.pop("id")
    assert message == told


def test_a_message_has_what_anthropic_s_has(http: httpx.Client) -> None:
    answer = http.post("/v1/messages", json=HELLO | {"model": "echo"})
    message = answer.json()
    assert message["id"].startswith("msg_")
    assert (message["type"], message["role"], message["model"]) == ("message", "assistant", "echo")
    assert message["content"] == [{"type": "text", "text": "one two three", "citations": []}]
    assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)
    # Of three tokens of input the fake neuron says that one was cached: the parts have nothing in common.
    counts = {name: message["usage"][name] for name in message["usage"] if name.endswith("tokens")}
    assert counts == {
        "input_tokens": 2,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 1,
        "output_tokens": 3,
    }
    assert answer.headers["request-id"] == answer.headers["x-request-id"]


def test_thoughts_are_for_those_who_ask_for_them(http: httpx.Client) -> None:
    ask = HELLO | {"model": "tools", "tools": [ADD]}
    call = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1}}
    call["caller"] = {"type": "direct"}
    without = http.post("/v1/messages", json=ask).json()
    assert without["content"] == [{"type": "text", "text": "so ", "citations": []}, call]
    assert without["stop_reason"] == "tool_use"
    thought, *others = http.post("/v1/messages", json=ask | THINKING).json()["content"]
    assert others == without["content"]
    assert (thought["type"], thought["thinking"]) == ("thinking", "hm")
    assert thought["signature"]


@pytest.mark.parametrize("base", ["/v1", "/v1/v1"])
def test_tokens_are_counted(http: httpx.Client, base: str) -> None:
    ask = {"model": "echo", "system": "be brief", "messages": HELLO["messages"], "tools": [ADD]}
    answer = http.post(f"{base}/messages/count_tokens?beta=true", json=ask)
    assert (answer.status_code, answer.json()) == (200, {"input_tokens": 6})
    assert answer.headers["request-id"]


def test_a_base_address_that_ends_in_v1_is_forgiven(http: httpx.Client) -> None:
    assert http.post("/v1/v1/messages", json=HELLO | {"model": "echo"}).json()["type"] == "message"


def test_somebody_is_there(http: httpx.Client) -> None:
    assert http.head("/").status_code == http.get("/").status_code == 200


@pytest.mark.parametrize("headers", [{"x-api-key": "a key"}, {"authorization": "Bearer a key"}])
def test_any_way_to_say_a_key_will_do(http: httpx.Client, headers: dict[str, str]) -> None:
    assert http.post("/v1/messages", json=HELLO | {"model": "echo"}, headers=headers).status_code == 200


# --- errors -----------------------------------------------------------------------------------------------


def error_of(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """The error that an answer is, once it is seen to be one in Anthropic's shape."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert (body["type"], body["request_id"]) == ("error", answer.headers["request-id"])
    assert body["error"]["type"] == kind
    assert body["error"]["message"]
    return body["error"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("model", "status", "kind", "again"),
    [
        ("nobody/has-this", 404, "not_found_error", None),
        ("fails/queue_full", 529, "overloaded_error", "1"),
        ("fails/worker_died", 529, "overloaded_error", "2"),
        ("fails/model_load_failed", 500, "api_error", None),
        ("fails/context_length_exceeded", 400, "invalid_request_error", None),
        ("fails/template_failed", 400, "invalid_request_error", None),
    ],
)
def test_an_error_has_its_type_and_status(
    http: httpx.Client, model: str, status: int, kind: str, again: str | None, stream: bool
) -> None:
    answer = http.post("/v1/messages", json=HELLO | {"model": model, "stream": stream})
    error_of(answer, status, kind)
    assert answer.headers.get("retry-after") == again
    assert answer.headers.get("x-should-retry") == ("false" if status == 500 else None)


def test_a_client_of_anthropic_s_reads_its_errors_everywhere(http: httpx.Client) -> None:
    headers = {"anthropic-version": "2023-06-01"}
    for path in ("/v1/messages/batches", "/v1/models/nobody-has-this", "/nowhere"):
        error_of(http.get(path, headers=headers), 404, "not_found_error")
        assert http.get(path).json()["error"]["code"]
    error_of(http.get("/v1/models?limit=x", headers=headers), 400, "invalid_request_error")


def test_what_http_does_not_allow_is_said_in_anthropic_s_words(http: httpx.Client) -> None:
    error_of(http.get("/v1/messages"), 405, "invalid_request_error")
    error_of(http.post("/v1/messages", content=b"{}"), 415, "invalid_request_error")
    large = b" " * (300 << 10)
    headers = {"content-type": "application/json"}
    error_of(http.post("/v1/messages", content=large, headers=headers), 413, "request_too_large")


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"nul", b'"\xff"', b'{"model":"\xff"}', b'{"model":"\\ud800"}', b"[" * 100_000]
)
def test_a_body_that_is_none_is_refused(http: httpx.Client, path: str, body: bytes) -> None:
    answer = http.post(path, content=body, headers={"content-type": "application/json"})
    error_of(answer, 400, "invalid_request_error")


def test_a_stream_that_breaks_ends_in_an_error_event(http: httpx.Client) -> None:
    ask = HELLO | {"model": "breaks/worker_died", "stream": True}
    answer = http.post("/v1/messages", json=ask)
    with pytest.raises(streams.Failed) as failure:
        streams.anthropic(answer.content)
    assert failure.value.error["type"] == "overloaded_error"
    last = json.loads(answer.text.rstrip().rpartition("data: ")[2])
    assert last["request_id"] == answer.headers["request-id"]


def test_what_comes_late_is_said_in_the_stream_behind_comments(http: httpx.Client) -> None:
    answer = http.post("/v1/messages", json=HELLO | {"model": "late/queue_full", "stream": True})
    assert answer.text.startswith(": queued 25% behind 3 others\n\n")
    with pytest.raises(streams.Failed) as failure:
        streams.anthropic(answer.content)
    assert failure.value.error["type"] == "overloaded_error"


def test_a_silent_stream_pings(gateway: GatewayProcess, neuron: NeuronThread) -> None:
    ask = HELLO | {"model": "stuck", "stream": True}
    with httpx.stream(
        "POST", f"{gateway.base}/v1/messages", json=ask, trust_env=False, timeout=60.0
    ) as answer:
        lines = iter(answer.iter_lines())
        names = [line for line in (next(lines) for _ in range(6)) if line.startswith("event: ")]
    assert names == ["event: message_start", "event: ping"]


def test_calls_of_the_conversation_go_to_the_model_as_they_were_made(
    http: httpx.Client, neuron: NeuronThread
) -> None:
    call = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1, "b": [None, "é"]}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "3"}
    turns = [{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    ask = HELLO | {"model": "echo", "messages": HELLO["messages"] + turns}
    http.post("/v1/messages", json=ask)
    made = neuron.neuron.served[-1].messages[1].tool_calls[0]
    assert (made.name, json.loads(made.arguments)) == ("add", call["input"])
    for wrong in (None, [], 3):
        call["input"] = wrong
        answer = http.post("/v1/messages", json=ask)
        assert answer.status_code == 400
        assert "messages.1.content.0.input" in answer.json()["error"]["message"]


def test_a_conversation_that_a_server_would_keep_is_refused_so_that_the_sdk_sends_it_whole(
    http: httpx.Client,
) -> None:
    for thread in ({"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}):
        answer = http.post("/v1/messages", json=HELLO | {"model": "echo", "thread": thread})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["message"].startswith("thread: ")
        assert error["details"] == {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
