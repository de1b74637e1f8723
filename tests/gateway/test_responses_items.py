"""Items of the Responses API as messages, and its tools as the model is told of them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.openai.responses import request
from gateway.dialects.openai.responses.request import Creation
from gateway.dialects.thoughts import seal
from ipc.errors import Code, CortexError
from ipc.messages.conversation import ImagePart, Message, TextPart, ToolCall
from ipc.messages.requests import Generate
from ipc.messages.sampling import Structured, Thinking
from tests.gateway.parsing import parsed

FUNCTION = {
    "type": "function",
    "name": "shell",
    "description": "runs it",
    "parameters": {"type": "object", "properties": {"command": {"type": "string"}}},
    "strict": False,
}
CUSTOM = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edits files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'},
}
NAMESPACE = {
    "type": "namespace",
    "name": "mcp__notes",
    "description": "Notes.",
    "tools": [{"type": "function", "name": "read", "parameters": {"type": "object"}}],
}
HOSTED = [{"type": kind} for kind in ("web_search", "image_generation", "tool_search", "local_shell", "new")]
CALL = {"type": "function_call", "call_id": "c1", "name": "shell", "arguments": "{}"}
PIXEL = base64.b64encode(b"image").decode()


def read(given: Any = "hello", **fields: Any) -> Creation:
    body = json.dumps({"model": "m", "input": given} | fields).encode()
    return parsed(lambda body, asker: request.read(body, asker, None), body)


def asked(given: Any = "hello", **fields: Any) -> Generate:
    return read(given, **fields).generate


def refusal(given: Any = "hello", **fields: Any) -> CortexError:
    with pytest.raises(CortexError) as caught:
        read(given, **fields)
    return caught.value


def test_text_is_a_message_of_the_user() -> None:
    assert asked("hello").messages == [Message(role="user", content="hello")]
    assert asked("hello", instructions="be brief").messages == [
        Message(role="system", content="be brief"),
        Message(role="user", content="hello"),
    ]


def test_more_items_than_a_conversation_may_have_are_refused_before_they_are_read() -> None:
    error = refusal([{"role": "user", "content": 5}] * 10_001)
    assert (error.code, error.param) == (Code.BAD_REQUEST, "input")


@pytest.mark.parametrize(
    ("field", "item"),
    [
        ("content", {"role": "user"}),
        ("output", {"type": "function_call_output", "call_id": "c"}),
        ("summary", {"type": "reasoning"}),
    ],
)
def test_more_parts_than_an_item_may_have_are_refused(field: str, item: dict[str, Any]) -> None:
    error = refusal([item | {field: [{"type": "text", "text": "x"}] * 10_001}])
    assert (error.code, error.param) == (Code.BAD_REQUEST, f"input[0].{field}")


def test_items_of_the_assistant_that_follow_one_another_are_one_turn() -> None:
    items = [
        {"role": "developer", "content": "rules"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "go"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": seal("hm")},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
        },
        CALL,
        {"type": "custom_tool_call", "call_id": "c2", "name": "apply_patch", "input": 'a "b"\n'},
        {"type": "function_call_output", "call_id": "c1", "output": "ok"},
        {
            "type": "custom_tool_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
        },
        {"role": "assistant", "content": "Done."},
    ]
    assert asked(items).messages == [
        Message(role="developer", content="rules"),
        Message(role="user", content="go"),
        Message(
            role="assistant",
            content="I look.",
            reasoning="hm",
            tool_calls=[
                ToolCall(id="c1", name="shell", arguments="{}"),
                ToolCall(
                    id="c2", name="apply_patch", arguments=json.dumps({"input": 'a "b"\n'}).replace(": ", ":")
                ),
            ],
        ),
        Message(role="tool", content="ok", tool_call_id="c1"),
        Message(role="tool", content=[TextPart(text="a"), TextPart(text="b")], tool_call_id="c2"),
        Message(role="assistant", content="Done."),
    ]


def test_a_file_of_text_is_its_text_below_its_name() -> None:
    part = {"type": "input_file", "filename": "a.py", "file_data": "data:text/plain;base64,eCA9IDE="}
    assert asked([{"role": "user", "content": [part]}]).messages == [
        Message(role="user", content="a.py:\nx = 1")
    ]
    elsewhere = [
        (part | {"file_data": None, "file_id": "file-1"}, "file_id"),
        (part | {"file_data": None, "file_url": "http://x"}, "file_url"),
        ({"type": "input_image", "file_id": "file-1"}, "file_id"),
    ]
    for other, member in elsewhere:
        assert refusal([{"role": "user", "content": [other]}]).param == f"input[0].content[0].{member}"


def test_effort_and_form_may_be_said_on_the_way() -> None:
    form = {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}}
    items = [
        {"type": "configuration_update", "reasoning": {"effort": "high"}, "text": form},
        {"role": "user", "content": "hello"},
        {"type": "configuration_update", "reasoning": {"effort": "none"}},
    ]
    request = asked(items, reasoning={"effort": "low", "summary": "auto"})
    assert request.messages == [Message(role="user", content="hello")]
    assert request.thinking == Thinking(enabled=False, effort="none")
    assert request.structured == Structured(json={"type": "object"})
    items[2]["reasoning"]["effort"] = 5
    assert refusal(items).param == "input[2].reasoning.effort"


def test_a_conversation_is_compacted_elsewhere() -> None:
    error = refusal([{"role": "user", "content": "x"}, {"type": "compaction_trigger"}])
    assert error.param == "input[1].type"
    assert "/v1/responses/compact" in error.message


def test_thoughts_come_back_in_each_form_but_not_those_that_others_sealed() -> None:
    def thought(**item: Any) -> str | None:
        items = [
            {"type": "reasoning", "id": "rs", "summary": []} | item,
            {"role": "assistant", "content": "x"},
        ]
        return asked(items).messages[0].reasoning

    assert thought(encrypted_content=seal("née")) == "née"
    assert thought(content=[{"type": "reasoning_text", "text": "hm"}]) == "hm"
    assert (
        thought(summary=[{"type": "summary_text", "text": "a"}, {"type": "summary_text", "text": "b"}])
        == "a\nb"
    )
    assert thought(encrypted_content="gAAAAABo", summary=[{"type": "summary_text", "text": "short"}]) is None


def test_images_are_taken_and_refusals_are_text() -> None:
    image = {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}", "detail": "auto"}
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "see"}, image]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        CALL,
        {"type": "function_call_output", "call_id": "c1", "output": [image]},
    ]
    picture = ImagePart(data=b"image", media_type="image/png")
    messages = asked(items).messages
    assert messages[0].content == [TextPart(text="see"), picture]
    assert messages[1].content == "no"
    assert messages[2].content == [picture]


def test_kinds_that_nobody_here_can_serve_are_skipped_with_their_outputs() -> None:
    items = [
        {"role": "user", "content": "go"},
        {"type": "local_shell_call", "call_id": "s1", "action": {"type": "exec"}, "status": "completed"},
        {"type": "function_call_output", "call_id": "s1", "output": "listing"},
        {"type": "web_search_call", "id": "ws", "action": {}},
        {"type": "ghost_snapshot", "ghost_commit": 1},
        {"type": "compaction", "encrypted_content": "gAAAA"},
    ]
    assert asked(items).messages == [Message(role="user", content="go")]


def test_tools_are_functions_to_the_model() -> None:
    creation = read(tools=[FUNCTION, CUSTOM, NAMESPACE, *HOSTED])
    tools = creation.generate.tools
    assert [tool.name for tool in tools] == ["shell", "apply_patch", "mcp__notes__read"]
    function = {key: FUNCTION[key] for key in ("name", "description", "parameters", "strict")}
    assert tools[0].definition == {"type": "function", "function": function}
    assert tools[1].parameters["properties"]["input"]["type"] == "string"
    assert 'start: "x"' in tools[1].definition["function"]["description"]
    assert creation.response["tools"][3:] == [NAMESPACE, *HOSTED][1:]
    assert creation.generate.must_call == []


def test_tools_that_come_within_the_conversation_count() -> None:
    items = [
        {"type": "additional_tools", "role": "developer", "tools": [FUNCTION]},
        {"role": "user", "content": "x"},
    ]
    assert [tool.name for tool in asked(items).tools] == ["shell"]
    assert (
        refusal(
            [{"type": "additional_tools", "tools": [{"type": "function"}]}, {"role": "user", "content": "x"}]
        ).param
        == "input[0].tools[0].name"
    )


def test_choice_of_tools() -> None:
    tools = [FUNCTION, CUSTOM, NAMESPACE]
    both = [{"type": "function", "name": "shell"}, {"type": "custom", "name": "apply_patch"}]

    def chosen(choice: Any) -> tuple[list[str], list[str]]:
        request = asked(tools=tools, tool_choice=choice)
        return [tool.name for tool in request.tools], request.must_call

    names = ["shell", "apply_patch", "mcp__notes__read"]
    assert chosen("auto") == (names, [])
    assert chosen("none") == ([], [])
    assert chosen("required") == (names, names)
    assert chosen({"type": "function", "name": "shell"}) == (names, ["shell"])
    assert chosen({"type": "custom", "name": "apply_patch"}) == (names, ["apply_patch"])
    assert chosen({"type": "function", "name": "read", "namespace": "mcp__notes"}) == (names, names[2:])
    assert chosen({"type": "allowed_tools", "mode": "auto", "tools": both}) == (names[:2], [])
    assert chosen({"type": "allowed_tools", "mode": "required", "tools": both}) == (names, names[:2])
    for wrong, param in (
        ({"type": "function", "name": "apply_patch"}, "tool_choice.name"),
        ({"type": "function"}, "tool_choice.name"),
        ({"type": "allowed_tools", "tools": both}, "tool_choice.mode"),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "custom"}]},
            "tool_choice.tools[0].name",
        ),
        ({"type": "web_search_preview"}, "tool_choice.type"),
        ("sometimes", "tool_choice"),
    ):
        assert refusal(tools=tools, tool_choice=wrong).param == param


@pytest.mark.parametrize("kind", ["shell", "apply_patch", "tool_search", "web_search"])
def test_who_must_call_a_tool_that_is_skipped_is_told_which(kind: str) -> None:
    error = refusal(tools=[{"type": kind}], tool_choice="required")
    assert error.param == "tool_choice"
    assert f"'{kind}' is not supported" in error.message
    assert asked(tools=[{"type": kind}]).tools == []


def test_fields_with_an_effect_have_it() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    request = asked(
        temperature=0.5,
        top_p=0.9,
        max_output_tokens=7,
        top_logprobs=2,
        reasoning={"effort": "low"},
        text={"format": {"type": "json_schema", "name": "n", "schema": schema}, "verbosity": "low"},
        parallel_tool_calls=False,
        stream=True,
    )
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.logprobs) == (0.5, 0.9, 7, 2)
    assert request.thinking == Thinking(enabled=True, effort="low")
    assert request.structured == Structured(json=schema)
    assert request.stream
    assert not request.parallel_tool_calls
    assert asked(reasoning={"effort": "none"}).thinking == Thinking(enabled=False, effort="none")
    assert asked(include=["message.output_text.logprobs"]).sampling.logprobs == 0
    assert asked(text={"format": {"type": "json_object"}}).structured == Structured(json_object=True)
    assert asked().sampling.logprobs is None


def test_what_codex_sends_is_taken() -> None:
    request = asked(
        [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
        instructions="You are Codex.",
        tools=[FUNCTION, CUSTOM, NAMESPACE, {"type": "web_search", "external_web_access": True}],
        tool_choice="auto",
        parallel_tool_calls=True,
        reasoning={"effort": "medium", "summary": "auto"},
        store=False,
        stream=True,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="01997f3a-6a5c-7d10-8c3b-5a1d0b6a3f21",
        client_metadata={"x": "y"},
        service_tier="ultrafast",
        text={"verbosity": "medium"},
    )
    assert [message.role for message in request.messages] == ["system", "user"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_video"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": 5}]}, "input[0].type"),
        ({"input": [CALL | {"arguments": {}}]}, "input[0].arguments"),
        ({"input": [CALL | {"call_id": ""}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c9", "output": "x"}]}, "input[0].call_id"),
        ({"tools": [{}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [FUNCTION, FUNCTION]}, "tools[1].name"),
        ({"tools": [FUNCTION | {"parameters": []}]}, "tools[0].parameters"),
        ({"tools": [CUSTOM | {"format": {"type": "grammar"}}]}, "tools[0].format.syntax"),
        ({"tools": [NAMESPACE | {"tools": [{"type": "custom"}]}]}, "tools[0].tools[0].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": "high"}, "top_p"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"reasoning": {"summary": "long"}}, "reasoning.summary"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"truncation": "middle"}, "truncation"),
        ({"metadata": {"a": 1}}, "metadata[...]"),
        ({"include": "all"}, "include"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"service_tier": 5}, "service_tier"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    error = refusal(**({"given": fields.pop("input")} if "input" in fields else {}), **fields)
    assert (error.param, error.code in (Code.BAD_REQUEST, Code.NOT_SUPPORTED)) == (param, True)
    assert error.message.startswith(param)


# --- any conversation -----------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)
PICTURES = st.binary(min_size=1, max_size=4).map(lambda data: ImagePart(data=data, media_type="image/png"))
PARTS = st.lists(TEXTS.map(lambda text: TextPart(text=text)) | PICTURES, min_size=2, max_size=3)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Turns of a user, each with an answer, some of which come after calls of tools."""
    messages = [
        Message(role=role, content=draw(TEXTS))
        for role in draw(st.lists(st.sampled_from(["system", "developer"]), max_size=2))
    ]
    number = 0
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message(role="user", content=draw(TEXTS | PARTS)))
        for _ in range(draw(st.integers(0, 2))):
            calls = []
            for _ in range(draw(st.integers(1, 2))):
                number += 1
                arguments = draw(st.sampled_from(["{}", '{"a": 1}', '{"cut']))
                calls.append(ToolCall(id=f"c{number}", name="f", arguments=arguments))
            thought = draw(st.none() | TEXTS)
            messages.append(
                Message(
                    role="assistant", content=draw(st.just("") | TEXTS), reasoning=thought, tool_calls=calls
                )
            )
            messages += [
                Message(role="tool", content=draw(TEXTS | PARTS), tool_call_id=call.id) for call in calls
            ]
        messages.append(Message(role="assistant", content=draw(TEXTS), reasoning=draw(st.none() | TEXTS)))
    return messages


def as_items(message: Message) -> list[dict[str, Any]]:
    """A message as a client of this API keeps it."""
    kind = "output_text" if message.role == "assistant" else "input_text"
    content: Any = message.content
    if not isinstance(content, str):
        content = [
            {"type": kind, "text": part.text}
            if isinstance(part, TextPart)
            else {
                "type": "input_image",
                "image_url": f"data:image/png;base64,{base64.b64encode(part.data).decode()}",
            }
            for part in content
        ]
    if message.role == "tool":
        return [{"type": "function_call_output", "call_id": message.tool_call_id, "output": content}]
    items: list[dict[str, Any]] = []
    if message.reasoning is not None:
        items.append(
            {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": seal(message.reasoning)}
        )
    if content or not message.tool_calls:
        items.append({"type": "message", "role": message.role, "content": content})
    items += [
        {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": call.arguments}
        for call in message.tool_calls
    ]
    return items


@given(conversations())
def test_any_conversation_is_read_as_it_is(messages: list[Message]) -> None:
    items = [item for message in messages for item in as_items(message)]
    assert asked(items).messages == messages
