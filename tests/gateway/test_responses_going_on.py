"""Kept responses that go on: one after another, in conversations, and in the background."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from gateway.dialects.openai.responses.context import MANY
from tests.gateway.conftest import GatewayProcess, NeuronThread, eventually
from tests.gateway.kept_responses import all_ids, api, create, error_of, fetch
from tests.streams import Failed, responses
from tests.streams.responses_events import check_response
from tests.streams.sse import read

ENDED = ("completed", "incomplete", "failed", "cancelled")


@pytest.fixture
def http(pair: GatewayProcess) -> Iterator[httpx.Client]:
    with api(pair) as client:
        yield client


def ended(http: httpx.Client, response_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        response = fetch(http, response_id)
        return response if response["status"] in ENDED else None

    return eventually(look, f"the end of {response_id}")


def test_chain_gives_the_model_the_whole_conversation(http: httpx.Client, neuron: NeuronThread) -> None:
    first = create(http, "a", instructions="be brief")
    second = create(http, "b", previous_response_id=first["id"])
    third = create(
        http, [{"role": "user", "content": "c"}], previous_response_id=second["id"], instructions="be long"
    )
    assert third["previous_response_id"] == second["id"]
    asked = neuron.neuron.served[-1].messages
    said = [(message.role, message.content) for message in asked]
    turns = [("user", "a"), ("assistant", "a"), ("user", "b"), ("assistant", "b"), ("user", "c")]
    assert said == [("system", "be long"), *turns]


def test_answer_of_a_tool_finds_its_call_in_the_chain(http: httpx.Client, neuron: NeuronThread) -> None:
    tools = [{"type": "function", "name": "add", "parameters": {"type": "object"}}]
    first = create(http, "x", "tools", tools=tools)
    output = {"type": "function_call_output", "call_id": "call_1", "output": "3"}
    create(http, [output], previous_response_id=first["id"], tools=tools)
    _, assistant, result = neuron.neuron.served[-1].messages
    assert (assistant.reasoning, assistant.content, assistant.tool_calls[0].id) == ("hm", "so ", "call_1")
    assert (result.role, result.tool_call_id, result.content) == ("tool", "call_1", "3")


def test_what_is_gone_or_somebody_elses_cannot_be_continued(pair: GatewayProcess, http: httpx.Client) -> None:
    first = create(http)
    second = create(http, previous_response_id=first["id"])
    with api(pair, "other") as other:
        body = {"model": "echo", "input": "x", "previous_response_id": first["id"]}
        theirs = error_of(other.post("/v1/responses", json=body), 400)
        body["previous_response_id"] = "resp_" + "0" * len(first["id"][5:])
        nobodys = error_of(other.post("/v1/responses", json=body), 400)
    assert theirs["param"] == nobodys["param"] == "previous_response_id"
    assert theirs["message"].replace(first["id"], "") == nobodys["message"].replace(
        body["previous_response_id"], ""
    )
    assert http.delete(f"/v1/responses/{first['id']}").json() == {
        "id": first["id"],
        "object": "response",
        "deleted": True,
    }
    before = all_ids(pair)
    body = {"model": "echo", "input": "x", "previous_response_id": second["id"]}
    error = error_of(http.post("/v1/responses", json=body), 400)
    assert first["id"] in error["message"]
    assert all_ids(pair) == before


def test_item_may_be_referred_to(http: httpx.Client, neuron: NeuronThread) -> None:
    said = create(http, "remember me")["output"][0]
    create(http, [{"type": "item_reference", "id": said["id"]}, {"role": "user", "content": "what?"}])
    assert [message.content for message in neuron.neuron.served[-1].messages] == ["remember me", "what?"]
    body = {"model": "echo", "input": [{"type": "item_reference", "id": "msg_0"}]}
    assert error_of(http.post("/v1/responses", json=body), 400)["param"] == "input[0].id"


# --- in the background ----------------------------------------------------------------------------------


def test_background_goes_on_without_its_client(http: httpx.Client) -> None:
    response = create(http, "one two three", "slow", background=True)
    check_response(response)
    assert (response["status"], response["background"]) == ("queued", True)
    response = ended(http, response["id"])
    check_response(response)
    assert (response["status"], response["output"][0]["content"][0]["text"]) == ("completed", "one two three")


def test_background_stream_is_read_again_from_any_event_by_any_process(http: httpx.Client) -> None:
    body = {"model": "slow", "input": "one two three four", "background": True, "stream": True}
    first = http.post("/v1/responses", json=body)
    response = responses(first.content)
    assert response["status"] == "completed"
    path = f"/v1/responses/{response['id']}"
    for _ in range(4):
        again = http.get(path, params={"stream": "true"})
        assert read(again.content) == read(first.content)
        rest = http.get(path, params={"stream": "true", "starting_after": 5})
        assert read(rest.content) == read(first.content)[6:]
    assert http.get(path, params={"stream": "true", "starting_after": 10_000}).content == b""
    for params in ({"starting_after": "-1"}, {"starting_after": "x"}):
        assert error_of(http.get(path, params={"stream": "true"} | params), 400)["param"] == "starting_after"
    plain = create(http)["id"]
    assert error_of(http.get(f"/v1/responses/{plain}?stream=true"), 400)["param"] == "stream"


def test_background_is_cancelled_from_any_process(http: httpx.Client, neuron: NeuronThread) -> None:
    for _ in range(4):  # whichever process takes it
        response = create(http, "x", "stuck", background=True)
        eventually(lambda: neuron.working("stuck"), "the neuron works on it")
        cancelled = http.post(f"/v1/responses/{response['id']}/cancel").json()
        assert cancelled["status"] == "cancelled"
        assert fetch(http, response["id"]) == cancelled
        assert http.post(f"/v1/responses/{response['id']}/cancel").json() == cancelled
        eventually(lambda: not neuron.working("stuck"), "the neuron is told")
        assert fetch(http, response["id"]) == cancelled


def test_background_stream_may_be_read_as_soon_as_it_is_made(http: httpx.Client) -> None:
    body = {"model": "stuck", "input": "x", "background": True, "stream": True}
    for _ in range(5):
        with http.stream("POST", "/v1/responses", json=body) as reply:
            lines = reply.iter_lines()
            next(lines)
            response_id = json.loads(next(lines).removeprefix("data: "))["response"]["id"]
        path = f"/v1/responses/{response_id}"
        with http.stream("GET", path, params={"stream": "true"}) as reply:
            assert reply.status_code == 200
            http.post(f"{path}/cancel")
            names = [line for line in reply.iter_lines() if line.startswith("event: ")]
        assert names[:2] == ["event: response.created", "event: response.queued"]
        assert names[-1] == "event: response.cancelled"


def test_cancelled_stream_says_so(http: httpx.Client, neuron: NeuronThread) -> None:
    response = create(http, "x", "stuck", background=True)
    path = f"/v1/responses/{response['id']}"
    assert error_of(http.get(path, params={"stream": "true"}), 400)["param"] == "stream"
    http.post(f"{path}/cancel")
    body = {"model": "stuck", "input": "x", "background": True, "stream": True}
    with http.stream("POST", "/v1/responses", json=body) as reply:
        lines = reply.iter_lines()
        assert next(lines) == "event: response.created"
        response_id = json.loads(next(lines).removeprefix("data: "))["response"]["id"]
        assert http.post(f"/v1/responses/{response_id}/cancel").json()["status"] == "cancelled"
        names = [line for line in lines if line.startswith("event: ")]
    assert names[-1] == "event: response.cancelled"


def test_deleted_background_is_worked_on_no_longer(http: httpx.Client, neuron: NeuronThread) -> None:
    response = create(http, "x", "stuck", background=True)
    eventually(lambda: neuron.working("stuck"), "the neuron works on it")
    assert http.delete(f"/v1/responses/{response['id']}").json()["deleted"] is True
    eventually(lambda: not neuron.working("stuck"), "the neuron is told")
    assert http.get(f"/v1/responses/{response['id']}").status_code == 404


def test_only_background_is_cancelled(http: httpx.Client) -> None:
    error_of(http.post(f"/v1/responses/{create(http)['id']}/cancel"), 400)
    body = {"model": "echo", "input": "x", "background": True, "store": False}
    assert error_of(http.post("/v1/responses", json=body), 400)["param"] == "background"


def test_background_that_fails_says_why(http: httpx.Client) -> None:
    response = ended(http, create(http, model="fails/worker_died", background=True)["id"])
    check_response(response)
    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")


def test_response_that_goes_on_cannot_be_continued(http: httpx.Client) -> None:
    response = create(http, "x", "stuck", background=True)
    body = {"model": "echo", "input": "x", "previous_response_id": response["id"]}
    assert error_of(http.post("/v1/responses", json=body), 400)["param"] == "previous_response_id"
    http.post(f"/v1/responses/{response['id']}/cancel")
    assert error_of(http.post("/v1/responses", json=body), 400)["param"] == "previous_response_id"


def test_background_of_a_process_that_dies_has_failed(neuron: NeuronThread, tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path, neuron.endpoint).wait_ready()
    try:
        with api(gateway) as http:
            response = create(http, "x", "stuck", background=True)
            body = {"model": "stuck", "input": "x", "background": True, "stream": True}
            with http.stream("POST", "/v1/responses", json=body) as reply:
                lines = reply.iter_lines()
                next(lines)
                streamed = json.loads(next(lines).removeprefix("data: "))["response"]["id"]
                (victim,) = gateway.workers()
                os.kill(victim, signal.SIGKILL)
                with contextlib.suppress(httpx.TransportError):
                    list(lines)
        eventually(lambda: victim not in gateway.workers() and gateway._ready(), "another process")
        with api(gateway) as http:
            response = fetch(http, response["id"])
            check_response(response)
            assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
            with pytest.raises(Failed):
                responses(http.get(f"/v1/responses/{streamed}?stream=true").content)
            assert fetch(http, streamed)["status"] == "failed"
    finally:
        gateway.stop()


# --- conversations --------------------------------------------------------------------------------------


def test_conversation_grows_with_its_responses(http: httpx.Client, neuron: NeuronThread) -> None:
    item = {"type": "message", "role": "user", "content": "before"}
    made = http.post("/v1/conversations", json={"items": [item], "metadata": {"a": "b"}}).json()
    assert (made["object"], made["metadata"]) == ("conversation", {"a": "b"})
    first = create(http, "one", conversation=made["id"])
    assert first["conversation"] == {"id": made["id"]}
    create(http, "two", conversation={"id": made["id"]})
    assert [message.content for message in neuron.neuron.served[-1].messages] == [
        "before",
        "one",
        "one",
        "two",
    ]
    path = f"/v1/conversations/{made['id']}"
    listed = http.get(f"{path}/items", params={"order": "asc"}).json()["data"]
    assert [each["content"][0]["text"] for each in listed] == ["before", "one", "one", "two", "two"]
    assert listed[2] == first["output"][0]
    assert http.get(f"{path}/items/{listed[1]['id']}").json() == listed[1]
    assert http.delete(f"{path}/items/{listed[1]['id']}").json() == made
    assert http.get(f"{path}/items/{listed[1]['id']}").status_code == 404
    more = http.post(f"{path}/items", json={"items": [{"role": "user", "content": "three"}]}).json()
    assert (more["data"][0]["content"][0]["text"], more["first_id"]) == ("three", more["data"][0]["id"])
    assert http.post(path, json={"metadata": {"c": "d"}}).json() == made | {"metadata": {"c": "d"}}
    assert http.get(path).json()["metadata"] == {"c": "d"}
    assert http.delete(path).json() == {"id": made["id"], "object": "conversation.deleted", "deleted": True}
    for reply in (http.get(path), http.get(f"{path}/items"), http.delete(path)):
        assert error_of(reply, 404)["param"] == "conversation_id"
    body = {"model": "echo", "input": "x", "conversation": made["id"]}
    assert error_of(http.post("/v1/responses", json=body), 400)["param"] == "conversation"


def test_conversation_of_somebody_else_is_none(pair: GatewayProcess, http: httpx.Client) -> None:
    made = http.post("/v1/conversations", json={}).json()["id"]
    with api(pair, "other") as other:
        path = f"/v1/conversations/{made}"
        items = {"items": [{"role": "user", "content": "x"}]}
        for reply in (
            other.get(path),
            other.delete(path),
            other.post(path, json={"metadata": {}}),
            other.get(f"{path}/items"),
            other.post(f"{path}/items", json=items),
            other.get(f"{path}/items/msg_1"),
            other.delete(f"{path}/items/msg_1"),
        ):
            error_of(reply, 404)
        body = {"model": "echo", "input": "x", "conversation": made}
        assert error_of(other.post("/v1/responses", json=body), 400)["param"] == "conversation"
    assert http.get(f"/v1/conversations/{made}/items").json()["data"] == []


PICTURE = {"role": "user", "content": [{"type": "input_image", "image_url": "https://x.example/y.png"}]}


def test_what_is_wrong_with_a_conversation_is_named(http: httpx.Client) -> None:
    for body, param in (
        ({"items": [{"role": "tool", "content": "x"}]}, "items[0].role"),
        ({"items": [{"type": "item_reference", "id": "msg_1"}]}, "items[0].type"),
        ({"items": [PICTURE]}, "items[0].content[0].image_url"),
        ({"items": [{"role": "user", "content": "x"}] * 21}, "items"),
        ({"items": "x"}, "items"),
        ({"metadata": {"a": 5}}, "metadata[...]"),
    ):
        assert error_of(http.post("/v1/conversations", json=body), 400)["param"] == param
    made = http.post("/v1/conversations", json={}).json()["id"]
    body = {"model": "echo", "input": "x", "conversation": made, "previous_response_id": "resp_1"}
    assert error_of(http.post("/v1/responses", json=body), 400)["param"] == "conversation"
    assert error_of(http.post(f"/v1/conversations/{made}", json={}), 400)["param"] == "metadata"
    assert error_of(http.post(f"/v1/conversations/{made}/items", json={"items": []}), 400)["param"] == "items"


def test_compacted_conversation_can_be_continued(http: httpx.Client, neuron: NeuronThread) -> None:
    first = create(http, "a b c")
    body = {"model": "echo", "input": "d", "previous_response_id": first["id"]}
    compacted = http.post("/v1/responses/compact", json=body).json()
    assert compacted["object"] == "response.compaction"
    assert [item["type"] for item in compacted["output"]] == ["message", "message", "compaction"]
    assert compacted["usage"]["total_tokens"] > 0
    create(http, [*compacted["output"], {"role": "user", "content": "e"}])
    contents = [message.content for message in neuron.neuron.served[-1].messages]
    assert contents[:2] == ["a b c", "d"]
    assert contents[2].startswith("Summary of the conversation so far:\n\nSum up")  # the echo's summary
    assert contents[3] == "e"


# --- as OpenAI's own client has it ----------------------------------------------------------------------


def test_openai_sdk_follows_the_background(pair: GatewayProcess) -> None:
    client = pair.openai()
    events = list(client.responses.create(model="slow", input="one two", background=True, stream=True))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    response_id = events[-1].response.id
    rest = list(client.responses.retrieve(response_id, stream=True, starting_after=3))
    assert rest == events[4:]
    stuck = client.responses.create(model="stuck", input="x", background=True)
    assert client.responses.cancel(stuck.id).status == "cancelled"


def test_openai_sdk_holds_conversations(pair: GatewayProcess) -> None:
    client = pair.openai()
    conversation = client.conversations.create(
        items=[{"type": "message", "role": "user", "content": "before"}], metadata={"a": "b"}
    )
    client.responses.create(model="echo", input="one", conversation=conversation.id)
    items = list(client.conversations.items.list(conversation.id, order="asc"))
    assert [item.content[0].text for item in items] == ["before", "one", "one"]
    assert client.conversations.items.retrieve(items[1].id, conversation_id=conversation.id) == items[1]
    assert client.conversations.update(conversation.id, metadata={"c": "d"}).metadata == {"c": "d"}
    client.conversations.items.delete(items[1].id, conversation_id=conversation.id)
    added = client.conversations.items.create(
        conversation.id, items=[{"type": "message", "role": "user", "content": "more"}]
    )
    assert added.data[0].content[0].text == "more"
    assert client.conversations.delete(conversation.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.conversations.retrieve(conversation.id)


def test_a_conversation_of_many_items_is_read_as_one_of_few(http: httpx.Client, neuron: NeuronThread) -> None:
    conversation = http.post("/v1/conversations", json={}).json()["id"]
    said = [f"{number}" for number in range(MANY)]
    for first in range(0, MANY, 20):
        turns = [{"role": "user", "content": text} for text in said[first : first + 20]]
        more = http.post(f"/v1/conversations/{conversation}/items", json={"items": turns})
        assert more.status_code == 200
    create(http, "last", conversation=conversation)
    asked = neuron.neuron.served[-1].messages
    assert [message.content for message in asked] == [*said, "last"]
