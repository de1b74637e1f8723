"""Anthropic's requests: what is understood, what is refused by name, what is ignored."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects import RequestContext
from gateway.dialects.anthropic import count_tokens, messages
from gateway.dialects.anthropic.envelope import envelope
from gateway.dialects.anthropic.identifiers import inward, outward
from gateway.dialects.thoughts import seal, unseal
from gateway.refusals import Refusal
from ipc.errors import Code, CortexError
from ipc.messages import (
    AnyRequest,
    CountTokens,
    Generate,
    ImagePart,
    Message,
    Structured,
    TextPart,
    Thinking,
    ThinkingPart,
    Tool,
    ToolCall,
    ToolResultPart,
)
from tests.gateway.parsing import parsed, refusal

USER = {"role": "user", "content": "x"}
PNG = base64.b64encode(b"\x89PNG").decode()
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "2"}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}
TOOL = {"name": "f", "description": "does", "input_schema": {"type": "object"}}


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said} | more


def read(**fields: Any) -> Generate:
    body = {"model": "m", "max_tokens": 2000, "messages": [USER]} | fields
    return parsed(messages.parse, json.dumps(body).encode())[0]


def turns(*given: dict[str, Any], **fields: Any) -> list[Message]:
    return read(messages=list(given), **fields).messages


# --- conversations ----------------------------------------------------------------------------------------


def test_a_conversation_keeps_what_was_said_in_its_order() -> None:
    assert turns(
        {"role": "user", "content": [text("look", cache_control={"type": "ephemeral"}), IMAGE]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "of whoever"},
                text("so", citations=None),
                CALL | {"caller": {"type": "direct"}},
            ],
        },
        {"role": "user", "content": [RESULT | {"is_error": True}, text("and?")]},
        {"role": "system", "content": "be quick"},
        system=[text("be brief"), text("be kind")],
    ) == [
        Message(role="system", content=[TextPart(text="be brief"), TextPart(text="be kind")]),
        Message(
            role="user", content=[TextPart(text="look"), ImagePart(data=b"\x89PNG", media_type="image/png")]
        ),
        Message(
            role="assistant",
            content=[ThinkingPart(text="hm"), TextPart(text="so")],
            tool_calls=[ToolCall(id="call_1", name="f", arguments='{"a": 1}')],
        ),
        Message(
            role="user",
            content=[
                ToolResultPart(tool_call_id="call_1", content="2", is_error=True),
                TextPart(text="and?"),
            ],
        ),
        Message(role="system", content="be quick"),
    ]


def test_text_alone_stays_text() -> None:
    assert turns(USER, system="be brief") == [
        Message(role="system", content="be brief"),
        Message(role="user", content="x"),
    ]


@pytest.mark.parametrize("system", [None, "", []])
def test_a_system_prompt_may_be_empty(system: Any) -> None:
    given = [message for message in turns(USER, system=system) if message.content]
    assert given == [Message(role="user", content="x")]


BILLING = "x-anthropic-billing-header: cc_version=2.1.197.abc; cc_entrypoint=cli; cch=1a2b3;"


@pytest.mark.parametrize(
    ("system", "left"),
    [
        ([text(BILLING), text("be brief")], [TextPart(text="be brief")]),
        ([text(f"{BILLING}\nbe brief")], [TextPart(text="be brief")]),
        (f"{BILLING}\nbe brief", "be brief"),
        ([text(f"see {BILLING}")], [TextPart(text=f"see {BILLING}")]),
    ],
)
def test_the_line_about_billing_is_left_out(system: Any, left: Any) -> None:
    assert turns(USER, system=system)[0] == Message(role="system", content=left)


def test_a_system_prompt_about_billing_alone_is_none() -> None:
    assert turns(USER, system=[text(BILLING)]) == turns(USER, system=BILLING) == turns(USER)


def test_turns_of_one_role_are_one_turn() -> None:
    second = {"role": "user", "content": [text("y")]}
    assert turns(USER, second) == [Message(role="user", content=[TextPart(text="x"), TextPart(text="y")])]
    calls = [CALL, CALL | {"id": "toolu_2"}]
    [_, turn] = turns(USER, *({"role": "assistant", "content": [call]} for call in calls))
    assert [call.id for call in turn.tool_calls] == ["call_1", "call_2"]


def test_results_of_tools_have_every_shape() -> None:
    inner = [text("seen"), IMAGE, {"type": "tool_reference", "tool_name": "g"}]
    results = [RESULT | {"content": content} for content in ("2", inner, [], None)]
    no_content = {"type": "tool_result", "tool_use_id": "toolu_1"}
    turn = turns(
        {"role": "assistant", "content": [CALL]}, {"role": "user", "content": [*results, no_content]}
    )[1]
    assert [part.content for part in turn.content] == [
        "2",
        [TextPart(text="seen"), ImagePart(data=b"\x89PNG", media_type="image/png"), TextPart(text="g")],
        "",
        "",
        "",
    ]


def test_what_a_tool_shows_and_nobody_can_read_does_not_end_the_conversation() -> None:
    result = RESULT | {"content": [text("a"), PDF, {"type": "hologram"}]}
    [_, turn] = turns({"role": "assistant", "content": [CALL]}, {"role": "user", "content": [result]})
    said, *notes = turn.content[0].content
    assert said == TextPart(text="a")
    assert ["document" in notes[0].text, "hologram" in notes[1].text] == [True, True]


def test_documents_are_their_text() -> None:
    plain = {"type": "text", "media_type": "text/plain", "data": "a"}
    blocks = {"type": "content", "content": [text("b"), text("c")]}
    inside = {"type": "content", "content": "d"}
    documents = [{"type": "document", "source": source} for source in (plain, blocks, inside)]
    documents[0] |= {"title": "T", "context": "C"}
    [turn] = turns({"role": "user", "content": documents})
    assert "".join(part.text for part in turn.content) == "TCabcd"


def test_a_search_result_is_its_text() -> None:
    found = {"type": "search_result", "source": "http://x", "title": "T", "content": [text("a")]}
    [turn] = turns({"role": "user", "content": [found]})
    assert [part.text for part in turn.content] == ["T", "http://x", "a"]


def test_a_summary_of_the_conversation_is_its_text() -> None:
    blocks = [{"type": "compaction", "content": "so far"}, {"type": "compaction", "content": None}]
    [turn] = turns({"role": "assistant", "content": blocks})
    assert turn.content == [TextPart(text="so far")]


def test_what_anthropic_s_servers_did_is_left_out() -> None:
    searched = [
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "q"}},
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
        {
            "type": "code_execution_tool_result",
            "tool_use_id": "s",
            "content": {"type": "error", "error_code": "e"},
        },
        text("it is so"),
    ]
    assert turns(USER, {"role": "assistant", "content": searched})[1].content == [TextPart(text="it is so")]


@pytest.mark.parametrize(
    ("last", "continues"),
    [
        (USER, False),
        ({"role": "assistant", "content": "so"}, True),
        ({"role": "assistant", "content": [text("a"), text("so")]}, True),
        ({"role": "assistant", "content": [text("so"), CALL]}, False),
        ({"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": "s"}]}, False),
    ],
)
def test_the_beginning_of_an_answer_is_gone_on_with(last: dict[str, Any], continues: bool) -> None:
    assert read(messages=[USER, last]).continue_final_message is continues


@pytest.mark.parametrize("content", ["", []])
def test_an_empty_last_turn_of_the_assistant_is_none(content: Any) -> None:
    assert read(messages=[USER, {"role": "assistant", "content": content}]) == read()


# --- thoughts ---------------------------------------------------------------------------------------------


def test_a_thought_that_was_not_shown_comes_back_in_its_signature() -> None:
    signature = seal("höm")
    blocks = [
        {"type": "thinking", "thinking": "", "signature": signature},
        {"type": "redacted_thinking", "data": signature},
        {"type": "thinking", "thinking": "", "signature": "EqoBCkgIARABGAIiQ"},  # of another provider
        {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix"},
        text("so"),
    ]
    [_, turn] = turns(USER, {"role": "assistant", "content": blocks})
    assert turn.content == [ThinkingPart(text="höm"), ThinkingPart(text="höm"), TextPart(text="so")]


@pytest.mark.parametrize("signature", ["cortex1.", "cortex1.!", "cortex1.a", "cortex1._w", "", "x"])
def test_a_signature_that_carries_nothing_is_no_error(signature: str) -> None:
    assert not unseal(signature)


@pytest.mark.parametrize(
    ("fields", "thinking"),
    [
        ({}, Thinking(enabled=False)),
        ({"thinking": {"type": "disabled"}}, Thinking(enabled=False)),
        ({"thinking": {"type": "adaptive"}}, Thinking(enabled=True)),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, Thinking(enabled=True, budget=1024)),
        (
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "xhigh"}},
            Thinking(enabled=True, effort="xhigh"),
        ),
        ({"output_config": {"effort": "low"}}, Thinking(enabled=False, effort="low")),
    ],
)
def test_who_asks_for_thoughts_gets_them(fields: dict[str, Any], thinking: Thinking) -> None:
    assert read(**fields).thinking == thinking


def test_a_budget_beyond_the_answer_needs_the_beta_for_it() -> None:
    fields = {"thinking": {"type": "enabled", "budget_tokens": 2000}}
    assert refusal(read, **fields).param == "thinking.budget_tokens"
    body = json.dumps({"model": "m", "max_tokens": 2000, "messages": [USER]} | fields).encode()
    betas = {"anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14"}
    reading = messages.parse(body, RequestContext("r", header=betas.get))
    with pytest.raises(StopIteration):
        reading.send(None)


# --- tools ------------------------------------------------------------------------------------------------


def test_tools_reach_the_template_in_the_shape_that_it_knows() -> None:
    more = {"cache_control": {"type": "ephemeral"}, "defer_loading": True, "eager_input_streaming": True}
    given = [
        TOOL | more,
        TOOL | {"name": "g", "type": "custom", "strict": True, "input_examples": [{"a": 1}]},
    ]
    assert read(tools=given).tools == [
        Tool.function("f", description="does", parameters={"type": "object"}),
        Tool.function(
            "g",
            description="does",
            parameters={"type": "object"},
            input_examples=[{"a": 1}],
            strict=True,
        ),
    ]


def test_tools_of_anthropic_s_own_have_their_schema_or_are_left_out() -> None:
    given = [
        SEARCH,
        {"type": "bash_20250124", "name": "bash"},
        {"type": "tool_search_tool_regex_20251119", "name": "tool_search_tool_regex"},
        {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"},
        {"type": "memory_20250818", "name": "memory"},
    ]
    tools = read(tools=given).tools
    assert [tool.name for tool in tools] == ["bash", "str_replace_based_edit_tool", "memory"]
    assert all(tool.is_valid() for tool in tools)
    assert set(tools[0].parameters["properties"]) == {"command", "restart"}
    commands = tools[1].parameters["properties"]["command"]["enum"]
    assert commands == ["view", "create", "str_replace", "insert"]
    error = refusal(read, tools=[*given, {"type": "computer_20250124", "name": "computer"}])
    assert (error.code, error.param) == (Code.NOT_SUPPORTED, "tools[5].type")


@pytest.mark.parametrize(
    ("choice", "must_call", "parallel", "told"),
    [
        (None, [], True, 2),
        ({"type": "auto"}, [], True, 2),
        ({"type": "auto", "disable_parallel_tool_use": True}, [], False, 2),
        ({"type": "any"}, ["f", "g"], True, 2),
        ({"type": "tool", "name": "g", "disable_parallel_tool_use": True}, ["g"], False, 2),
        ({"type": "none"}, [], True, 0),
    ],
)
def test_tools_are_called_as_tool_choice_says(
    choice: Any, must_call: list[str], parallel: bool, told: int
) -> None:
    request = read(tools=[TOOL, TOOL | {"name": "g"}], tool_choice=choice)
    assert (request.must_call, request.parallel_tool_calls) == (must_call, parallel)
    assert len(request.tools) == told


def test_ids_that_models_write_come_back_as_they_were() -> None:
    for own in ("call_0a1b", "functions.Bash:0", "abcDEF123", "call_b64_x", "call_", "toolu_1", "é" * 100):
        told = outward(own)
        assert inward(told) == own
        assert told.startswith("toolu_")
        assert set(told) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


@given(st.text(max_size=30), st.text(max_size=30))
def test_ids_of_a_client_s_own_stay_apart(one: str, other: str) -> None:
    for start in ("", "toolu_", "toolu_b64_", "call_"):
        assert (inward(start + one) == inward(start + other)) == (one == other)


# --- the answer -------------------------------------------------------------------------------------------


def test_sampling_is_taken_as_it_is_spelt() -> None:
    sampling = read(temperature=0.5, top_p=0.9, top_k=7, stop_sequences=["end"], max_tokens=9).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 7)
    assert (sampling.stop, sampling.max_tokens) == (["end"], 9)
    assert read().sampling == type(sampling)(max_tokens=2000)
    assert read(top_p=0).sampling.top_k == 1  # the one most probable token
    assert read(max_tokens=0).sampling.max_tokens == 0


@pytest.mark.parametrize("where", ["output_config", "output_format"])
def test_a_schema_holds_the_answer(where: str) -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    fields = {where: {"format": form} if where == "output_config" else form}
    assert read(**fields).structured == Structured(json={"type": "object"})


def test_hints_and_what_nobody_has_heard_of_are_ignored() -> None:
    hints = {
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]},
        "cache_control": {"type": "ephemeral"},
        "inference_geo": "us",
        "container": None,
        "mcp_servers": [],
        "betas": ["a"],
        "not_yet_invented": {"x": [1]},
    }
    assert read(**hints) == read()


def test_a_count_reads_what_the_message_would() -> None:
    fields = {
        "system": "s",
        "messages": [USER],
        "tools": [TOOL],
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "low"},
    }
    body = json.dumps({"model": "m"} | fields).encode()
    count: CountTokens = parsed(count_tokens.parse, body)[0]
    asked = read(**fields)
    assert (count.messages, count.tools, count.thinking) == (asked.messages, asked.tools, asked.thinking)
    assert count.model == "m"


# --- errors -----------------------------------------------------------------------------------------------


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", "content": list(blocks)}]}


def user(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


def source(**fields: Any) -> dict[str, Any]:
    return user(IMAGE | {"source": IMAGE["source"] | fields})


PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PNG}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": 1}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "x"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
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
        (source(type="url", url="http://x/y.png"), "messages[0].content[0].source.type"),
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
            "content": [{"type": "thinking", "thinking": "t", "signature": "s"}, text("c"), CALL],
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


# --- round trips ------------------------------------------------------------------------------------------

words = st.text(max_size=20)
names = st.text(alphabet="abc_", min_size=1, max_size=10)
texts = st.builds(TextPart, text=words)
images = st.builds(ImagePart, data=st.binary(min_size=1, max_size=20), media_type=st.just("image/png"))
arguments = st.dictionaries(names, words | st.integers(-9, 9), max_size=3).map(json.dumps)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Canonical conversations: turns take turns, and results are of calls of the turn before."""
    conversation = []
    if draw(st.booleans()):
        conversation.append(
            Message(role="system", content=draw(st.text(min_size=1) | st.lists(texts, min_size=1)))
        )
    calls: list[ToolCall] = []
    for _ in range(draw(st.integers(1, 4))):
        results = [
            ToolResultPart(
                tool_call_id=call.id,
                content=draw(words | st.lists(texts | images, min_size=1, max_size=3)),
                is_error=draw(st.booleans()),
            )
            for call in calls
        ]
        said: Any = draw(st.lists(texts | images, max_size=3))
        content = [*results, *said] if results or draw(st.booleans()) else draw(words)
        conversation.append(Message(role="user", content=content))
        ids = draw(st.lists(words.map("call_".__add__), unique=True, max_size=3))
        calls = [ToolCall(id=each, name=draw(names), arguments=draw(arguments)) for each in ids]
        thought = st.builds(ThinkingPart, text=st.text(min_size=1, max_size=20))
        parts = draw(st.lists(texts | thought, max_size=3))
        conversation.append(
            Message(
                role="assistant",
                content=parts if parts or calls else draw(st.text(min_size=1)),
                tool_calls=calls,
            )
        )
    return conversation


def written(message: Message) -> dict[str, Any]:
    """A turn as a client of Anthropic's sends it."""
    if isinstance(message.content, str):
        return {"role": message.role, "content": message.content}
    calls = [
        {"type": "tool_use", "id": outward(call.id), "name": call.name, "input": json.loads(call.arguments)}
        for call in message.tool_calls
    ]
    return {"role": message.role, "content": [*map(block, message.content), *calls]}


def block(part: Any) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return text(part.text)
    if isinstance(part, ThinkingPart):
        return {"type": "thinking", "thinking": "", "signature": seal(part.text)}
    if isinstance(part, ImagePart):
        data = base64.b64encode(part.data).decode()
        return {"type": "image", "source": {"type": "base64", "media_type": part.media_type, "data": data}}
    content = part.content if isinstance(part.content, str) else [block(each) for each in part.content]
    return {
        "type": "tool_result",
        "tool_use_id": outward(part.tool_call_id),
        "content": content,
        "is_error": part.is_error,
    }


@given(conversations())
def test_a_conversation_that_is_sent_is_the_same_when_it_is_read(conversation: list[Message]) -> None:
    sent = [written(message) for message in conversation]
    first = sent.pop(0)["content"] if sent[0]["role"] == "system" else None
    assert turns(*sent, system=first) == conversation
