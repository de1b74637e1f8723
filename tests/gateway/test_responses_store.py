"""Responses that are kept, over HTTP, by two gunicorn processes with one file."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.gateway.conftest import PATIENCE, GatewayProcess, NeuronThread, eventually
from tests.gateway.kept_responses import all_ids, api, create, error_of, fetch
from tests.streams import responses


@pytest.fixture
def http(pair: GatewayProcess) -> Iterator[httpx.Client]:
    with api(pair) as client:
        yield client


def test_response_is_there_for_every_process_as_it_was_told(http: httpx.Client) -> None:
    response = create(http, metadata={"a": "b"})
    assert response["store"] is True
    for _ in range(6):
        assert fetch(http, response["id"]) == response
    streamed = http.post("/v1/responses", json={"model": "tools", "input": "x", "stream": True})
    response = responses(streamed.content)
    assert fetch(http, response["id"]) == response


def test_what_is_not_to_be_kept_is_not(http: httpx.Client) -> None:
    response = create(http, store=False)
    assert response["store"] is False
    error = error_of(http.get(f"/v1/responses/{response['id']}"), 404)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_leaves_ends_its_response_and_leaves_nothing(
    pair: GatewayProcess, http: httpx.Client, neuron: NeuronThread, stream: bool
) -> None:
    before = all_ids(pair)
    body = {"model": "stuck", "input": "x", "stream": stream}
    if stream:
        with http.stream("POST", "/v1/responses", json=body) as reply:
            lines = reply.iter_lines()  # httpx closes the connection with it
            assert next(lines) == "event: response.created"
            eventually(lambda: neuron.working("stuck"), "the neuron works on it")
    else:
        # httpx gives up on reading, and closes the connection; nothing is asserted of when.
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/responses", json=body, timeout=httpx.Timeout(PATIENCE, read=1))
    eventually(lambda: not neuron.working("stuck"), "the neuron is told")
    assert all_ids(pair) == before


@pytest.mark.parametrize("path", ["", "/input_items"])
def test_somebody_elses_response_is_as_one_that_never_was(
    pair: GatewayProcess, http: httpx.Client, path: str
) -> None:
    mine = create(http)["id"]
    unknown = "resp_" + "0" * len(mine[5:])
    with api(pair, "other") as other:
        for method in ("GET", "DELETE") if not path else ("GET",):
            replies = [other.request(method, f"/v1/responses/{each}{path}") for each in (mine, unknown)]
            assert [reply.status_code for reply in replies] == [404, 404]
            assert replies[0].text.replace(mine, "") == replies[1].text.replace(unknown, "")
        cancels = [other.post(f"/v1/responses/{each}/cancel") for each in (mine, unknown)]
        assert cancels[0].text.replace(mine, "") == cancels[1].text.replace(unknown, "")
    assert fetch(http, mine)["id"] == mine


def test_input_items_come_in_pages(http: httpx.Client) -> None:
    items = [{"role": "user", "content": f"{i}"} for i in range(5)]
    path = f"/v1/responses/{create(http, items)['id']}/input_items"

    def texts(**params: Any) -> list[str]:
        return [item["content"][0]["text"] for item in http.get(path, params=params).json()["data"]]

    assert texts() == ["4", "3", "2", "1", "0"]
    assert texts(order="asc", limit=2) == ["0", "1"]
    page = http.get(path, params={"order": "asc", "limit": 2}).json()
    assert page["has_more"] is True
    assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][1]["id"])
    assert texts(order="asc", after=page["last_id"]) == ["2", "3", "4"]
    assert http.get(path, params={"after": page["first_id"]}).json() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    for params in ({"limit": "0"}, {"limit": "x"}, {"limit": "101"}, {"order": "up"}, {"after": "msg_0"}):
        assert error_of(http.get(path, params=params), 400)["param"] == next(iter(params))


# --- what is wrong --------------------------------------------------------------------------------------

TOOL = {"type": "function", "name": "f"}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model": 5}, "model"),
    ({"model": ""}, "model"),
    ({"input": 5}, "input"),
    ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input[0].call_id"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://x/y.png"}]}]},
        "input[0].content[0].image_url",
    ),
    (
        {
            "input": [
                {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,="}]}
            ]
        },
        "input[0].content[0].image_url",
    ),
    ({"input": [{"role": "user", "content": "x", "new": 1 << 70}]}, "input[0]"),
    ({"tools": [{"type": "new", "size": 1 << 70}]}, "tools[0]"),
    ({"instructions": ["x"]}, "instructions"),
    ({"previous_response_id": "resp_gone"}, "previous_response_id"),
    ({"previous_response_id": 5}, "previous_response_id"),
    ({"conversation": "conv_gone"}, "conversation"),
    ({"conversation": {}}, "conversation.id"),
    ({"tools": {}}, "tools"),
    ({"tools": [TOOL, TOOL]}, "tools[1].name"),
    ({"tools": [TOOL | {"parameters": "x"}]}, "tools[0].parameters"),
    ({"tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name"),
    ({"tool_choice": 5}, "tool_choice"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ({"max_tool_calls": 0}, "max_tool_calls"),
    ({"max_output_tokens": -1}, "max_output_tokens"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 2}, "top_p"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"top_logprobs": -1}, "top_logprobs"),
    ({"include": [5]}, "include[0]"),
    ({"reasoning": {"effort": 5}}, "reasoning.effort"),
    ({"reasoning": "low"}, "reasoning"),
    ({"text": {"verbosity": "loud"}}, "text.verbosity"),
    ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
    ({"text": {"format": {"type": "json_schema", "name": "n", "schema": []}}}, "text.format.schema"),
    ({"truncation": True}, "truncation"),
    ({"store": "yes"}, "store"),
    ({"background": 1}, "background"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": []}, "stream_options"),
    ({"metadata": {"k": "v" * 513}}, "metadata[...]"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
    ({"prompt_cache_key": 5}, "prompt_cache_key"),
    ({"safety_identifier": []}, "safety_identifier"),
    ({"user": {}}, "user"),
    ({"service_tier": 5}, "service_tier"),
    ({"priority": 1 << 70}, "priority"),
    ({"prompt": {"id": "p"}}, "prompt"),
]


@pytest.mark.parametrize(("wrong", "param"), WRONG, ids=[param for _, param in WRONG])
def test_what_is_wrong_is_named_and_leaves_nothing(
    pair: GatewayProcess, http: httpx.Client, neuron: NeuronThread, wrong: dict[str, Any], param: str
) -> None:
    before, served = all_ids(pair), len(neuron.neuron.served)
    for mode in ({}, {"stream": True}, {"background": True}):
        body = {"model": "echo", "input": "x"} | mode | wrong
        error = error_of(http.post("/v1/responses", json=body), 400)
        assert error["param"] == param
        assert error["type"] == "invalid_request_error"
        assert error["message"].startswith(param)
    assert all_ids(pair) == before
    assert len(neuron.neuron.served) == served


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"model": "echo", "input": "\xff"}',
        b'{"model": "echo", "input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model": "echo", "input": "\\ud800"}',
        b'{"model": "echo", "input": [{"role": "user", "content": "x", "y": '
        + b"[" * 900
        + b"]" * 900
        + b"}]}",
    ],
    ids=["nothing", "a beginning", "a list", "no UTF-8", "deep", "half a pair", "deep inside"],
)
def test_body_that_is_no_request_is_refused(http: httpx.Client, body: bytes) -> None:
    for path in ("/v1/responses", "/v1/responses/compact", "/v1/responses/input_tokens", "/v1/conversations"):
        reply = http.post(path, content=body, headers={"content-type": "application/json"})
        assert reply.status_code < 500, reply.text
        if reply.status_code != 200:
            assert reply.json()["error"]["type"] == "invalid_request_error"


def test_many_at_once_are_all_kept(pair: GatewayProcess) -> None:
    with ThreadPoolExecutor(16) as threads, api(pair) as http:
        made = list(threads.map(lambda i: create(http, f"{i}"), range(64)))
        assert [fetch(http, each["id"]) for each in made] == made


# --- when it cannot be used -----------------------------------------------------------------------------


def test_store_that_cannot_be_used_is_told_and_needed_by_nobody_else(
    neuron: NeuronThread, tmp_path: Path
) -> None:
    store = {"path": str(tmp_path / "responses.db")}
    Path(store["path"]).write_text("this is no database, and never was one " * 100)
    gateway = GatewayProcess(tmp_path, neuron.endpoint, store=store).wait_ready()
    try:
        with api(gateway) as http:
            for more in ({}, {"stream": True}, {"background": True}):
                reply = http.post("/v1/responses", json={"model": "echo", "input": "x"} | more)
                error = error_of(reply, 503)
                assert error["code"] == "store_unavailable"
                assert store["path"] in error["message"]
                assert reply.headers["x-should-retry"] == "false"
            assert create(http, store=False)["status"] == "completed"
            error_of(http.post("/v1/conversations", json={}), 503)
    finally:
        gateway.stop()


def test_gateway_that_keeps_nothing_says_so(neuron: NeuronThread, tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path, neuron.endpoint, store={"enabled": False}).wait_ready()
    try:
        with api(gateway) as http:
            response = create(http)
            assert (response["store"], response["status"]) == (False, "completed")
            error_of(http.get(f"/v1/responses/{response['id']}"), 404)
            error_of(http.delete(f"/v1/responses/{response['id']}"), 404)
            for fields, param in (
                ({"store": True}, "store"),
                ({"background": True}, "background"),
                ({"previous_response_id": response["id"]}, "previous_response_id"),
                ({"conversation": "conv_1"}, "conversation"),
            ):
                body = {"model": "echo", "input": "x"} | fields
                assert error_of(http.post("/v1/responses", json=body), 400)["param"] == param
            error_of(http.post("/v1/conversations", json={}), 400)
        assert not (tmp_path / "responses.db").exists()
    finally:
        gateway.stop()


# --- as OpenAI's own client has it ----------------------------------------------------------------------


def test_openai_sdk_finds_what_is_kept(pair: GatewayProcess) -> None:
    client = pair.openai()
    first = client.responses.create(model="echo", input="one two")
    again = client.responses.retrieve(first.id)
    assert again == first
    second = client.responses.create(model="echo", input="three", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    (item,) = client.responses.input_items.list(second.id)
    assert item.content[0].text == "three"
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    assert client.responses.input_tokens.count(model="echo", input="one two").input_tokens == 2
    compacted = client.responses.compact(model="echo", input="one two")
    assert [item.type for item in compacted.output] == ["message", "compaction"]
