"""The strict readers of streams take what is sound, and nothing that differs from it in one place."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests import streams
from tests.streams.responses_events import FIELDS

Events = list[dict[str, Any]]


def named(events: Events) -> bytes:
    """As Anthropic and Responses write them."""
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()


def numbered(events: Events) -> bytes:
    return named([event | {"sequence_number": number} for number, event in enumerate(events)])


def chunks(events: Events, end: str = "data: [DONE]\n\n") -> bytes:
    return ("".join(f"data: {json.dumps(event)}\n\n" for event in events) + end).encode()


def refused(reader: Callable[[bytes], Any], body: bytes) -> bool:
    try:
        reader(body)
    except (AssertionError, KeyError, ValueError, TypeError, AttributeError):
        return True
    return False


def survivors(reader: Callable[[bytes], Any], write: Callable[[Events], bytes], events: Events) -> list[int]:
    """Places where one event may be missing, come twice, or change with the next one, and nobody minds."""
    others = []
    for i in range(len(events)):
        others += [
            (i, events[:i] + events[i + 1 :]),
            (i, [*events[: i + 1], *events[i:]]),
            (i, [*events[:i], *events[i + 1 : i + 2], events[i], *events[i + 2 :]]),
        ]
    return [i for i, changed in others if changed != events and not refused(reader, write(changed))]


# --- chat completions -----------------------------------------------------------------------------------


def chunk(delta: dict[str, Any], finish: str | None = None, index: int = 0) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [choice],
    }


def call(index: int, arguments: str, **first: Any) -> dict[str, Any]:
    function = {"arguments": arguments}
    if first:
        function = {"name": first.pop("name"), "arguments": arguments}
        first |= {"type": "function"}
    return chunk({"tool_calls": [{"index": index, **first, "function": function}]})


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
CHAT = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": "Hm", "reasoning": "Hm"}),
    chunk({"content": "Hel"}),
    chunk({"content": "lo"}),
    call(0, "", id="a", name="look"),
    call(0, '{"x":'),
    call(0, "1}"),
    call(1, "{}", id="b", name="touch"),
    chunk({}, "tool_calls"),
    chunk({}) | {"choices": [], "usage": USAGE},
]


def test_a_sound_chat_adds_up() -> None:
    answer = streams.chat(b": keep-alive\n\n" + chunks(CHAT), usage=True)
    message = answer["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("Hello", "Hm")
    calls = [(each["id"], each["function"]["name"]) for each in message["tool_calls"]]
    assert calls == [("a", "look"), ("b", "touch")]
    assert [each["function"]["arguments"] for each in message["tool_calls"]] == ['{"x":1}', "{}"]
    assert answer["usage"] == USAGE


def test_no_chunk_of_a_chat_may_be_missing_or_elsewhere() -> None:
    spare = survivors(lambda body: streams.chat(body, usage=True), chunks, CHAT)
    assert set(spare) <= {1, 2, 3, 7}, "only pieces of text, and a whole call, can be missed by nobody"


@pytest.mark.parametrize(
    "body",
    [
        chunks(CHAT, end=""),
        chunks(CHAT, end="data: [DONE]\n\ndata: [DONE]\n\n"),
        chunks(CHAT, end="data: [DONE]\n"),
        chunks(CHAT[:-1]),
        chunks([*CHAT[:2], CHAT[2] | {"id": "chatcmpl-2"}, *CHAT[3:]]),
        chunks([*CHAT[:2], CHAT[2] | {"usage": USAGE}, *CHAT[3:]]),
        chunks([*CHAT[:-2], chunk({}, "stop"), CHAT[-1]]),
        chunks([*CHAT[:-1], CHAT[-1] | {"usage": USAGE | {"total_tokens": 6}}]),
        chunks([*CHAT[:3], chunk({"content": "lo", "reasoning": "Hm"}), *CHAT[4:]]),
        chunks([*CHAT[:3], chunk({"content": "lo"}, index=1), *CHAT[4:]]),
        chunks([*CHAT[:6], call(0, "1"), *CHAT[7:]]),
        chunks([*CHAT[:7], call(1, "{}", id="a", name="touch"), *CHAT[8:]]),
        b"event: message\n" + chunks(CHAT),
        chunks(CHAT).replace(b"\n", b"\r\n"),
        chunks(CHAT).replace(b'"m"', b'"\xff"'),
        chunks(CHAT).replace(b'"created": 1', b'"created": 1, "created": 1'),
    ],
)
def test_a_chat_that_is_not_sound_is_refused(body: bytes) -> None:
    assert refused(lambda body: streams.chat(body, usage=True), body)


def test_each_choice_ends_by_itself() -> None:
    two = [chunk({"role": "assistant", "content": ""}, index=index) for index in (0, 1)]
    two += [
        chunk({"content": "B"}, index=1),
        chunk({}, "stop", 1),
        chunk({"content": "A"}),
        chunk({}, "length"),
    ]
    answer = streams.chat(chunks(two), n=2)
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["A", "B"]
    assert refused(lambda body: streams.chat(body, n=2), chunks(two[:-1]))


def test_an_error_ends_a_chat_without_done() -> None:
    error = {"error": {"message": "it died", "type": "server_error", "code": "worker_lost", "param": None}}
    with pytest.raises(streams.Failed, match="it died"):
        streams.chat(chunks([*CHAT[:3], error], end=""))
    assert refused(streams.chat, chunks([*CHAT[:3], error]))
    assert refused(streams.chat, chunks([{"error": {"message": "it died"}}], end=""))


def test_a_completion_adds_up() -> None:
    def piece(text: str, finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
        return {"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}

    sound = [piece("a"), piece("b"), piece("", "length")]
    answer = streams.completion(chunks(sound))
    assert answer["choices"] == [{"index": 0, "text": "ab", "finish_reason": "length"}]
    assert refused(streams.completion, chunks(sound[:-1]))
    assert refused(streams.completion, chunks([*sound, piece("c")]))


# --- Anthropic's messages -------------------------------------------------------------------------------


def block(index: int, start: dict[str, Any], *deltas: dict[str, Any]) -> Events:
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


MESSAGE = [
    {
        "type": "message_start",
        "message": {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "m",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {
                "input_tokens": 9,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": 0,
            },
        },
    },
    *block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "Hm"},
        {"type": "signature_delta", "signature": "s"},
    ),
    *block(1, {"type": "text", "text": ""}, {"type": "text_delta", "text": "Hello"}),
    *block(
        2,
        {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}},
        {"type": "input_json_delta", "partial_json": '{"x":'},
        {"type": "input_json_delta", "partial_json": "1}"},
    ),
    {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": {"output_tokens": 7, "input_tokens": 5, "cache_read_input_tokens": 4},
    },
    {"type": "message_stop"},
]


def changed(events: Events, index: int, path: str, value: Any) -> Events:
    """The same events, with one value in one of them."""
    events = copy.deepcopy(events)
    *path, last = path.split(".")
    place: Any = events[index]
    for key in path:
        place = place[key]
    place[last] = value
    return events


def test_a_sound_message_adds_up() -> None:
    ping = named([{"type": "ping"}])
    message = streams.anthropic(b": loading\n\n" + named(MESSAGE[:4]) + ping + named(MESSAGE[4:]))
    assert [block["type"] for block in message["content"]] == ["thinking", "text", "tool_use"]
    assert message["content"][0] == {"type": "thinking", "thinking": "Hm", "signature": "s"}
    assert message["content"][2]["input"] == {"x": 1}
    assert message["usage"]["input_tokens"] == 5


def test_no_event_of_a_message_may_be_missing_or_elsewhere() -> None:
    thought = MESSAGE.index(block(0, {}, {"type": "thinking_delta", "thinking": "Hm"})[1])
    text = MESSAGE.index(block(1, {}, {"type": "text_delta", "text": "Hello"})[1])
    spare = survivors(streams.anthropic, named, MESSAGE)
    assert set(spare) <= {thought, text}, "only pieces of text can be missed or doubled"


@pytest.mark.parametrize(
    ("index", "path", "value"),
    [
        (0, "message.usage.cache_read_input_tokens", None),
        (0, "message.usage.input_tokens", 8),
        (0, "message.stop_reason", "end_turn"),
        (1, "index", 1),
        (1, "content_block.thinking", "Hm"),
        (2, "delta", {"type": "text_delta", "text": "Hm"}),
        (3, "delta.signature", ""),
        (6, "delta.text", ""),
        (9, "delta.partial_json", '{"x'),
        (-2, "delta.stop_reason", "end_turn"),
        (-2, "delta.stop_reason", "stop"),
        (-2, "delta.stop_sequence", "x"),
        (-2, "usage.output_tokens", None),
    ],
)
def test_a_message_that_is_not_sound_is_refused(index: int, path: str, value: Any) -> None:
    assert refused(streams.anthropic, named(changed(MESSAGE, index, path, value)))


def test_the_name_of_an_event_is_its_type() -> None:
    assert refused(streams.anthropic, named(MESSAGE).replace(b"event: message_stop", b"event: message_end"))
    assert refused(streams.anthropic, chunks(MESSAGE, end=""))
    assert refused(streams.anthropic, named(MESSAGE) + b"data: [DONE]\n\n")


def test_a_call_may_be_cut_off_where_the_answer_is() -> None:
    cut = changed(changed(MESSAGE, -2, "delta.stop_reason", "max_tokens"), -4, "delta.partial_json", '"')
    assert streams.anthropic(named(cut))["content"][2]["input"] == {}


def test_an_error_ends_a_message() -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "it died"}}
    with pytest.raises(streams.Failed, match="it died"):
        streams.anthropic(named([*MESSAGE[:3], error]))
    assert refused(streams.anthropic, named([*MESSAGE[:3], error, MESSAGE[-1]]))
    assert refused(
        streams.anthropic, named([{"type": "error", "error": {"type": "oops", "message": "it died"}}])
    )


# --- Responses ------------------------------------------------------------------------------------------


def response(status: str, **values: Any) -> dict[str, Any]:
    begun = {"id": "resp_1", "object": "response", "created_at": 1, "model": "m", "output": []}
    return dict.fromkeys(FIELDS) | begun | {"status": status} | values


def part(stem: str, bracket: str, kind: str, index: str, item: str, output: int, *pieces: str) -> Events:
    """A part with its bracket and its text."""
    place = {"item_id": item, "output_index": output, index: 0}
    extra = {"annotations": [], "logprobs": []} if kind == "output_text" else {}
    more = {"logprobs": []} if kind == "output_text" else {}
    whole = "".join(pieces)
    return [
        {"type": f"{bracket}.added", **place, "part": {"type": kind, "text": "", **extra}},
        *({"type": f"{stem}.delta", **place, "delta": piece, **more} for piece in pieces),
        {"type": f"{stem}.done", **place, "text": whole, **more},
        {"type": f"{bracket}.done", **place, "part": {"type": kind, "text": whole, **extra}},
    ]


def item(output: int, begun: dict[str, Any], events: Events, **values: Any) -> Events:
    added = {"type": "response.output_item.added", "output_index": output, "item": begun}
    return [added, *events, added | {"type": "response.output_item.done", "item": begun | values}]


TEXT = {"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}
ITEMS = [
    *item(
        0,
        {"type": "reasoning", "id": "rs_1", "summary": []},
        part(
            "response.reasoning_summary_text",
            "response.reasoning_summary_part",
            "summary_text",
            "summary_index",
            "rs_1",
            0,
            "Hm",
        ),
        summary=[{"type": "summary_text", "text": "Hm"}],
        encrypted_content="e",
    ),
    *item(
        1,
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "in_progress", "content": []},
        part(
            "response.output_text",
            "response.content_part",
            "output_text",
            "content_index",
            "msg_1",
            1,
            "Hel",
            "lo",
        ),
        status="completed",
        content=[TEXT],
    ),
    *item(
        2,
        {
            "type": "function_call",
            "id": "fc_1",
            "call_id": "call_1",
            "name": "look",
            "arguments": "",
            "status": "in_progress",
        },
        [
            {
                "type": "response.function_call_arguments.delta",
                "item_id": "fc_1",
                "output_index": 2,
                "delta": "{}",
            },
            {
                "type": "response.function_call_arguments.done",
                "item_id": "fc_1",
                "output_index": 2,
                "name": "look",
                "arguments": "{}",
            },
        ],
        arguments="{}",
        status="completed",
    ),
    *item(
        3,
        {"type": "custom_tool_call", "id": "ctc_1", "call_id": "call_2", "name": "patch", "input": ""},
        [
            {
                "type": "response.custom_tool_call_input.delta",
                "item_id": "ctc_1",
                "output_index": 3,
                "delta": "*",
            },
            {
                "type": "response.custom_tool_call_input.done",
                "item_id": "ctc_1",
                "output_index": 3,
                "input": "*",
            },
        ],
        input="*",
    ),
]
OUTPUT = [event["item"] for event in ITEMS if event["type"] == "response.output_item.done"]
COUNTS = {
    "input_tokens": 4,
    "input_tokens_details": {"cached_tokens": 1},
    "output_tokens": 3,
    "output_tokens_details": {"reasoning_tokens": 1},
    "total_tokens": 7,
}
RESPONSE = [
    {"type": "response.created", "response": response("in_progress")},
    {"type": "response.in_progress", "response": response("in_progress")},
    *ITEMS,
    {
        "type": "response.completed",
        "response": response("completed", completed_at=2, output=OUTPUT, usage=COUNTS),
    },
]


def test_a_sound_response_adds_up() -> None:
    answer = streams.responses(numbered(RESPONSE))
    assert answer == streams.responses(numbered(RESPONSE) + b"data: [DONE]\n\n")
    assert [item["type"] for item in answer["output"]] == [
        "reasoning",
        "message",
        "function_call",
        "custom_tool_call",
    ]
    assert answer["output"][1]["content"] == [TEXT]


def test_no_event_of_a_response_may_be_missing_or_elsewhere() -> None:
    spare = survivors(streams.responses, numbered, RESPONSE)
    assert set(spare) <= {1}, "only response.in_progress can be missing"


@pytest.mark.parametrize(
    ("index", "path", "value"),
    [
        (0, "response.output", OUTPUT),
        (0, "response.status", "completed"),
        (1, "response.id", "resp_2"),
        (2, "output_index", 1),
        (3, "item_id", "rs_2"),
        (4, "delta", "H"),
        (8, "item.content", [TEXT]),
        (10, "logprobs", None),
        (12, "text", "Hell"),
        (14, "item.status", "in_progress"),
        (16, "delta", "{"),
        (18, "item.call_id", "call_9"),
        (-1, "response.output", OUTPUT[:-1]),
        (-1, "response.usage", None),
        (-1, "response.usage", COUNTS | {"total_tokens": 8}),
        (-1, "response.completed_at", None),
        (-1, "response.error", {"code": "server_error", "message": "x"}),
    ],
)
def test_a_response_that_is_not_sound_is_refused(index: int, path: str, value: Any) -> None:
    assert refused(streams.responses, numbered(changed(RESPONSE, index, path, value)))


def test_a_response_has_every_field_and_every_number() -> None:
    for field in FIELDS:
        short = copy.deepcopy(RESPONSE)
        del short[-1]["response"][field]
        assert refused(streams.responses, numbered(short)), field
    assert refused(
        streams.responses, numbered(RESPONSE).replace(b'"sequence_number": 5', b'"sequence_number": 6')
    )


def test_a_response_that_fails_says_why() -> None:
    error = {"code": "server_error", "message": "it died"}
    end = {"type": "response.failed", "response": response("failed", error=error)}
    with pytest.raises(streams.Failed, match="it died"):
        streams.responses(numbered([*RESPONSE[:4], end]))
    assert refused(streams.responses, numbered([*RESPONSE[:4], end, RESPONSE[-1]]))
    assert refused(streams.responses, numbered(changed([*RESPONSE[:4], end], -1, "response.error", None)))
