"""Answers as the Responses API writes them: the same whole and in pieces, however they are cut."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects import RequestContext, Services
from gateway.dialects.large import PIECE, leaving
from gateway.dialects.openai.responses import background, request
from gateway.dialects.openai.responses.replay import Changes, follow
from gateway.dialects.openai.responses.request import Creation
from gateway.dialects.openai.responses.run import Run
from gateway.dialects.thoughts import unseal
from gateway.store import responses as kept
from gateway.store.response_store import ResponseStore
from gateway.store.retention import Limits
from ipc.errors import Code, CortexError
from ipc.messages.answers import (
    Alternative,
    Choice,
    FinishReason,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from ipc.messages.conversation import Message, ToolCall
from ipc.messages.replies import Delta, Finished, Progress, Started
from tests.gateway.conftest import PATIENCE
from tests.gateway.parsing import parsed
from tests.gateway.scripted_exchange import Script
from tests.streams import Failed, responses
from tests.streams.responses_events import check_response
from tests.streams.sse import read

TOOLS = [
    {"type": "function", "name": "add", "parameters": {"type": "object"}},
    {"type": "custom", "name": "patch"},
    {
        "type": "namespace",
        "name": "notes",
        "description": "",
        "tools": [{"type": "function", "name": "read"}, {"type": "custom", "name": "write"}],
    },
]
USAGE = Usage(prompt_tokens=9, completion_tokens=5, cached_tokens=4, reasoning_tokens=2)


def created(**fields: Any) -> Creation:
    body = json.dumps({"model": "m", "input": "x", "tools": TOOLS} | fields).encode()
    return parsed(lambda body, asker: request.read(body, asker, None), body)


def finished(choice: Choice) -> Finished:
    return Finished(id=0, choices=[choice], usage=USAGE, timings=Timings())


def stream(script: Script, **fields: Any) -> bytes:
    async def run() -> bytes:
        run = Run(None, script, created(stream=True, **fields))
        await run.start()
        return b"".join([data async for data in leaving(run.events())])

    return asyncio.run(run())


def streamed(*deltas: Delta, reason: FinishReason = "stop", **fields: Any) -> dict[str, Any]:
    end = finished(Choice(reason=reason))
    script = Script([Started(id=0, prompt_tokens=9)], *[[delta] for delta in deltas], [end])
    return responses(stream(script, **fields))


def whole(choice: Choice, **fields: Any) -> dict[str, Any]:
    response = json.loads(asyncio.run(Run(None, Script([finished(choice)]), created(**fields)).whole()))
    check_response(response)
    return response


def delta(text: str = "", reasoning: str = "", *calls: ToolCallDelta, **more: Any) -> Delta:
    return Delta(id=0, tokens=1, text=text, reasoning=reasoning, tool_calls=list(calls), **more)


def plain(response: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: value for key, value in item.items() if key != "id"} for item in response["output"]]


CALLS = {
    "add": '{"a": 1, "b": "\\u00e9 \\n"}',
    "patch": '{"input": "*** Begin\\n+\\"x\\" \\ud83d\\ude00\\n"}',
    "notes__read": "{}",
    "notes__write": '{"input": ""}',
}


@st.composite
def answers(draw: st.DrawFn) -> tuple[Choice, list[Delta]]:
    """An answer, and the same in pieces."""
    texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
    thought, text = draw(texts), draw(texts)
    names = draw(st.lists(st.sampled_from(sorted(CALLS)), max_size=3))
    calls = [ToolCall(id=f"call_{i}", name=name, arguments=CALLS[name]) for i, name in enumerate(names)]

    def pieces(whole: str) -> list[str]:
        cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=4)))
        return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    deltas = [delta(reasoning=piece) for piece in pieces(thought)] + [delta(piece) for piece in pieces(text)]
    for i, call in enumerate(calls):
        first, *rest = pieces(call.arguments)
        deltas.append(delta("", "", ToolCallDelta(index=i, call_id=call.id, name=call.name, arguments=first)))
        deltas += [delta("", "", ToolCallDelta(index=i, arguments=piece)) for piece in rest]
    reason: FinishReason = "tool_calls" if calls else draw(st.sampled_from(["stop", "length"]))
    return Choice(reason=reason, text=text, reasoning=thought, tool_calls=calls), deltas


@given(answers(), st.booleans(), st.booleans())
def test_answer_is_the_same_however_it_is_cut(
    answer: tuple[Choice, list[Delta]], summary: bool, obfuscate: bool
) -> None:
    choice, deltas = answer
    fields = {
        "reasoning": {"summary": "auto"} if summary else {},
        "include": ["reasoning.encrypted_content"],
        "stream_options": {"include_obfuscation": obfuscate},
    }
    assert plain(streamed(*deltas, reason=choice.reason, **fields)) == plain(whole(choice, **fields))


@given(answers(), st.booleans())
def test_answer_sent_back_is_the_turn_that_it_was(answer: tuple[Choice, list[Delta]], summary: bool) -> None:
    choice, _ = answer
    fields = {"reasoning": {"summary": "auto"} if summary else {}}
    items = whole(choice, **fields)["output"]
    back = created(input=[{"role": "user", "content": "x"}, *items]).generate.messages[1:]
    calls = [
        # What stands in a custom tool's call is its text, not how the model spelt it.
        call
        if "input" not in call.arguments
        else ToolCall(
            id=call.id,
            name=call.name,
            arguments=json.dumps(json.loads(call.arguments), ensure_ascii=False, separators=(",", ":")),
        )
        for call in choice.tool_calls
    ]
    turn = Message(
        role="assistant", content=choice.text, reasoning=choice.reasoning or None, tool_calls=calls
    )
    assert back == ([turn] if choice.text or choice.reasoning or calls else [])


def test_calls_are_the_clients_own_tools() -> None:
    calls = [ToolCall(id=f"c{i}", name=name, arguments=CALLS[name]) for i, name in enumerate(CALLS)]
    add, patch, read_note, write_note = whole(Choice(reason="tool_calls", tool_calls=calls))["output"]
    assert (add["type"], add["name"], add["arguments"]) == ("function_call", "add", CALLS["add"])
    assert "namespace" not in add
    assert (patch["type"], patch["name"]) == ("custom_tool_call", "patch")
    assert patch["input"] == '*** Begin\n+"x" \N{GRINNING FACE}\n'
    assert (read_note["type"], read_note["namespace"], read_note["name"]) == (
        "function_call",
        "notes",
        "read",
    )
    assert (write_note["type"], write_note["namespace"], write_note["input"]) == (
        "custom_tool_call",
        "notes",
        "",
    )
    made_up = whole(Choice(reason="tool_calls", tool_calls=[ToolCall(id="c", name="sub", arguments="{}")]))
    assert (made_up["output"][0]["type"], made_up["output"][0]["name"]) == ("function_call", "sub")


def test_thought_is_told_as_itself_or_as_its_summary() -> None:
    choice = Choice(reason="stop", reasoning="hm", text="x")
    (thought, _) = whole(choice)["output"]
    assert (thought["summary"], thought["content"]) == ([], [{"type": "reasoning_text", "text": "hm"}])
    assert "encrypted_content" not in thought
    fields = {"reasoning": {"summary": "detailed"}, "include": ["reasoning.encrypted_content"]}
    (thought, _) = whole(choice, **fields)["output"]
    assert thought["summary"] == [{"type": "summary_text", "text": "hm"}]
    assert unseal(thought["encrypted_content"]) == "hm"


def token(text: str, top: int = 0) -> TokenLogprob:
    others = [Alternative(token_id=i, token="?", raw=b"?", logprob=-2.0) for i in range(top)]
    return TokenLogprob(token_id=1, token=text, raw=text.encode(), logprob=-0.5, top=others)


def test_log_probabilities_are_those_of_the_text() -> None:
    tokens = [token(each, 1) for each in ("<think>", "hm", "</think>", "a", "b", "<end>")]
    fields = {"top_logprobs": 1, "include": ["message.output_text.logprobs"]}
    choice = Choice(reason="stop", reasoning="hm", text="ab", logprobs=tokens)
    pieces = [
        delta(logprobs=tokens[:1]),
        delta(reasoning="hm", logprobs=tokens[1:2]),
        delta("a", logprobs=tokens[2:4]),
        delta("b", logprobs=tokens[4:]),
    ]
    for response in (whole(choice, **fields), streamed(*pieces, **fields)):
        told = response["output"][1]["content"][0]["logprobs"]
        assert [entry["token"] for entry in told] == ["a", "b"]
        assert told[0]["top_logprobs"] == [{"token": "?", "logprob": -2.0, "bytes": [63]}]
    assert whole(choice)["output"][1]["content"][0]["logprobs"] == []


def test_a_long_answer_is_told_in_pieces_and_is_what_it_is_in_one(tmp_path: Path) -> None:
    tokens = [token("\u2028", 1)] * 3000
    text = "\u2028" * len(tokens)
    fields = {"top_logprobs": 1, "include": ["message.output_text.logprobs"]}

    async def run() -> tuple[list[bytes], list[bytes], bytes]:
        script = Script(
            [Started(id=0, prompt_tokens=9)],
            [delta(text, logprobs=tokens)],
            [finished(Choice(reason="stop"))],
        )
        stream = [each async for each in Run(None, script, created(stream=True, **fields)).events()]
        creation = created(**fields)
        store = ResponseStore(tmp_path / "store.db", Limits(max_age=60, max_size=1 << 30))
        creation.response["store"] = True
        choice = Choice(reason="stop", text=text, logprobs=tokens)
        whole = await Run(None, Script([finished(choice)]), creation, store).whole()
        found = await store.read(kept.written, "", creation.id)
        store.close()
        return stream, whole, found.body

    stream, whole, stored = asyncio.run(run())
    assert all(isinstance(each, bytes) and len(each) <= 2 * PIECE for each in whole)
    assert b"".join(whole) == stored
    [item] = json.loads(stored)["output"]
    assert len(item["content"][0]["logprobs"]) == len(tokens)
    ends = [each for each in stream if isinstance(each, list)]
    assert [b"".join(each).count(b"event: ") for each in ends] == [3, 1]
    assert all(len(piece) <= 2 * PIECE for each in ends for piece in each)
    told = responses(b"".join(b"".join(each) if isinstance(each, list) else each for each in stream))
    assert [each["content"] for each in told["output"]] == [item["content"]]


def test_text_that_was_held_back_keeps_the_tokens_behind_it() -> None:
    fields = {"include": ["message.output_text.logprobs"]}
    pieces = [
        delta("a", logprobs=[token("a")]),
        delta(logprobs=[token("b")]),
        delta("bc", logprobs=[token("c")]),
    ]
    told = streamed(*pieces, **fields)["output"][0]["content"][0]["logprobs"]
    assert [entry["token"] for entry in told] == ["a", "b", "c"]


def test_calls_beyond_the_limit_are_ignored() -> None:
    calls = [ToolCall(id=f"c{i}", name="add", arguments="{}") for i in range(3)]
    choice = Choice(reason="tool_calls", tool_calls=calls)
    assert [item["call_id"] for item in whole(choice, max_tool_calls=2)["output"]] == ["c0", "c1"]
    assert not created(max_tool_calls=1).generate.parallel_tool_calls
    assert created(max_tool_calls=2).generate.parallel_tool_calls


def test_call_that_was_cut_is_incomplete() -> None:
    cut = ToolCallDelta(index=0, call_id="c", name="patch", arguments='{"input": "ab\\')
    response = streamed(delta("", "", cut), reason="length")
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert (response["output"][0]["status"], response["output"][0]["input"][:2]) == ("incomplete", "ab")


def test_usage_is_in_this_apis_words() -> None:
    assert whole(Choice(reason="stop", text="x"))["usage"] == {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 14,
    }


def test_noise_makes_pieces_equally_long() -> None:
    script = (
        [Started(id=0, prompt_tokens=1)],
        [delta("a")],
        [delta("bcdef")],
        [finished(Choice(reason="stop"))],
    )
    body = stream(Script(*script), stream_options={"include_obfuscation": True})
    pieces = [event.data for event in read(body) if event.name == "response.output_text.delta"]
    assert len({len(json.dumps(piece["delta"])) + len(piece["obfuscation"]) for piece in pieces}) == 1
    body = stream(Script(*script))
    assert b"obfuscation" not in body


def test_lines_of_unicode_do_not_break_events() -> None:
    body = stream(
        Script(
            [Started(id=0, prompt_tokens=1)], [delta("a\u2028b\u0085c")], [finished(Choice(reason="stop"))]
        ),
        include=["message.output_text.logprobs"],
    )
    assert not {"\u2028", "\u2029", "\u0085"} & set(body.decode())
    assert responses(body)["output"][0]["content"][0]["text"] == "a\u2028b\u0085c"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (Code.CONTEXT_LENGTH_EXCEEDED, "context_length_exceeded"),
        (Code.WORKER_DIED, "server_error"),
        (Code.QUEUE_TIMEOUT, "server_error"),
    ],
)
def test_stream_that_breaks_tells_what_was_done(code: str, told: str) -> None:
    progress = Progress(id=0, stage="loading", message="m", fraction=0.5)
    script = Script(
        [progress, Started(id=0, prompt_tokens=1)], [delta("a", "hm")], error=CortexError(code, "it broke")
    )
    body = stream(script)
    assert b": loading 50% m\n\n" in body
    with pytest.raises(Failed) as caught:
        responses(body)
    assert caught.value.error == {"code": told, "message": "it broke"}
    last = read(body)[-1].data["response"]
    assert [item["type"] for item in last["output"]] == ["reasoning"]
    assert last["usage"] is None


def in_background(script: Script, folder: Path) -> tuple[bytes, dict[str, Any]]:
    """The stream and the response that it comes to."""
    store = ResponseStore(folder / "responses.db", Limits(60, 1 << 30))

    async def run() -> tuple[bytes, dict[str, Any]]:
        body = json.dumps({"model": "m", "input": "x", "background": True, "stream": True}).encode()
        creation = await request.read(body, RequestContext("r"), store)
        services = Services(None, request.read, RequestContext, Script, store, None, None, None)
        await background.Background(services).start(creation, script)
        async with asyncio.timeout(PATIENCE):
            told = b"".join([data async for data in follow(store, Changes(), "", creation.id)])
        return told, (await store.read(kept.get, "", creation.id)).body

    told, body = asyncio.run(run())
    store.close()
    check_response(body)
    return told, body


def test_background_has_not_ended_before_its_last_event_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, advance = [], kept.advance

    def noting(db: sqlite3.Connection, body: dict[str, Any], events: list[tuple[int, bytes]]) -> bool:
        written.append((body["status"], events[-1][1].partition(b"\n")[0] if events else None))
        return advance(db, body, events)

    monkeypatch.setattr(kept, "advance", noting)
    monkeypatch.setattr(background, "WRITE_SECONDS", 0.0)
    script = Script([Started(id=0, prompt_tokens=1)], [delta("a")], [finished(Choice(reason="stop"))])
    told, body = in_background(script, tmp_path)
    assert responses(told) == body
    assert [status for status, _ in written] == [*["in_progress"] * (len(written) - 1), "completed"]
    assert written[-1][1] == b"event: response.completed"
    assert len(written) > 2


def test_background_that_cannot_be_written_has_failed_once_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full for the first two writes of what came, the second of which is the end."""
    left, advance = [2], kept.advance

    def full(db: sqlite3.Connection, *args: Any) -> bool:
        if left[0]:
            left[0] -= 1
            raise sqlite3.OperationalError("database or disk is full")
        return advance(db, *args)

    monkeypatch.setattr(kept, "advance", full)
    monkeypatch.setattr(background, "RETRY_SECONDS", (0.01, 0.01))
    script = Script([Started(id=0, prompt_tokens=1)], [delta("a")], [finished(Choice(reason="stop"))])
    told, body = in_background(script, tmp_path)
    assert body["status"] == "failed"
    with pytest.raises(Failed) as caught:
        responses(told)
    assert "full" in caught.value.error["message"]
