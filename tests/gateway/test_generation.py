"""The completion APIs under real gunicorn: right answers, right errors, and what happens to who leaves."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.gateway.conftest import PATIENCE, GatewayProcess, NeuronThread, eventually

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
HELLO = [{"role": "user", "content": "one two three"}]


def chat(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": HELLO} | fields


def token_ids(chunks: list[Any]) -> list[int]:
    return [token for chunk in chunks for token in chunk["choices"][0].get("token_ids", ())]


def events(lines: Iterator[str]) -> Iterator[Any]:
    """The data of a stream, parsed where it is JSON."""
    for line in lines:
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield data if data == "[DONE]" else json.loads(data)


# --- answers --------------------------------------------------------------------------------------------


def test_sdk_gets_a_whole_chat_answer(gateway: GatewayProcess) -> None:
    answer = gateway.openai().chat.completions.create(model="echo", messages=HELLO, seed=-1)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "echo"
    assert answer.choices[0].message.content == "one two three"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == 6
    assert answer.usage.prompt_tokens_details.cached_tokens == 1


def test_sdk_streams_chat_with_usage_last(gateway: GatewayProcess) -> None:
    stream = gateway.openai().chat.completions.create(
        model="echo",
        messages=HELLO,
        stream=True,
        max_completion_tokens=2,
        stream_options={"include_usage": True},
    )
    first, *middle, finish, usage = list(stream)
    assert first.choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content for chunk in middle) == "one two"
    assert finish.choices[0].finish_reason == "length"
    assert usage.choices == []
    assert usage.usage.completion_tokens == 2
    assert all(chunk.usage is None for chunk in (first, *middle, finish))
    assert len({chunk.id for chunk in (first, *middle, finish, usage)}) == 1


def test_who_asks_is_told_which_neuron_got_the_request_and_why(http: httpx.Client) -> None:
    for stream in (False, True):
        body = chat("echo", stream=stream)
        answer = http.post(CHAT, json=body, headers={"x-cortex-explain": "1", "session-id": "s"})
        assert answer.headers["x-cortex-placement"].startswith("fake: loaded, ")
        assert "x-cortex-placement" not in http.post(CHAT, json=body).headers
    nowhere = http.post(CHAT, json=chat("made-up"), headers={"x-cortex-explain": "1"})
    assert (nowhere.status_code, nowhere.headers.get("x-cortex-placement")) == (404, None)


def test_stream_without_usage_asked_for_has_none_and_ends_with_done(http: httpx.Client) -> None:
    answer = http.post(CHAT, json=chat("echo", stream=True))
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(answer.iter_lines())
    assert done == "[DONE]"
    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)


def test_reasoning_text_and_tool_calls_come_in_chunks_of_their_own(gateway: GatewayProcess) -> None:
    tools: Any = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    ask = {"model": "tools", "messages": HELLO, "tools": tools}
    whole = gateway.openai().chat.completions.create(**ask).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert (whole.message.content, whole.message.reasoning, whole.message.reasoning_content) == (
        "so ",
        "hm",
        "hm",
    )
    assert (whole.message.tool_calls[0].id, whole.message.tool_calls[0].function.arguments) == (
        "call_1",
        '{"a":1}',
    )
    deltas = [
        chunk.choices[0].delta.model_dump(exclude_none=True)
        for chunk in gateway.openai().chat.completions.create(**ask, stream=True)
    ]
    name = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": ""}}
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hm", "reasoning": "hm"},
        {"content": "so "},
        {"tool_calls": [{"index": 0} | name]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":1}'}}]},
        {},
    ]


def test_sdk_gets_text_completions_of_text_and_of_token_ids(gateway: GatewayProcess) -> None:
    sdk = gateway.openai().completions
    assert sdk.create(model="echo", prompt="a b").choices[0].text == "a b"
    assert sdk.create(model="echo", prompt=["a b"]).choices[0].text == "a b"
    assert sdk.create(model="echo", prompt=[5, 6]).choices[0].text == " 5  6"
    chunks = list(
        sdk.create(model="echo", prompt=[[5, 6]], stream=True, stream_options={"include_usage": True})
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == " 5  6"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.prompt_tokens == 2


def test_sdk_gets_choices_of_several_prompts_with_one_usage(gateway: GatewayProcess) -> None:
    ask = {"model": "echo", "prompt": ["a b", "c d e"], "max_tokens": 2}
    whole = gateway.openai().completions.create(**ask)
    assert [(choice.index, choice.text) for choice in whole.choices] == [(0, "a b"), (1, "c d")]
    assert [choice.finish_reason for choice in whole.choices] == ["stop", "length"]
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (5, 4)
    texts = ["", ""]
    *chunks, last = gateway.openai().completions.create(
        **ask, stream=True, stream_options={"include_usage": True}
    )
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["a b", "c d"]
    assert last.usage == whole.usage


def test_token_ids_come_back_when_asked_for(http: httpx.Client) -> None:
    body = http.post(CHAT, json=chat("echo", return_token_ids=True)).json()
    assert (body["prompt_token_ids"], body["choices"][0]["token_ids"]) == ([0, 1, 2], [0, 1, 2])
    first, *chunks, _ = events(
        http.post(CHAT, json=chat("echo", return_token_ids=True, stream=True)).iter_lines()
    )
    assert first["prompt_token_ids"] == [0, 1, 2]
    assert token_ids(chunks) == [0, 1, 2]
    ask = {"model": "echo", "prompt": [7, 8], "return_token_ids": True}
    choice = http.post("/v1/completions", json=ask).json()["choices"][0]
    assert (choice["prompt_token_ids"], choice["token_ids"]) == ([7, 8], [0, 1])
    first, *chunks, _ = events(http.post("/v1/completions", json=ask | {"stream": True}).iter_lines())
    assert first["choices"][0]["prompt_token_ids"] == [7, 8]
    assert token_ids(chunks) == [0, 1]


def test_many_requests_at_once_each_get_their_own_answer(gateway: GatewayProcess) -> None:
    async def ask(client: httpx.AsyncClient, word: str) -> str:
        fields = chat("slow", messages=[{"role": "user", "content": f"{word} {word}"}], stream=True)
        lines = iter((await client.post(CHAT, json=fields)).text.splitlines())
        return "".join(c["choices"][0]["delta"].get("content", "") for c in events(lines) if c != "[DONE]")

    async def ask_all() -> list[str]:
        async with httpx.AsyncClient(base_url=gateway.base, trust_env=False, timeout=PATIENCE) as client:
            return await asyncio.gather(*(ask(client, str(i)) for i in range(50)))

    assert asyncio.run(ask_all()) == [f"{i} {i}" for i in range(50)]


# --- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("model", "kind", "status", "code"),
    [
        ("nothing", openai.NotFoundError, 404, "model_not_found"),
        ("fails/context_length_exceeded", openai.BadRequestError, 400, "context_length_exceeded"),
        ("fails/queue_full", openai.InternalServerError, 503, "queue_full"),
        ("fails/worker_died", openai.InternalServerError, 503, "worker_died"),
        ("fails/model_load_failed", openai.InternalServerError, 500, "model_load_failed"),
    ],
)
def test_sdk_raises_its_typed_errors(
    gateway: GatewayProcess,
    model: str,
    kind: type[openai.APIStatusError],
    status: int,
    code: str,
    stream: bool,
) -> None:
    with pytest.raises(kind) as caught:
        gateway.openai().chat.completions.create(model=model, messages=HELLO, stream=stream)
    error = caught.value
    assert (error.status_code, error.code) == (status, code)
    assert error.type == ("server_error" if status >= 500 else "invalid_request_error")
    assert error.request_id


def test_busy_says_when_to_try_again_and_broken_says_not_to(http: httpx.Client) -> None:
    busy = http.post(CHAT, json=chat("fails/queue_full"))
    assert int(busy.headers["retry-after"]) >= 1
    assert busy.json()["error"]["details"] == {"limit": 7}
    broken = http.post(CHAT, json=chat("fails/model_load_failed"))
    assert broken.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("model", ["breaks/worker_died", "late/queue_full"])
def test_stream_that_breaks_says_so_and_is_not_done(http: httpx.Client, model: str) -> None:
    answer = http.post(CHAT, json=chat(model, stream=True))
    assert answer.status_code == 200
    last = list(events(answer.iter_lines()))[-1]
    assert last["error"]["code"] == model.partition("/")[2]


def test_sdk_raises_what_breaks_a_stream(gateway: GatewayProcess, neuron: NeuronThread) -> None:
    stream = gateway.openai().chat.completions.create(model="breaks/worker_died", messages=HELLO, stream=True)
    neuron.let_fail()
    with pytest.raises(openai.APIError, match="it breaks"):
        list(stream)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"", None),
        (b"[]", None),
        (b"\xff\xfe\x00", None),
        (b'{"model":"echo"}', "messages"),
        (b'{"messages":[{"role":"user","content":"x"}]}', "model"),
        (b'{"model":"echo","messages":[]}', "messages"),
        (b'{"model":"echo","messages":[{"role":"user","content":5}]}', "messages[0].content"),
        (b'{"model":"echo","messages":[{"role":"user","content":"x"}],"temperature":2.1}', "temperature"),
        (b'{"model":"echo","messages":[{"role":"user","content":"x"}],"max_tokens":"7"}', "max_tokens"),
        (b'{"model":"echo","messages":[{"role":"user","content":"x"}],"n":0}', "n"),
    ],
)
def test_bad_input_is_a_400_that_names_the_field(http: httpx.Client, body: bytes, param: str | None) -> None:
    answer = http.post(CHAT, content=body, headers=JSON)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"]
    assert error["code"] in ("bad_request", "not_supported")


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_body_over_the_limit_is_a_413(http: httpx.Client, framing: str) -> None:
    content: Any = b" " * 300_000 if framing == "length" else iter([b" " * 50_000] * 6)
    answer = http.post(CHAT, content=content, headers=JSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert http.get("/ready").status_code == 200


def test_unknown_routes_and_wrong_methods_get_the_envelope(http: httpx.Client) -> None:
    missing, wrong = http.get("/v2/nothing"), http.get(CHAT)
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "route_not_found")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"]


def test_every_answer_has_a_request_id_and_keeps_the_clients(http: httpx.Client) -> None:
    for answer in (http.get("/health"), http.get("/nothing"), http.post(CHAT, content=b"{", headers=JSON)):
        assert len(answer.headers["x-request-id"]) == 24
    own = http.post(CHAT, json=chat("echo"), headers={"x-request-id": "mine-1"})
    assert own.headers["x-request-id"] == "mine-1"
    assert own.json()["id"] == "chatcmpl-mine-1"


# --- silence and absence --------------------------------------------------------------------------------


def test_silent_stream_gets_headers_at_once_and_comments_while_it_waits(
    http: httpx.Client, neuron: NeuronThread
) -> None:
    with http.stream("POST", CHAT, json=chat("queued", stream=True)) as answer:
        assert answer.status_code == 200
        comments = []
        for line in answer.iter_lines():
            comments += [line] if line else []
            if len(comments) == 3:
                break
    assert comments == [": queued 25% behind 3 others", ": keep-alive", ": keep-alive"]
    eventually(lambda: not neuron.working("queued"), "the request of a client that left is cancelled")


@pytest.mark.parametrize(
    ("model", "stream", "half"),
    [("stuck", False, False), ("stuck", True, False), ("queued", False, False), ("queued", True, True)],
)
def test_client_that_leaves_or_sends_no_more_cancels_its_request(
    gateway: GatewayProcess, neuron: NeuronThread, model: str, stream: bool, half: bool
) -> None:
    cancelled = neuron.neuron.cancelled
    series = f'cortex_cancelled_total{{model="{model}",neuron="fake"}}'
    counted = gateway.metrics().get(series, 0)
    body = json.dumps(chat(model, stream=stream)).encode()
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        client.sendall(
            b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            % (CHAT.encode(), len(body))
        )
        client.sendall(body)
        eventually(lambda: neuron.working(model), "the neuron has the request")
        assert gateway.metrics()[f'cortex_requests_in_flight{{model="{model}"}}'] == 1
        if half:
            client.shutdown(socket.SHUT_WR)
            eventually(lambda: not neuron.working(model), "one that sends no more has left")
    eventually(lambda: neuron.neuron.cancelled == cancelled + 1, "the request is cancelled in the neuron")
    eventually(lambda: gateway.metrics()[series] == counted + 1, "it is counted")
    assert gateway.metrics()[f'cortex_requests_in_flight{{model="{model}"}}'] == 0


def test_neurons_are_told_who_asks_and_no_key(
    gateway: GatewayProcess, neuron: NeuronThread, http: httpx.Client
) -> None:
    def account(**headers: str) -> str:
        assert http.post(CHAT, json=chat("echo"), headers=headers).status_code == 200
        return neuron.neuron.served[-1].account

    first, second = account(Authorization="Bearer one"), account(Authorization="Bearer two")
    assert first == account(Authorization="Bearer one") != second
    assert account() not in ("", first, second)
    assert "one" not in first
