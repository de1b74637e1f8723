"""How Anthropic's messages are written, event by event."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.anthropic import messages
from gateway.dialects.anthropic.identifiers import outward
from gateway.dialects.anthropic.renderer import MessageRenderer
from gateway.dialects.thoughts import seal, unseal
from ipc.errors import Code, CortexError
from ipc.messages.answers import Choice, Timings, ToolCallDelta, Usage
from ipc.messages.conversation import ToolCall
from ipc.messages.replies import Delta, Finished, Progress, Started
from tests import streams
from tests.gateway.parsing import parsed

SHOWN = {"type": "adaptive"}
HIDDEN = {"type": "adaptive", "display": "omitted"}


def renderer(thinking: dict[str, Any] | None = None) -> MessageRenderer:
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
    if thinking is not None:
        body["thinking"] = thinking
    return parsed(messages.parse, json.dumps(body).encode())[1]


def end(reason: str = "stop", **fields: Any) -> Finished:
    usage = Usage(prompt_tokens=7, completion_tokens=5, cached_tokens=3)
    return Finished(id=0, choices=[Choice(reason=reason, **fields)], usage=usage, timings=Timings())


def delta(**fields: Any) -> Delta:
    return Delta(id=0, tokens=1, **fields)


def streamed(deltas: Sequence[Delta], finished: Finished, thinking: dict[str, Any] | None = None) -> bytes:
    writer = renderer(thinking)
    pieces = [writer.started(Started(id=0, prompt_tokens=7)), *map(writer.delta, deltas)]
    return b"".join([*pieces, writer.finished(finished)])


def blocks(*deltas: Delta, thinking: dict[str, Any] | None = None, reason: str = "stop") -> list[Any]:
    return streams.anthropic(streamed(deltas, end(reason), thinking))["content"]


def call(index: int, arguments: str = "", name: str | None = None) -> ToolCallDelta:
    return ToolCallDelta(
        index=index, call_id=None if name is None else f"call_{index}", name=name, arguments=arguments
    )


CALLED = {"caller": {"type": "direct"}}
CALL = {"type": "tool_use", "id": "toolu_0", "name": "f", "input": {"a": 1}, **CALLED}


def said(text: str) -> dict[str, Any]:
    """A block of text."""
    return {"type": "text", "text": text, "citations": []}


def test_the_first_event_says_what_the_input_was() -> None:
    first, *_, last, _ = streams.read(streamed([delta(text="a")], end()))
    assert first.data["message"]["usage"]["input_tokens"] == 7
    # What was cached is known later; the parts have nothing in common.
    usage = last.data["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]) == (4, 3, 5)


def test_events_have_their_types_as_names_and_nothing_else() -> None:
    body = streamed([delta(text="a")], end())
    assert [event.name for event in streams.read(body)] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert (
        b'\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}\n' in body
    )


def test_kinds_of_output_have_blocks_of_their_own() -> None:
    assert blocks(
        delta(reasoning="h"),
        delta(reasoning="m"),
        delta(text="so"),
        delta(text=" it"),
        delta(tool_calls=[call(0, name="f")]),
        delta(tool_calls=[call(0, '{"a"')]),
        delta(tool_calls=[call(0, ":1}")]),
        delta(text="and"),
        thinking=SHOWN,
        reason="tool_calls",
    ) == [
        {"type": "thinking", "thinking": "hm", "signature": seal("")},
        said("so it"),
        CALL,
        said("and"),
    ]


def test_several_calls_in_one_piece_are_several_blocks() -> None:
    calls = [call(0, '{"a":1}', "f"), call(1, "{}", "g")]
    assert blocks(delta(text="so", tool_calls=calls), reason="tool_calls") == [
        said("so"),
        CALL,
        {"type": "tool_use", "id": "toolu_1", "name": "g", "input": {}, **CALLED},
    ]


def test_a_thought_that_is_not_shown_is_in_its_signature() -> None:
    pieces = [delta(reasoning="h"), delta(reasoning="öm"), delta(text="so")]
    thought, text = blocks(*pieces, thinking=HIDDEN)
    assert (thought["thinking"], unseal(thought["signature"])) == ("", "höm")
    assert text == said("so")


@pytest.mark.parametrize("thinking", [None, {"type": "disabled"}])
def test_a_thought_that_nobody_asked_for_is_left_out(thinking: dict[str, Any] | None) -> None:
    assert blocks(delta(reasoning="h"), delta(text="so"), thinking=thinking) == [said("so")]


def test_an_answer_without_anything_is_a_message() -> None:
    assert blocks() == []
    assert blocks(delta(reasoning="h")) == []
    whole = json.loads(renderer().whole(Started(id=0, prompt_tokens=7), end()))
    assert (whole["content"], whole["stop_reason"]) == ([], "end_turn")


@pytest.mark.parametrize(
    ("fields", "reason", "sequence"),
    [
        ({"reason": "stop"}, "end_turn", None),
        ({"reason": "stop", "stop_sequence": "END"}, "stop_sequence", "END"),
        ({"reason": "length"}, "max_tokens", None),
        ({"reason": "length", "context_full": True}, "model_context_window_exceeded", None),
    ],
)
def test_it_says_why_it_ends(fields: dict[str, Any], reason: str, sequence: str | None) -> None:
    finished = end(**fields)
    told = [
        streams.anthropic(streamed([delta(text="a")], finished)),
        json.loads(renderer().whole(Started(id=0, prompt_tokens=7), finished)),
    ]
    assert [(each["stop_reason"], each["stop_sequence"]) for each in told] == [(reason, sequence)] * 2


def test_a_stop_sequence_behind_a_call_leaves_the_call_to_be_made() -> None:
    finished = end("tool_calls", stop_sequence="END")
    message = streams.anthropic(streamed([delta(tool_calls=[call(0, "{}", "f")])], finished))
    assert (message["stop_reason"], message["stop_sequence"]) == ("tool_use", None)


def test_a_call_that_was_cut_is_told_as_far_as_it_went() -> None:
    pieces = [delta(tool_calls=[call(0, '{"a": "b', "f")])]
    body = streamed(pieces, end("length"))
    assert b'"partial_json":"{\\"a\\": \\"b"' in body
    assert streams.anthropic(body)["stop_reason"] == "max_tokens"
    cut = end("length", tool_calls=[ToolCall(id="call_0", name="f", arguments='{"a": "b')])
    whole = json.loads(renderer().whole(Started(id=0, prompt_tokens=7), cut))
    assert whole["content"][0]["input"] == {"INVALID_JSON": '{"a": "b'}
    # Sent back, it is what the model wrote.
    conversation = [{"role": "user", "content": "x"}, {"role": "assistant", "content": whole["content"]}]
    body = json.dumps({"model": "m", "max_tokens": 9, "messages": conversation}).encode()
    assert parsed(messages.parse, body)[0].messages[1].tool_calls[0].arguments == '{"a": "b'


def test_a_whole_call_has_its_arguments_as_they_were_written() -> None:
    written = '{"n": 123456789012345678901234567890, "m":1.50, "o": "a"}'
    calls = [ToolCall(id="call_0", name="f", arguments=each) for each in (written, "", "[1]")]
    body = renderer().whole(Started(id=0, prompt_tokens=7), end("tool_calls", tool_calls=calls))
    assert f'"input":{written},'.encode() in body
    inputs = [block["input"] for block in json.loads(body)["content"]]
    assert inputs[1:] == [{}, {"INVALID_JSON": "[1]"}]


def test_silence_is_filled_with_comments_and_then_with_pings() -> None:
    writer = renderer()
    assert writer.waiting(None).startswith(b": ")
    assert writer.waiting(Progress(id=0, stage="loading", fraction=0.5)).startswith(b": loading 50%")
    writer.started(Started(id=0, prompt_tokens=7))
    assert writer.waiting(None) == b'event: ping\ndata: {"type":"ping"}\n\n'
    assert writer.waiting(Progress(id=0, stage="queued")).startswith(b": ")


@pytest.mark.parametrize("progress", [None, Progress(id=0, stage="loading", message="weights", fraction=0.5)])
@pytest.mark.parametrize(
    "output", [delta(text="a"), delta(reasoning="h"), delta(tool_calls=[call(0, "{}", "f")])]
)
def test_a_pause_in_a_block_adds_nothing_to_it_and_is_an_event(
    output: Delta, progress: Progress | None
) -> None:
    writer = renderer(HIDDEN)
    reason = "tool_calls" if output.tool_calls else "stop"
    body = writer.started(Started(id=0, prompt_tokens=7)) + writer.delta(output)
    pause = writer.waiting(progress)
    assert [event.name for event in streams.read(pause)] == ["content_block_delta"]
    assert (b": loading 50% weights" in pause) == (progress is not None)
    body += pause
    content = streams.anthropic(body + writer.finished(end(reason)))["content"]
    assert content == blocks(output, thinking=HIDDEN, reason=reason)


def test_an_error_is_the_last_event() -> None:
    writer = renderer()
    body = writer.started(Started(id=0, prompt_tokens=7)) + writer.delta(delta(text="a"))
    body += writer.failed(CortexError(Code.WORKER_DIED, "it died"))
    with pytest.raises(streams.Failed) as failure:
        streams.anthropic(body)
    assert failure.value.error == {"type": "overloaded_error", "message": "it died"}


def test_what_unicode_knows_as_line_ends_is_escaped() -> None:
    pieces = [delta(text="a\u2028b\u0085c\nd"), delta(reasoning="\u2029")]
    body = streamed(pieces, end(stop_sequence="\u2028"), SHOWN)
    assert len(body.decode().splitlines()) == body.count(b"\n")
    assert streams.anthropic(body)["content"][0]["text"] == "a\u2028b\u0085c\nd"


@pytest.mark.parametrize(("reason", "summary"), [("stop", "so far"), ("length", None)])
def test_a_compacted_conversation_is_one_block_and_nothing_where_it_was_cut(
    reason: str, summary: str | None
) -> None:
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
    body["compaction"] = {"type": "summarize"}
    write = parsed(messages.parse, json.dumps(body).encode())[1]
    whole = json.loads(write.whole(Started(id=0, prompt_tokens=7), end(reason, text="so far")))
    assert whole["content"] == [{"type": "compaction", "content": summary}]
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("compaction", None)
    pieces = [write.started(Started(id=0, prompt_tokens=7)), write.waiting(None)]
    pieces += [write.delta(delta(text="so ")), write.delta(delta(text="far")), write.finished(end(reason))]
    assert streams.anthropic(b"".join(pieces)) == whole


outputs = st.one_of(
    st.builds(delta, text=st.text(max_size=5)),
    st.builds(delta, reasoning=st.text(max_size=5)),
    st.builds(delta, text=st.text(max_size=5), reasoning=st.text(max_size=5)),
    st.just("call"),
)


@given(st.lists(outputs, max_size=12), st.sampled_from([None, SHOWN, HIDDEN]))
def test_any_output_in_any_order_makes_a_sound_stream(
    given: list[Any], thinking: dict[str, Any] | None
) -> None:
    deltas, calls, said = [], [], ""
    for each in given:
        if each == "call":
            index = len(calls)
            calls.append(outward(f"call_{index}"))
            deltas += [delta(tool_calls=[call(index, name="f")]), delta(tool_calls=[call(index, "{}")])]
        else:
            said += each.text
            deltas.append(each)
    content = blocks(*deltas, thinking=thinking, reason="tool_calls" if calls else "stop")
    assert [block["id"] for block in content if block["type"] == "tool_use"] == calls
    assert "".join(block["text"] for block in content if block["type"] == "text") == said
