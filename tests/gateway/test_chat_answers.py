"""How answers to chats are written, whole and streamed."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.openai import chat as openai_chat
from gateway.dialects.openai import completions as openai_completions
from gateway.dialects.openai.chat_answer import ChatRenderer
from ipc.messages.answers import Choice, Timings, TokenLogprob, ToolCallDelta, Usage
from ipc.messages.conversation import ToolCall
from ipc.messages.replies import Delta, Finished, Started
from tests import streams
from tests.gateway.parsing import TOOL, USER, parsed

CUSTOM = {"type": "custom", "custom": {"name": "patch"}}
STARTED = Started(id=1, prompt_tokens=1)
TEXT = st.text(st.characters(codec="utf-8"), max_size=30)


def renderer(**fields: Any) -> ChatRenderer:
    body = {"model": "m", "messages": [USER]} | fields
    return parsed(openai_chat.parse, json.dumps(body).encode())[1]


def finished(*choices: Choice) -> Finished:
    return Finished(id=1, choices=list(choices), usage=Usage(), timings=Timings())


def whole(answer: ChatRenderer, *choices: Choice) -> list[dict[str, Any]]:
    return json.loads(answer.whole(STARTED, finished(*choices)))["choices"]


def deltas(stream: bytes) -> list[dict[str, Any]]:
    """The deltas of a piece of stream."""
    events = [event for event in stream.split(b"\n\n") if event and event != b"data: [DONE]"]
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events]
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"]]


def begin(name: str, index: int = 0, arguments: str = "") -> ToolCallDelta:
    return ToolCallDelta(index=index, call_id=f"c{index}", name=name, arguments=arguments)


def test_text_reasoning_and_calls_come_in_chunks_of_their_own() -> None:
    answer = renderer(tools=[TOOL], stream=True)
    calls = [begin("f"), ToolCallDelta(index=0, arguments="{}")]
    delta = Delta(id=1, tokens=4, reasoning="hm", text="so", tool_calls=calls)
    assert deltas(answer.delta(delta)) == [
        {"reasoning_content": "hm", "reasoning": "hm"},
        {"content": "so"},
        {
            "tool_calls": [
                {"index": 0, "id": "c0", "type": "function", "function": {"name": "f", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
    ]


def test_the_first_chunk_of_a_call_has_no_arguments_even_where_they_come_with_its_name() -> None:
    first, second = deltas(
        renderer(tools=[TOOL]).delta(Delta(id=1, tokens=1, tool_calls=[begin("f", 0, "{}")]))
    )
    assert first["tool_calls"][0]["function"] == {"name": "f", "arguments": ""}
    assert second == {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}


def test_a_call_of_a_custom_tool_is_its_text() -> None:
    call = ToolCall(id="c", name="patch", arguments='{"input":"a\\nb"}')
    (choice,) = whole(renderer(tools=[TOOL, CUSTOM]), Choice(reason="tool_calls", tool_calls=[call]))
    assert choice["message"]["tool_calls"] == [
        {"id": "c", "type": "custom", "custom": {"name": "patch", "input": "a\nb"}}
    ]
    assert choice["finish_reason"] == "tool_calls"


def test_the_text_of_a_custom_tool_streams_without_its_quotes() -> None:
    answer = renderer(tools=[TOOL, CUSTOM], stream=True)
    pieces = ['{"in', 'put": "a', "\\", 'n b"', "}"]
    stream = answer.delta(Delta(id=1, tokens=1, tool_calls=[begin("patch")]))
    for piece in pieces:
        call = ToolCallDelta(index=0, arguments=piece)
        stream += answer.delta(Delta(id=1, tokens=1, tool_calls=[call]))
    stream += answer.delta(Delta(id=1, tokens=1, tool_calls=[begin("f", 1, "{}")]))
    calls = [delta["tool_calls"][0] for delta in deltas(stream)]
    assert calls[0] == {"index": 0, "id": "c0", "type": "custom", "custom": {"name": "patch", "input": ""}}
    assert "".join(call["custom"]["input"] for call in calls[:-2]) == "a\n b"
    assert calls[-1] == {"index": 1, "function": {"arguments": "{}"}}


def test_arguments_of_another_form_are_told_in_the_end() -> None:
    answer = renderer(tools=[CUSTOM], stream=True)
    answer.delta(Delta(id=1, tokens=1, tool_calls=[begin("patch", 0, '{"x": 1}')]))
    held, end = deltas(answer.finished(finished(Choice(reason="tool_calls"))))
    assert held == {"tool_calls": [{"index": 0, "custom": {"input": '{"x": 1}'}}]}
    assert end == {}


def test_old_clients_get_a_function_call() -> None:
    fields = {"functions": [{"name": "f"}]}
    call = ToolCall(id="c", name="f", arguments="{}")
    (choice,) = whole(renderer(**fields), Choice(reason="tool_calls", tool_calls=[call]))
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {"name": "f", "arguments": "{}"}
    assert "tool_calls" not in choice["message"]
    answer = renderer(stream=True, **fields)
    assert deltas(answer.delta(Delta(id=1, tokens=1, tool_calls=[begin("f", 0, "{}")]))) == [
        {"function_call": {"name": "f", "arguments": ""}},
        {"function_call": {"arguments": "{}"}},
    ]
    assert b'"finish_reason":"function_call"' in answer.finished(finished(Choice(reason="tool_calls")))


def test_a_thought_is_hidden_where_that_was_asked_for() -> None:
    for fields in ({"include_reasoning": False}, {"reasoning": {"exclude": True}}):
        answer = renderer(**fields)
        (choice,) = whole(answer, Choice(reason="stop", text="a", reasoning="hm"))
        assert (choice["message"]["reasoning_content"], choice["message"]["reasoning"]) == (None, None)
        delta = Delta(id=1, tokens=2, reasoning="hm", text="a")
        assert deltas(answer.delta(delta)) == [{"content": "a"}]
        assert answer.delta(Delta(id=1, tokens=1, reasoning="hm")) == b""
    (choice,) = whole(renderer(include_reasoning=True), Choice(reason="stop", reasoning="hm"))
    assert choice["message"]["reasoning"] == "hm"


def test_every_event_is_one_line_for_everybody() -> None:
    """Some clients split a stream wherever Unicode knows the end of a line."""
    text = "a\u0085\u2028\u2029b"
    told = [TokenLogprob(token_id=1, token=text, raw=b"", logprob=-1.0)]
    calls = [begin("f", 0, text), begin("patch", 1, json.dumps({"input": text}, ensure_ascii=False))]
    answer = renderer(tools=[TOOL, CUSTOM], stream=True, logprobs=True)
    delta = Delta(id=1, tokens=1, reasoning=text, text=text, tool_calls=calls, logprobs=told)
    body = json.dumps({"model": "m", "prompt": "x", "logprobs": 1}).encode()
    completion = parsed(openai_completions.parse, body)[1]
    for stream in (answer.delta(delta), completion.delta(Delta(id=1, tokens=1, text=text, logprobs=told))):
        events = stream.decode().split("\n\n")[:-1]
        assert all(len(event.splitlines()) == 1 for event in events)
        assert [text in event for event in events] == [False] * len(events)
    assert "".join(each.get("content", "") for each in deltas(answer.delta(delta))) == text


def test_obfuscated_chunks_do_not_tell_how_long_their_text_is() -> None:
    options = {"stream": True, "stream_options": {"include_obfuscation": True, "include_usage": True}}
    chat = renderer(**options)
    body = json.dumps({"model": "m", "prompt": "x"} | options).encode()
    completion = parsed(openai_completions.parse, body)[1]
    end = finished(Choice(reason="stop"))
    noises = set()
    for answer in (chat, completion):
        for text in ("a", "é", "abc", "a longer piece of text", "x" * 200):
            event = answer.delta(Delta(id=1, tokens=1, text=text))
            chunk = json.loads(event.removeprefix(b"data: "))
            choice = chunk["choices"][0]
            assert choice.get("text", choice.get("delta", {}).get("content")) == text
            assert len(event) % 64 == 0
            noises.add(chunk["obfuscation"])
        for event in (answer.started(STARTED) + answer.finished(end)).split(b"\n\n")[:-2]:
            assert "obfuscation" in json.loads(event.removeprefix(b"data: "))
    assert len(noises) > 5, "it is random"
    plain = renderer(stream=True, stream_options={"include_obfuscation": False})
    assert b"obfuscation" not in plain.delta(Delta(id=1, tokens=1, text="a"))


@st.composite
def answers(draw: st.DrawFn) -> tuple[Choice, list[Delta]]:
    """An answer, and the pieces in which it might come."""
    text, reasoning = draw(TEXT), draw(TEXT)
    names = draw(st.lists(st.sampled_from(("f", "g")), max_size=3))
    calls = [
        ToolCall(id=f"c{i}", name=name, arguments=json.dumps({"input": draw(TEXT)}))
        for i, name in enumerate(names)
    ]
    pieces = [Delta(id=1, tokens=1, reasoning=each) for each in cut(draw, reasoning)]
    pieces += [Delta(id=1, tokens=1, text=each) for each in cut(draw, text)]
    for i, call in enumerate(calls):
        news = [
            begin(call.name, i, ""),
            *(ToolCallDelta(index=i, arguments=each) for each in cut(draw, call.arguments)),
        ]
        pieces += [Delta(id=1, tokens=1, tool_calls=[each]) for each in news]
    reason = "tool_calls" if calls else "stop"
    return Choice(reason=reason, text=text, reasoning=reasoning, tool_calls=calls), pieces


def cut(draw: st.DrawFn, text: str) -> list[str]:
    """A text in pieces."""
    places = sorted(draw(st.sets(st.integers(0, len(text)), max_size=4)))
    return [text[start:end] for start, end in pairwise([0, *places, len(text)]) if start < end]


@given(answers(), st.booleans())
def test_a_stream_is_sound_and_adds_up_to_the_whole_answer(
    answer: tuple[Choice, list[Delta]], obfuscated: bool
) -> None:
    choice, pieces = answer
    options = {"include_usage": True, "include_obfuscation": obfuscated}
    tools = [TOOL, {"type": "function", "function": {"name": "g"}}]
    writer = renderer(tools=tools, stream=True, stream_options=options)
    end = finished(choice)
    stream = writer.started(STARTED) + b"".join(map(writer.delta, pieces)) + writer.finished(end)
    (streamed,) = streams.chat(stream, usage=True)["choices"]
    (told,) = whole(renderer(tools=tools), choice)
    assert streamed["finish_reason"] == told["finish_reason"]
    assert streamed["message"].items() <= told["message"].items()
