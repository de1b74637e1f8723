"""What clients keep of a chat and ask of it, in all their shapes: histories, tools, thinking."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.openai import chat as openai_chat
from gateway.dialects.openai.custom_tools import InputReader, as_arguments, as_input
from ipc.errors import Code, CortexError
from ipc.messages.conversation import Message, TextPart, ThinkingPart, Tool, ToolCall
from ipc.messages.sampling import Thinking
from tests.gateway.parsing import TOOL, USER, chat, parsed, refusal


def history(*turns: dict[str, Any]) -> list[Message]:
    return chat(messages=list(turns)).messages


def called(arguments: Any) -> str:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return history({"role": "assistant", "tool_calls": [call]})[0].tool_calls[0].arguments


# --- histories ------------------------------------------------------------------------------------------


def test_a_refusal_is_something_that_the_assistant_said() -> None:
    part = {"type": "refusal", "refusal": "no"}
    text = {"type": "text", "text": "well,"}
    both = [TextPart(text="well,"), TextPart(text="no")]
    assert history({"role": "assistant", "content": None, "refusal": "no"})[0].content == "no"
    assert history({"role": "assistant", "content": [text, part]})[0].content == both
    assert history({"role": "assistant", "content": "well,", "refusal": "no"})[0].content == both
    assert history({"role": "assistant", "content": "yes", "refusal": None})[0].content == "yes"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"a": 1}', '{"a": 1}'),
        ("", ""),
        ('{"path": "/tmp/a", "text": "half of', '{"path": "/tmp/a", "text": "half of'),
        ({"a": {"b": [1.0, None]}}, '{"a": {"b": [1.0, null]}}'),
        ({}, "{}"),
        (None, "{}"),
        ({"n": 10**30}, '{"n": 1000000000000000000000000000000}'),
    ],
)
def test_arguments_are_taken_as_a_text_or_as_the_object_and_kept_as_written(
    arguments: Any, text: str
) -> None:
    assert called(arguments) == text


@pytest.mark.parametrize("arguments", [1, True, ["a"]])
def test_other_arguments_are_refused_where_they_stand(arguments: Any) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    error = refusal(chat, messages=[{"role": "assistant", "tool_calls": [call]}])
    assert error.code == Code.BAD_REQUEST
    assert error.param == "messages[0].tool_calls[0].function.arguments"


def test_a_call_and_a_result_of_old_clients_belong_together() -> None:
    messages = history(
        USER,
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": 1}'}},
        {"role": "function", "name": "f", "content": "2"},
    )
    (call,) = messages[1].tool_calls
    assert (call.name, call.arguments) == ("f", '{"a": 1}')
    assert messages[2] == Message(role="tool", content="2", tool_call_id=call.id, name="f")


def test_a_result_without_its_call_goes_to_the_template() -> None:
    assert history(USER, {"role": "tool", "content": "2"})[1] == Message(role="tool", content="2")
    lost = history(USER, {"role": "tool", "tool_call_id": "c9", "content": "2"})[1]
    assert lost.tool_call_id == "c9"
    assert history(USER, {"role": "function", "name": "f", "content": "2"})[1].tool_call_id is None


def test_a_call_of_a_custom_tool_is_kept_as_one_of_the_function_that_stands_for_it() -> None:
    call = {"id": "c", "type": "custom", "custom": {"name": "patch", "input": 'a "b"\n'}}
    message = history({"role": "assistant", "tool_calls": [call]})[0]
    assert message.tool_calls == [ToolCall(id="c", name="patch", arguments='{"input":"a \\"b\\"\\n"}')]


@pytest.mark.parametrize(
    ("turn", "reasoning"),
    [
        ({"reasoning_content": "hm"}, "hm"),
        ({"reasoning": "hm"}, "hm"),
        ({"reasoning_content": "hm", "reasoning": "hm"}, "hm"),
        ({"reasoning_content": None, "reasoning": "hm"}, "hm"),
        ({"reasoning_details": [{"type": "reasoning.text", "text": "h"}, {"text": "m"}]}, "hm"),
        ({"reasoning_details": [{"type": "reasoning.summary", "summary": "hm"}]}, "hm"),
        ({"reasoning": "hm", "reasoning_details": [{"type": "reasoning.text", "text": "hm"}]}, "hm"),
        ({"reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]}, None),
        ({"reasoning_details": None}, None),
    ],
)
def test_a_thought_is_taken_under_every_name(turn: dict[str, Any], reasoning: str | None) -> None:
    assert history({"role": "assistant", "content": "a"} | turn)[0].reasoning == reasoning


def file(data: bytes, head: str = "data:text/x-python;base64,", **more: Any) -> dict[str, Any]:
    return {"type": "file", "file": {"file_data": head + base64.b64encode(data).decode(), **more}}


@pytest.mark.parametrize("head", ["", "data:text/x-python;base64,"])
def test_a_file_of_text_is_its_text_below_its_name(head: str) -> None:
    parts = [file("é = 1".encode(), head, filename="a.py"), file(b"x", head)]
    [turn] = history({"role": "user", "content": parts})
    assert turn.content == [TextPart(text="a.py:\né = 1"), TextPart(text="x")]


@pytest.mark.parametrize(
    ("given", "member"),
    [
        (file(b"%PDF-1.7"), "file_data"),
        (file(b"\xff\xd8"), "file_data"),
        (file(b"a\0b"), "file_data"),
        (file(b"", "data:,!"), "file_data"),
        ({"type": "file", "file": {"file_data": "!"}}, "file_data"),
        ({"type": "file", "file": {"filename": "a.py"}}, "file_data"),
        ({"type": "file", "file": {"file_id": "file-1"}}, "file_id"),
    ],
)
def test_any_other_file_is_refused(given: dict[str, Any], member: str) -> None:
    with pytest.raises(CortexError) as refused:
        history({"role": "user", "content": [given]})
    assert refused.value.param == f"messages[0].content[0].file.{member}"


def test_a_thought_may_be_a_part_as_mistral_has_it() -> None:
    content = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "a"},
    ]
    parts = history({"role": "assistant", "content": content})[0].content
    assert parts == [ThinkingPart(text="hm"), TextPart(text="a")]
    plain = [{"type": "thinking", "thinking": "hm"}]
    assert history({"role": "assistant", "content": plain})[0].content == [ThinkingPart(text="hm")]


@pytest.mark.parametrize(
    ("turn", "param"),
    [
        ({"role": "user", "content": 1}, "content"),
        ({"role": "user", "content": {"type": "text"}}, "content"),
        ({"role": "user", "content": [{"type": "text"}]}, "content[0].text"),
        ({"role": "user", "content": [{"text": "a"}]}, "content[0].type"),
        ({"role": "user", "content": ["a"]}, "content[0]"),
        ({"role": "assistant", "content": [{"type": "refusal"}]}, "content[0].refusal"),
        ({"role": "assistant", "refusal": 1}, "refusal"),
        ({"role": "assistant", "reasoning": 1}, "reasoning"),
        ({"role": "assistant", "reasoning_details": "x"}, "reasoning_details"),
        ({"role": "assistant", "tool_calls": {}}, "tool_calls"),
        ({"role": "assistant", "tool_calls": [{}]}, "tool_calls[0].function"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "tool_calls[0].function.name"),
        ({"role": "assistant", "tool_calls": [{"type": "custom"}]}, "tool_calls[0].custom"),
        ({"role": "assistant", "function_call": {"arguments": ""}}, "function_call.name"),
        ({"role": "tool", "tool_call_id": 5, "content": "a"}, "tool_call_id"),
        ({"role": "user", "name": []}, "name"),
        ({"role": 1}, "role"),
        ({"content": "a"}, "role"),
    ],
)
def test_a_wrong_turn_is_refused_by_its_place(turn: dict[str, Any], param: str) -> None:
    error = refusal(chat, messages=[USER, turn])
    assert (error.code, error.param) == (Code.BAD_REQUEST, f"messages[1].{param}")


BEGUN = [USER, {"role": "assistant", "content": "so"}]


def test_an_answer_goes_on_with_the_last_message_where_that_is_asked_for() -> None:
    assert not chat(messages=BEGUN).continue_final_message
    assert chat(messages=BEGUN, continue_final_message=True).continue_final_message
    fields = {"continue_final_message": True, "add_generation_prompt": False}
    assert chat(messages=BEGUN, **fields).continue_final_message
    assert chat(messages=[USER, BEGUN[1] | {"prefix": True}]).continue_final_message
    assert not chat(messages=[BEGUN[1] | {"prefix": True}, USER]).continue_final_message
    assert not chat(
        messages=BEGUN, add_generation_prompt=True, continue_final_message=False
    ).continue_final_message


def test_an_answer_cannot_go_on_and_begin_anew() -> None:
    both = {"continue_final_message": True, "add_generation_prompt": True}
    error = refusal(chat, messages=BEGUN, **both)
    assert (error.code, error.param) == (Code.BAD_REQUEST, "add_generation_prompt")
    error = refusal(chat, messages=BEGUN, add_generation_prompt=False)
    assert (error.code, error.param) == (Code.NOT_SUPPORTED, "add_generation_prompt")


def test_a_message_that_cannot_be_gone_on_with_is_named_as_the_client_does() -> None:
    body = {"model": "m", "messages": [USER | {"prefix": True}]}
    _, answer = parsed(openai_chat.parse, json.dumps(body).encode())
    error = CortexError(Code.BAD_REQUEST, "continue_final_message needs", param="continue_final_message")
    assert answer.in_client_words(error).param == "messages[0].prefix"


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)
PARTS = st.lists(st.builds(TextPart, text=TEXTS), min_size=1, max_size=3)
CALLS = st.lists(st.builds(ToolCall, id=NAMES, name=NAMES, arguments=TEXTS), max_size=3)
TURNS = st.one_of(
    st.builds(
        Message,
        role=st.sampled_from(("system", "developer", "user")),
        content=TEXTS | PARTS,
        name=st.none() | NAMES,
    ),
    st.builds(
        Message,
        role=st.just("assistant"),
        content=TEXTS | PARTS,
        reasoning=st.none() | TEXTS,
        tool_calls=CALLS,
    ),
    st.builds(Message, role=st.just("tool"), content=TEXTS | PARTS, tool_call_id=NAMES),
)


def as_client(message: Message) -> dict[str, Any]:
    """A message as OpenAI's clients keep it."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if not isinstance(message.content, str):
        turn["content"] = [{"type": "text", "text": part.text} for part in message.content]
    for ours, theirs in (("reasoning", "reasoning_content"), ("tool_call_id",) * 2, ("name",) * 2):
        if (value := getattr(message, ours)) is not None:
            turn[theirs] = value
    if message.tool_calls:
        turn["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return turn


@given(st.lists(TURNS, min_size=1, max_size=6))
def test_a_conversation_that_a_client_keeps_comes_back_as_it_was(messages: list[Message]) -> None:
    assert history(*map(as_client, messages)) == messages


# --- tools ----------------------------------------------------------------------------------------------

OTHER = {"type": "function", "function": {"name": "g"}}
CUSTOM = {"type": "custom", "custom": {"name": "patch", "description": "Edits files."}}


def test_functions_of_old_clients_are_tools() -> None:
    functions = [{"name": "f", "parameters": {"type": "object"}}, {"name": "g"}]
    request = chat(functions=functions)
    assert request.tools == [Tool(definition={"type": "function", "function": each}) for each in functions]
    assert not request.parallel_tool_calls
    assert request.must_call == []
    assert chat(functions=functions, function_call={"name": "g"}).must_call == ["g"]
    assert chat(functions=functions, function_call="none").tools == []


def test_only_the_allowed_tools_can_be_called() -> None:
    def allowed(mode: str, *tools: dict[str, Any]) -> Any:
        choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(tools)}}
        return chat(tools=[TOOL, OTHER, CUSTOM], tool_choice=choice)

    custom = {"type": "custom", "custom": {"name": "patch"}}
    request = allowed("auto", OTHER, custom)
    assert ([tool.name for tool in request.tools], request.must_call) == (["g", "patch"], [])
    request = allowed("required", OTHER, custom)
    assert ([tool.name for tool in request.tools], request.must_call) == (["g", "patch"], ["g", "patch"])


def test_a_custom_tool_is_a_function_with_one_text() -> None:
    (tool,) = chat(tools=[CUSTOM]).tools
    assert (tool.name, tool.definition["function"]["description"]) == ("patch", "Edits files.")
    assert tool.parameters == {
        "type": "object",
        "properties": {"input": {"type": "string"}},
        "required": ["input"],
        "additionalProperties": False,
    }
    choice = {"type": "custom", "custom": {"name": "patch"}}
    assert chat(tools=[TOOL, CUSTOM], tool_choice=choice).must_call == ["patch"]


def test_the_grammar_of_a_custom_tool_is_told_and_held() -> None:
    grammar = {"type": "grammar", "grammar": {"syntax": "regex", "definition": "[a-c]+"}}
    (tool,) = chat(tools=[{"type": "custom", "custom": {"name": "t", "format": grammar}}]).tools
    assert tool.parameters["properties"]["input"] == {"type": "string", "pattern": "^(?:[a-c]+)$"}
    grammar = {"type": "grammar", "grammar": {"syntax": "lark", "definition": 'start: "a"'}}
    (tool,) = chat(tools=[{"type": "custom", "custom": {"name": "t", "format": grammar}}]).tools
    assert 'start: "a"' in tool.definition["function"]["description"]
    assert tool.text_grammar == 'start: "a"'


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": ["f"]}, "tools[0]"),
        ({"tools": [{}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "custom"}]}, "tools[0].custom"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].custom.name"),
        (
            {"tools": [{"type": "custom", "custom": {"name": "t", "format": {"type": "grammar"}}}]},
            "tools[0].custom.format.grammar",
        ),
        ({"functions": [{}]}, "functions[0].name"),
        ({"functions": [{"name": "f"}], "tools": [TOOL]}, "functions"),
        ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "function_call.name"),
        ({"function_call": {"name": "g"}}, "function_call"),
        ({"functions": [{"name": "f"}], "function_call": "perhaps"}, "function_call"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "custom", "custom": {"name": "f"}}},
            "tool_choice.custom.name",
        ),
        ({"tools": [CUSTOM], "tool_choice": OTHER}, "tool_choice.function.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "mcp"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}},
            "tool_choice.allowed_tools.tools",
        ),
        (
            {
                "tools": [TOOL],
                "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [OTHER]}},
            },
            "tool_choice.allowed_tools.tools[0].function.name",
        ),
        (
            {
                "tools": [TOOL],
                "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": []}},
            },
            "tool_choice.allowed_tools",
        ),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ],
)
def test_wrong_tools_are_refused_by_their_place(fields: dict[str, Any], param: str) -> None:
    error = refusal(chat, **fields)
    assert (error.code, error.param) == (Code.BAD_REQUEST, param)


def test_a_complaint_about_a_tool_names_what_the_client_sent() -> None:
    body = {"model": "m", "messages": [USER], "functions": [{"name": "f"}], "function_call": {"name": "f"}}
    _, answer = parsed(openai_chat.parse, json.dumps(body).encode())
    for ours, theirs in (("tools[0]", "functions[0]"), ("must_call", "function_call")):
        assert answer.in_client_words(CortexError(Code.BAD_REQUEST, "no", param=ours)).param == theirs


@given(TEXTS, st.lists(st.integers(1, 5)))
def test_the_text_of_a_custom_tool_is_the_same_however_its_arguments_are_cut(
    text: str, cuts: list[int]
) -> None:
    for arguments in (as_arguments(text), json.dumps({"input": text}), json.dumps({"z": 1, "input": text})):
        reader, start, read = InputReader(), 0, ""
        for cut in cuts:
            read += reader.push(arguments[start : start + cut])
            start += cut
        read += reader.push(arguments[start:]) + reader.finish()
        assert read == as_input(arguments) == text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("", ""),
        ("plain", "plain"),
        ('{"other": 1}', '{"other": 1}'),
        ('{"input": "cut', "cut"),
        ('{"input": "line\nend"}', "line\nend"),
        ('{"input": 5}', '{"input": 5}'),
        ('{"input": "\\udc00"}', "\ufffd"),
        ('{"input": "\\q"}', "\\q"),
        ("[" * 5000, "[" * 5000),
    ],
)
def test_arguments_of_another_form_are_no_lost_answer(arguments: str, text: str) -> None:
    assert as_input(arguments) == text


def test_a_text_that_does_not_come_first_is_found_at_the_end() -> None:
    arguments = json.dumps({"why": "so " * 1000, "input": "höm"})
    reader = InputReader()
    assert not any(reader.push(arguments[i : i + 3]) for i in range(0, len(arguments), 3))
    assert reader.finish() == "höm"


# --- thinking -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "thinking"),
    [
        ({}, Thinking()),
        ({"reasoning_effort": "none"}, Thinking(enabled=False, effort="none")),
        ({"reasoning_effort": ""}, Thinking()),
        ({"reasoning_effort": "high"}, Thinking(enabled=True, effort="high")),
        ({"reasoning": {"effort": "low"}}, Thinking(enabled=True, effort="low")),
        ({"reasoning": {"max_tokens": 100}}, Thinking(enabled=True, budget=100)),
        ({"reasoning": {"enabled": False}}, Thinking(enabled=False)),
        ({"thinking": {"type": "disabled"}}, Thinking(enabled=False)),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, Thinking(enabled=True, budget=9)),
        ({"thinking": {"type": "auto"}}, Thinking()),
        ({"thinking": {"budget_tokens": 9}}, Thinking(enabled=True, budget=9)),
        ({"thinking": False}, Thinking(enabled=False)),
        ({"enable_thinking": False}, Thinking(enabled=False)),
        ({"enable_thinking": False, "reasoning_effort": "high"}, Thinking(enabled=False, effort="high")),
        ({"enable_thinking": True, "thinking_budget": 50}, Thinking(enabled=True, budget=50)),
        ({"thinking_token_budget": 50}, Thinking(enabled=True, budget=50)),
        ({"thinking_budget_tokens": 0}, Thinking(enabled=False, budget=0)),
        ({"thinking_budget_tokens": -1}, Thinking(enabled=True)),
    ],
)
def test_how_much_to_think_is_understood_in_every_spelling(
    fields: dict[str, Any], thinking: Thinking
) -> None:
    assert chat(**fields).thinking == thinking


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning_effort": 1}, "reasoning_effort"),
        ({"reasoning_effort": "x" * 257}, "reasoning_effort"),
        ({"reasoning": "high"}, "reasoning"),
        ({"reasoning": {"max_tokens": -2}}, "reasoning.max_tokens"),
        ({"reasoning": {"enabled": "yes"}}, "reasoning.enabled"),
        ({"thinking": 1}, "thinking"),
        ({"thinking": {"type": "on"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1.5}}, "thinking.budget_tokens"),
        ({"enable_thinking": "true"}, "enable_thinking"),
        ({"thinking_budget": 1 << 63}, "thinking_budget"),
        ({"include_reasoning": 1}, "include_reasoning"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ],
)
def test_wrong_thinking_is_refused_by_its_place(fields: dict[str, Any], param: str) -> None:
    error = refusal(chat, **fields)
    assert (error.code, error.param) == (Code.BAD_REQUEST, param)
