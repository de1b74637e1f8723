"""Anthropic's requests that are wrong: refused by the name of what is wrong, whatever it is."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from gateway.dialects.anthropic import count_tokens, messages
from gateway.dialects.anthropic.envelope import envelope
from gateway.refusals import Refusal
from ipc.errors import Code, CortexError
from ipc.messages.requests import AnyRequest
from tests.gateway.anthropic_bodies import CALL, IMAGE, PDF, RESULT, SEARCH, TOOL, USER, read, text
from tests.gateway.parsing import parsed, refusal

# --- by name ----------------------------------------------------------------------------------------------


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", "content": list(blocks)}]}


def user(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


def source(**fields: Any) -> dict[str, Any]:
    return user(IMAGE | {"source": IMAGE["source"] | fields})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": 1}, "model"),
        ({"model": "x" * 1025}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "x"}, "messages"),
        ({"messages": [{"role": "system", "content": ""}]}, "messages"),
        ({"messages": [{"role": "system", "output_config": {"effort": "low"}}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": ""}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [USER, {"role": "system"}]}, "messages[1].content"),
        (
            {"messages": [USER, {"role": "system", "content": "x", "clear_at": "noon"}]},
            "messages[1].clear_at",
        ),
        (user({"type": "tool_addition"}), "messages[0].content[0].tool"),
        (user({"type": "tool_removal", "tool": {"name": "f"}}), "messages[0].content[0].tool.type"),
        (assistant({"type": "compaction", "content": [text("x")]}), "messages[1].content[0].content"),
        ({"compaction": {"type": "zip"}}, "compaction.type"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 1 << 70}, "max_tokens"),
        ({"temperature": 1.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"stream": "yes"}, "stream"),
        ({"stop_sequences": "end"}, "stop_sequences"),
        ({"stop_sequences": ["a", ""]}, "stop_sequences[1]"),
        ({"stop_sequences": ["a"] * 17}, "stop_sequences"),
        ({"stop_sequences": ["a", "b" * 1001]}, "stop_sequences[1]"),
        ({"system": 1}, "system"),
        ({"system": [IMAGE]}, "system[0].type"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1023}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "adaptive", "display": "loud"}}, "thinking.display"),
        ({"output_config": {"effort": "none"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"output_config": {"format": {"type": "xml", "schema": {}}}}, "output_config.format.type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [TOOL | {"name": ""}]}, "tools[0].name"),
        ({"tools": [TOOL | {"name": "f" * 300}]}, "tools[0].name"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tools": [TOOL | {"type": "telepathy_20300101"}]}, "tools[0].type"),
        ({"tools": [TOOL], "tool_choice": "auto"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [SEARCH], "tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [SEARCH], "tool_choice": {"type": "tool", "name": "web_search"}}, "tool_choice.name"),
        ({"mcp_servers": [{"type": "url", "url": "http://x", "name": "x"}]}, "mcp_servers"),
        ({"container": "c_1"}, "container"),
        (user({"type": "text"}), "messages[0].content[0].text"),
        (user(text("a"), {"type": "text", "text": 1}), "messages[0].content[1].text"),
        (user({"type": "video"}), "messages[0].content[0].type"),
        (user(CALL), "messages[0].content[0].type"),
        (user("x"), "messages[0].content[0]"),
        (source(type="file", file_id="f"), "messages[0].content[0].source.type"),
        (source(media_type="text/html"), "messages[0].content[0].source.media_type"),
        (source(data="!"), "messages[0].content[0].source.data"),
        (source(data=""), "messages[0].content[0].source.data"),
        (user({"type": "image"}), "messages[0].content[0].source"),
        (user({"type": "image", "source": "x"}), "messages[0].content[0].source"),
        (user(PDF), "messages[0].content[0].source.media_type"),
        (user(PDF | {"source": {"type": "url", "url": "x"}}), "messages[0].content[0].source.type"),
        (user(RESULT), "messages[0].content[0].tool_use_id"),
        (user({"type": "tool_result", "content": "x"}), "messages[0].content[0].tool_use_id"),
        (user(RESULT | {"content": {}}), "messages[0].content[0].content"),
        (user(RESULT | {"content": [{"type": "text"}]}), "messages[0].content[0].content[0].text"),
        (user(*[text("x")] * 10_001), "messages[0].content"),
        (user(RESULT | {"content": [text("x")] * 10_001}), "messages[0].content[0].content"),
        ({"system": [text("x")] * 10_001}, "system"),
        ({"messages": [USER] * 10_001}, "messages[10000].content"),  # which are one turn
        ({"messages": [{"role": "user", "content": [text("x")] * 5001}] * 2}, "messages[1].content"),
        (assistant({"type": "tool_use", "id": "t", "name": "f"}), "messages[1].content[0].input"),
        (assistant(CALL | {"input": "{}"}), "messages[1].content[0].input"),
        (assistant(CALL | {"input": [1]}), "messages[1].content[0].input"),
        (assistant(CALL | {"id": ""}), "messages[1].content[0].id"),
        (assistant(CALL | {"id": "t" * 300}), "messages[1].content[0].id"),
        (assistant(CALL | {"name": ""}), "messages[1].content[0].name"),
        (assistant({"type": "thinking", "signature": "s"}), "messages[1].content[0].thinking"),
        (assistant({"type": "redacted_thinking"}), "messages[1].content[0].data"),
    ],
)
def test_each_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    error = refusal(read, **fields)
    assert error.code in (Code.BAD_REQUEST, Code.NOT_SUPPORTED)
    assert error.param == param
    assert error.message.startswith(f"{param}: ")


@pytest.mark.parametrize("field", ["model", "messages", "max_tokens"])
def test_what_must_be_there_is_asked_for(field: str) -> None:
    body = {"model": "m", "max_tokens": 9, "messages": [USER]}
    del body[field]
    with pytest.raises(CortexError) as refused:
        parsed(messages.parse, json.dumps(body).encode())
    assert (refused.value.param, refused.value.message) == (field, f"{field}: a required field is missing")


def test_indexes_have_dots_in_what_the_client_reads() -> None:
    error = refusal(read, **user(text("a"), {"type": "text"}))
    told = json.loads(envelope(Refusal.of(error, "r")))
    assert told == {
        "type": "error",
        "error": {
            "type": "invalid_request_error",
            "message": "messages.0.content.1.text: a required field is missing",
        },
        "request_id": "r",
    }


@pytest.mark.parametrize(
    ("param", "own"),
    [
        ("messages[0].content[1]", "system[1]"),  # behind the line about billing
        ("messages[1].content[0]", "messages[0].content[0]"),
        ("messages[1].content[2].content[0]", "messages[1].content[1].content[0]"),
        ("messages[1]", "messages[0]"),
        ("messages", "messages"),
        ("tools[0]", "tools[1]"),
        ("must_call", "tool_choice"),
        ("stop", "stop_sequences"),
        ("structured_outputs.json", "output_config.format.schema"),
    ],
)
def test_an_error_of_the_neuron_names_what_the_client_sent(param: str, own: str) -> None:
    body = {
        "model": "m",
        "max_tokens": 9,
        "system": [text("a"), text("b")],
        "messages": [
            {"role": "user", "content": [text("c")]},
            {"role": "user", "content": [text("d"), text("e")]},
        ],
        "tools": [SEARCH, TOOL],
        "output_config": {"format": {"type": "json_schema", "schema": {}}},
    }
    renderer = parsed(messages.parse, json.dumps(body).encode())[1]
    error = renderer.in_client_words(CortexError(Code.BAD_REQUEST, f"{param}: it is wrong", param=param))
    assert (error.param, error.message) == (own, f"{own}: it is wrong")


def test_a_prompt_that_is_too_long_is_told_in_the_words_that_agents_look_for() -> None:
    renderer = parsed(
        messages.parse, json.dumps({"model": "m", "max_tokens": 9, "messages": [USER]}).encode()
    )[1]
    details = {"prompt_tokens": 208_310, "context_length": 200_000}
    error = CortexError(Code.CONTEXT_LENGTH_EXCEEDED, "much", param="messages", details=details)
    assert renderer.in_client_words(error).message == "prompt is too long: 208310 tokens > 200000 maximum"


# --- anything at all --------------------------------------------------------------------------------------

OFFER = {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": TOOL | {"name": "g"}}}
WITHDRAW = {"type": "tool_removal", "tool": {"type": "tool_reference", "name": "g"}}
RICH: dict[str, Any] = {
    "model": "m",
    "max_tokens": 2000,
    "stream": True,
    "system": [text("s", cache_control={"type": "ephemeral"})],
    "messages": [
        {
            "role": "user",
            "content": [text("a"), IMAGE, PDF | {"source": {"type": "content", "content": [text("b")]}}],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "compaction", "content": "s", "tool_changes": [OFFER]},
                {"type": "thinking", "thinking": "t", "signature": "s"},
                text("c"),
                CALL,
            ],
        },
        {
            "role": "system",
            "content": [WITHDRAW],
            "clear_at": "next_user_message",
            "output_config": {"effort": "low"},
        },
        {"role": "user", "content": [RESULT | {"content": [text("d")], "is_error": False}]},
        {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "d"}]},
        {
            "role": "user",
            "content": [{"type": "search_result", "source": "u", "title": "t", "content": [text("e")]}],
        },
    ],
    "tools": [
        TOOL | {"strict": True, "input_examples": [{"a": 1}]},
        {"type": "bash_20250124", "name": "bash"},
    ],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "stop_sequences": ["x"],
    "mcp_servers": [],
    "metadata": {"user_id": "u"},
}
DEEP: Any = []
for _ in range(400):
    DEEP = [DEEP]
WRONG = (
    None,
    True,
    0,
    -1,
    1 << 80,
    1e300,
    "",
    "x" * 500,
    "\ud7ff",
    [],
    [[]],
    [None],
    {},
    {"type": "x"},
    {"": DEEP},
    DEEP,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a body."""
    if path:
        yield path
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield from places(value[key], (*path, key))


@pytest.mark.parametrize("path", list(places(RICH)), ids=lambda path: ".".join(map(str, path)))
def test_anything_in_any_place_is_taken_or_refused(path: tuple[Any, ...]) -> None:
    decoder = msgspec.msgpack.Decoder(AnyRequest)
    parsed(messages.parse, json.dumps(RICH).encode())
    for wrong in WRONG:
        body = copy.deepcopy(RICH)
        place = body
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = wrong
        data = json.dumps(body).encode()
        for parse in (messages.parse, count_tokens.parse):
            try:
                request = parsed(parse, data)[0]
            except CortexError as error:
                refused = error
            else:
                decoder.decode(msgspec.msgpack.encode(request))  # a neuron can read it
                continue
            assert refused.code in (Code.BAD_REQUEST, Code.NOT_SUPPORTED)
            assert refused.param or "valid JSON" in refused.message


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a": "\xff"}',
        b'{"\xff": 1}',
        b'{"a": "\\ud800"}',
        b'{"a": ' * 5000 + b"1" + b"}" * 5000,
        b'{"a": 1e999}',
        b'{"a": NaN}',
        b'{"a": 123456789012345678901234567890}',
        b"{",
        b"{}}",
    ],
)
@pytest.mark.parametrize("place", ["input", "input_schema", "schema", "unknown"])
def test_json_of_any_kind_in_free_places_is_taken_or_refused(raw: bytes, place: str) -> None:
    bodies = {
        "input": assistant(CALL | {"input": "RAW"}),
        "input_schema": {"tools": [TOOL | {"input_schema": "RAW"}]},
        "schema": {"output_config": {"format": {"type": "json_schema", "schema": "RAW"}}},
        "unknown": {"not_yet_invented": "RAW"},
    }
    body = json.dumps({"model": "m", "max_tokens": 9, "messages": [USER]} | bodies[place]).encode()
    try:
        request = parsed(messages.parse, body.replace(b'"RAW"', raw))[0]
    except CortexError as error:
        refused = error
    else:
        msgspec.msgpack.Decoder(AnyRequest).decode(msgspec.msgpack.encode(request))
        return
    assert refused.code == Code.BAD_REQUEST


def test_a_body_with_a_key_twice_has_the_last_one() -> None:
    body = b'{"model": "a", "model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}'
    assert parsed(messages.parse, body)[0].model == "m"
