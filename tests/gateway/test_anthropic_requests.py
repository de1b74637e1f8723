"""Anthropic's requests: what is understood, and what is ignored."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects import RequestContext
from gateway.dialects.anthropic import count_tokens, messages
from gateway.dialects.anthropic.identifiers import inward, outward
from gateway.dialects.summaries import ASK, HEAD
from gateway.dialects.thoughts import seal, unseal
from ipc.errors import Code
from ipc.messages.conversation import (
    ImagePart,
    Message,
    TextPart,
    ThinkingPart,
    Tool,
    ToolCall,
    ToolResultPart,
)
from ipc.messages.requests import CountTokens
from ipc.messages.sampling import Structured, Thinking
from tests.gateway.anthropic_bodies import CALL, IMAGE, PDF, RESULT, SEARCH, TOOL, USER, read, text, turns
from tests.gateway.parsing import parsed, refusal

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


def test_a_summary_stands_for_all_that_came_before_it() -> None:
    summary = {"type": "compaction", "content": "so far", "signature": "s"}
    said = Message(role="user", content=f"{HEAD}so far")
    answer = {"role": "assistant", "content": [summary, text("and on")]}
    ended = [Message(role="system", content="s"), said]
    assert turns(USER, {"role": "assistant", "content": [summary]}, system="s") == ended
    assert turns(USER, answer, USER) == [
        said,
        Message(role="assistant", content=[TextPart(text="and on")]),
        Message(role="user", content="x"),
    ]
    [joined] = turns({"role": "assistant", "content": [summary]}, USER)
    assert joined.content == [TextPart(text=said.content), TextPart(text="x")]
    empty = {"type": "compaction", "content": None}  # it could not be made
    assert turns(USER, {"role": "assistant", "content": [empty]}, USER)[0].content == "x"
    assert not read(messages=[{"role": "assistant", "content": [summary]}]).continue_final_message


def test_a_summary_is_asked_for_in_place_of_an_answer() -> None:
    form = {"format": {"type": "json_schema", "schema": {}}}
    shaped = {"tools": [TOOL], "tool_choice": {"type": "any"}, "output_config": form}
    request = read(**shaped, thinking={"type": "adaptive"}, compaction={"type": "summarize"})
    assert request.messages == [Message(role="user", content="x"), Message(role="user", content=ASK)]
    assert (request.tools, request.must_call, request.structured) == ([], [], None)
    assert not request.thinking.enabled
    own = read(compaction={"type": "summarize", "instructions": "In Latin."})
    assert own.messages[-1].content == "In Latin."


def test_what_the_operator_says_on_the_way_may_hold_for_one_turn() -> None:
    once = {"role": "system", "content": "be quick", "clear_at": "next_user_message"}
    kept = {"role": "system", "content": "be kind", "clear_at": "never"}
    said = {"role": "assistant", "content": "y"}
    assert [turn.role for turn in turns(USER, once, kept)] == ["user", "system", "system"]
    assert [turn.content for turn in turns(USER, once, kept, said, USER)] == ["x", "be kind", "y", "x"]


def test_how_hard_to_think_may_be_said_on_the_way() -> None:
    said = {"role": "system", "output_config": {"effort": "max"}}
    called, result = {"role": "assistant", "content": [CALL]}, {"role": "user", "content": [RESULT]}
    at_first = {"effort": "low"}
    efforts = [
        read(messages=given, output_config=at_first).thinking.effort
        for given in ([USER, said], [USER, said, called, result], [USER, said, called, result, USER])
    ]
    assert efforts == ["max", "max", "low"]
    assert [turn.role for turn in turns(USER, said)] == ["user"]


def test_what_anthropic_s_servers_did_is_left_out() -> None:
    searched = [
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "q"}},
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
        {"type": "mcp_tool_listing", "mcp_server_name": "n", "tools": []},
        {"type": "fallback", "from": {"model": "a"}, "to": {"model": "b"}, "trigger": {"type": "refusal"}},
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
        ({"thinking": {"type": "between_tools"}}, Thinking(enabled=False)),
        (
            {
                "thinking": {"type": "between_tools"},
                "messages": [
                    {"role": "assistant", "content": [CALL]},
                    {"role": "user", "content": [RESULT]},
                    {"role": "system", "content": "s"},
                ],
            },
            Thinking(enabled=True),
        ),
        ({"thinking": {"type": "adaptive", "display": "updates"}}, Thinking(enabled=True)),
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
        {"type": "mcp_toolset", "mcp_server_name": "n"},
    ]
    tools = read(tools=given).tools
    assert [tool.name for tool in tools] == ["bash", "str_replace_based_edit_tool", "memory"]
    assert all(tool.is_valid() for tool in tools)
    assert set(tools[0].parameters["properties"]) == {"command", "restart"}
    commands = tools[1].parameters["properties"]["command"]["enum"]
    assert commands == ["view", "create", "str_replace", "insert"]
    error = refusal(read, tools=[*given, {"type": "computer_20250124", "name": "computer"}])
    assert (error.code, error.param) == (Code.NOT_SUPPORTED, "tools[6].type")


def test_tools_come_and_go_on_the_way() -> None:
    """Each block says so at its place; what is there at the end, the model is told of."""

    def change(kind: str, **tool: Any) -> dict[str, Any]:
        return {"type": f"tool_{kind}", "tool": {"type": "tool_reference"} | tool}

    def offered(*blocks: dict[str, Any], **fields: Any) -> list[str]:
        request = read(messages=[USER, {"role": "system", "content": list(blocks)}], tools=[TOOL], **fields)
        assert [message.role for message in request.messages] == ["user"]
        return [tool.name for tool in request.tools]

    defined = change("addition", type="tool_definition", definition=TOOL | {"name": "g"})
    assert offered(change("removal", name="f")) == []
    assert offered(change("removal", name="f"), change("addition", name="f")) == ["f"]
    assert offered(defined) == ["f", "g"]
    assert offered(defined, tool_choice={"type": "none"}) == []
    assert offered(change("removal", name="f"), defined, tool_choice={"type": "tool", "name": "g"}) == ["g"]
    elsewhere = [
        change("addition", type="mcp_toolset_reference", server_name="s"),
        change("addition", type="tool_definition", definition=SEARCH),
        change("removal", name="web_search"),
    ]
    assert offered(*elsewhere) == ["f"]
    summary = {"type": "compaction", "content": "so far", "tool_changes": [defined]}
    request = read(messages=[{"role": "assistant", "content": [summary]}], tools=[TOOL])
    assert [tool.name for tool in request.tools] == ["f", "g"]


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
