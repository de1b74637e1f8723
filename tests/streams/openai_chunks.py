"""Streams of `/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

import json
from typing import Any

from tests.streams.sse import DONE, Failed, is_count, read


def chat(body: bytes, *, n: int = 1, usage: bool = False) -> dict[str, Any]:
    """A streamed chat completion as the unstreamed one.

    Args:
        n: choices that were asked for.
        usage: whether `stream_options.include_usage` was set.
    """
    return _Chunks("chat.completion.chunk", n, usage, _ChatChoice).answer(body)


def completion(body: bytes, *, n: int = 1, usage: bool = False) -> dict[str, Any]:
    """A streamed completion as the unstreamed one; `n` counts the choices of all its prompts."""
    return _Chunks("text_completion", n, usage, _TextChoice).answer(body)


class _Chunks:
    def __init__(self, kind: str, n: int, usage: bool, choice: type[_ChatChoice | _TextChoice]) -> None:
        self._kind, self._asks_usage = kind, usage
        self._choices = [choice(index) for index in range(n)]

    def answer(self, body: bytes) -> dict[str, Any]:
        events = read(body)
        assert events, "nothing came"
        assert all(event.name is None for event in events), "no event has a name here"
        datas = [event.data for event in events]
        if isinstance(datas[-1], dict) and "error" in datas[-1]:
            self._chunks(datas[:-1])
            _check_error(datas[-1]["error"])
            raise Failed(datas[-1]["error"])
        assert datas.pop() == DONE, f"the end is {datas[-1]}, not {DONE}"
        usage = _check_usage(datas.pop(), self._kind) if self._asks_usage else None
        head = self._chunks(datas)
        assert all(choice.reason for choice in self._choices), "a choice has no finish_reason"
        return head | {"choices": [choice.whole() for choice in self._choices], "usage": usage}

    def _chunks(self, chunks: list[Any]) -> dict[str, Any]:
        heads = []
        for chunk in chunks:
            assert isinstance(chunk, dict), f"{DONE} or an error comes before the end: {chunk}"
            assert chunk["object"] == self._kind, chunk
            assert type(chunk["created"]) is int, chunk
            assert type(chunk["id"]) is type(chunk["model"]) is str and chunk["id"], chunk
            assert chunk.get("usage") is None, f"usage before the last chunk, or not asked for: {chunk}"
            assert chunk["choices"], f"no choices: {chunk}"
            heads.append({key: chunk[key] for key in ("id", "created", "model")})
            for piece in chunk["choices"]:
                assert type(piece["index"]) is int and 0 <= piece["index"] < len(self._choices), chunk
                choice = self._choices[piece["index"]]
                assert choice.reason is None, f"choice {choice.index} goes on after its end: {chunk}"
                choice.take(piece)
                choice.reason = piece["finish_reason"]
                assert choice.reason in choice.REASONS, chunk
        assert all(head == heads[0] for head in heads), "id, created or model changes in the stream"
        return heads[0] if heads else {}


class _ChatChoice:
    REASONS = (None, "stop", "length", "tool_calls", "content_filter")

    def __init__(self, index: int) -> None:
        self.index = index
        self.reason: str | None = None
        self._role = ""
        self._text = self._reasoning = ""
        self._calls: list[dict[str, Any]] = []

    def take(self, piece: dict[str, Any]) -> None:
        delta = piece["delta"]
        if not self._role:
            self._role = delta.get("role", "")
            assert self._role == "assistant", f"the first chunk of a choice says the role: {piece}"
        else:
            assert "role" not in delta, f"the role comes twice: {piece}"
        thoughts = [delta[key] for key in ("reasoning_content", "reasoning") if delta.get(key)]
        assert len(set(thoughts)) < 2, f"two thoughts in one chunk: {piece}"
        kinds = bool(thoughts) + bool(delta.get("content")) + bool(delta.get("tool_calls"))
        assert kinds < 2, f"reasoning, text and calls do not share a chunk: {piece}"
        if thoughts:
            self._reasoning += thoughts[0]
        self._text += delta.get("content") or ""
        for call in delta.get("tool_calls") or ():
            self._call(call)

    def _call(self, piece: dict[str, Any]) -> None:
        function, index = piece["function"], piece["index"]
        assert type(function["arguments"]) is str, piece
        if index == len(self._calls):
            assert set(piece) == {"index", "id", "type", "function"} and piece["type"] == "function", piece
            assert piece["id"] and piece["id"] not in [call["id"] for call in self._calls], piece
            assert function["name"], piece
            self._calls.append({"id": piece["id"], "type": "function", "function": dict(function)})
            return
        assert index == len(self._calls) - 1, f"not the call that is open, nor the next one: {piece}"
        assert set(piece) == {"index", "function"} and set(function) == {"arguments"}, piece
        self._calls[index]["function"]["arguments"] += function["arguments"]

    def whole(self) -> dict[str, Any]:
        if self._calls:
            assert self.reason in ("tool_calls", "length", "content_filter"), self.reason
        else:
            assert self.reason != "tool_calls", "finish_reason is tool_calls, and there are none"
        if self.reason == "tool_calls":
            assert all(type(json.loads(call["function"]["arguments"])) is dict for call in self._calls)
        message = {
            "role": "assistant",
            "content": (self._text or None) if self._calls else self._text,
            "reasoning_content": self._reasoning or None,
        }
        calls = {"tool_calls": self._calls} if self._calls else {}
        return {"index": self.index, "message": message | calls, "finish_reason": self.reason}


class _TextChoice:
    REASONS = (None, "stop", "length", "content_filter")

    def __init__(self, index: int) -> None:
        self.index = index
        self.reason: str | None = None
        self._text = ""

    def take(self, piece: dict[str, Any]) -> None:
        assert "logprobs" in piece, f"logprobs is always there, or null: {piece}"
        self._text += piece["text"]

    def whole(self) -> dict[str, Any]:
        return {"index": self.index, "text": self._text, "finish_reason": self.reason}


def _check_usage(chunk: Any, kind: str) -> dict[str, Any]:
    """What the last chunk counts, where that was asked for."""
    assert isinstance(chunk, dict) and chunk["object"] == kind and chunk["choices"] == [], chunk
    usage = chunk["usage"]
    prompt, output = usage["prompt_tokens"], usage["completion_tokens"]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens", 0)
    assert is_count(prompt, output, cached, thought), usage
    assert usage["total_tokens"] == prompt + output and cached <= prompt and thought <= output, usage
    return usage


def _check_error(error: dict[str, Any]) -> None:
    assert error["message"] and error["type"] and {"code", "param"} <= set(error), error
