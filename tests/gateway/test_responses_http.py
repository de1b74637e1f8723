"""`/v1/responses` over HTTP, in front of a neuron that answers as the model's name says."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from gateway.dialects.openai.responses.truncate import fewest
from ipc.messages.conversation import Message
from tests.gateway.conftest import GatewayProcess, NeuronThread
from tests.streams import Failed, responses
from tests.streams.responses_events import check_response

TOOLS = [
    {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}, "strict": False},
    {"type": "web_search"},
]


def ask(http: httpx.Client, model: str = "echo", **fields: Any) -> httpx.Response:
    body = {"model": model, "input": "one two", "store": False} | fields
    return http.post("/v1/responses", json=body)


def stream(http: httpx.Client, model: str = "echo", **fields: Any) -> dict[str, Any]:
    reply = ask(http, model, stream=True, **fields)
    assert reply.headers["content-type"].startswith("text/event-stream"), reply.text
    return responses(reply.content)


def without_ids(response: dict[str, Any]) -> dict[str, Any]:
    """What two answers to the same question have in common."""
    items = [{key: item[key] for key in item if key != "id"} for item in response["output"]]
    return response | {"id": "", "created_at": 0, "completed_at": 0, "output": items}


@pytest.mark.parametrize("model", ["echo", "tools"])
def test_answer_is_the_same_whole_and_in_pieces(http: httpx.Client, model: str) -> None:
    whole = ask(http, model, tools=TOOLS).json()
    check_response(whole)
    assert whole["status"] == "completed"
    in_pieces = stream(http, model, tools=TOOLS)
    assert without_ids(whole) == without_ids(in_pieces)


def test_items_of_an_answer_are_thought_text_and_call(http: httpx.Client) -> None:
    thought, text, call = stream(http, "tools", tools=TOOLS, include=["reasoning.encrypted_content"])[
        "output"
    ]
    assert thought["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert thought["encrypted_content"]
    assert text["content"][0]["text"] == "so "
    assert (call["type"], call["name"], call["arguments"]) == ("function_call", "add", '{"a":1}')
    assert call["call_id"] == "call_1"


def test_answer_that_its_limit_cuts_is_incomplete(http: httpx.Client) -> None:
    for response in (ask(http, max_output_tokens=1).json(), stream(http, max_output_tokens=1)):
        check_response(response)
        assert response["status"] == "incomplete"
        assert response["output"][0]["status"] == "incomplete"
        assert response["output"][0]["content"][0]["text"] == "one"


def test_a_neuron_that_is_busy_is_a_503_that_says_when(http: httpx.Client) -> None:
    for fields in ({}, {"stream": True}):
        reply = ask(http, "fails/queue_full", **fields)
        assert reply.status_code == 503
        assert int(reply.headers["retry-after"]) >= 1
        assert reply.json()["error"]["code"] == "queue_full"


def test_prompt_that_is_too_long_fails_in_the_stream(http: httpx.Client) -> None:
    with pytest.raises(Failed) as caught:
        stream(http, "fails/context_length_exceeded")
    assert caught.value.error["code"] == "context_length_exceeded"
    whole = ask(http, "fails/context_length_exceeded")
    assert (whole.status_code, whole.json()["error"]["param"]) == (400, "input")


@pytest.mark.parametrize("model", ["breaks/worker_died", "late/queue_full"])
def test_stream_that_breaks_has_failed(http: httpx.Client, model: str) -> None:
    with pytest.raises(Failed) as caught:
        stream(http, model, input="one two three four")
    assert caught.value.error["code"] == "server_error"


def test_silence_is_told_by_comments(http: httpx.Client) -> None:
    text = ask(http, "late/queue_full", stream=True).text
    assert text.startswith("event: response.created\n")
    assert ": queued 25% behind 3 others\n\n" in text


def test_unknown_model_is_a_404(http: httpx.Client) -> None:
    for fields in ({}, {"stream": True}):
        reply = ask(http, "none", **fields)
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")


def test_openai_sdk_reads_it(gateway: GatewayProcess) -> None:
    client = gateway.openai()
    whole = client.responses.create(model="echo", input="one two", store=False)
    assert (whole.output_text, whole.status) == ("one two", "completed")
    with client.responses.stream(model="tools", input="one two", store=False) as events:
        kinds = [event.type for event in events]
        final = events.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
    assert json.loads(final.output[2].arguments) == {"a": 1}


def test_truncation_drops_as_few_turns_as_fit(http: httpx.Client, neuron: NeuronThread) -> None:
    """The model's context is 4096 tokens, a word each; 100 are left for the answer."""
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    items = [
        {"role": "user", "content": "a " * 1000},
        call,
        {"type": "function_call_output", "call_id": "c1", "output": "b " * 1000},
        {"role": "assistant", "content": "c " * 1500},
        {"role": "developer", "content": "d"},
        {"role": "user", "content": "e " * 1495},
        {"role": "user", "content": "f"},
    ]
    fields = {"input": items, "instructions": "g", "max_output_tokens": 100}
    for more in ({"truncation": "auto"}, {"truncation": "auto", "stream": True}):
        reply = ask(http, **fields, **more)
        assert reply.status_code == 200, reply.text
        kept = [message.content[:1] for message in neuron.neuron.served[-1].messages]
        assert kept == ["g", "c", "d", "e", "f"]  # 2998 words; with the call's turn 3998
        asked, counted = neuron.neuron.served[-1], neuron.neuron.counted[-1]
        assert asked.account
        assert (counted.account, counted.trace) == (asked.account, asked.trace)
    ask(http, **fields)
    assert len(neuron.neuron.served[-1].messages) == 8
    ask(http, input="h " * 5000, truncation="auto")
    assert len(neuron.neuron.served[-1].messages) == 1


def test_input_tokens_are_counted(http: httpx.Client) -> None:
    body = {"model": "echo", "input": "one two three", "instructions": "be brief", "tools": TOOLS}
    reply = http.post("/v1/responses/input_tokens", json=body)
    assert reply.json() == {"object": "response.input_tokens", "input_tokens": 6}
    reply = http.post("/v1/responses/input_tokens", json=body | {"input": []})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "input")
    reply = http.post("/v1/responses/input_tokens", json=body | {"prompt": {"id": "pmpt_1"}})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "prompt")


def test_truncation_counts_seldom() -> None:
    messages = [Message(role="user", content="word " * (5 + i % 7)) for i in range(2000)]
    counts: list[int] = []

    async def tokens(dropped: int) -> float:
        counts.append(dropped)
        return sum(len(message.content.split()) + 4 for message in messages[dropped:])

    for limit in (20, 1000, 9000, 17000, 30000):
        counts.clear()
        dropped = asyncio.run(fewest(messages, tokens, limit))
        assert asyncio.run(tokens(dropped)) <= limit
        assert not dropped or asyncio.run(tokens(dropped - 1)) > limit
        assert len(counts) <= 2 + 3 + 6  # the two above are among them
