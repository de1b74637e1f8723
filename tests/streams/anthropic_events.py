"""Streams of `/v1/messages`."""

from __future__ import annotations

import json
from typing import Any

from tests.streams.sse import Failed, is_count, read

STOP_REASONS = {
    "end_turn",
    "max_tokens",
    "stop_sequence",
    "tool_use",
    "pause_turn",
    "refusal",
    "compaction",
    "model_context_window_exceeded",
}
ERROR_TYPES = {
    "invalid_request_error",
    "authentication_error",
    "billing_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
    "rate_limit_error",
    "api_error",
    "timeout_error",
    "overloaded_error",
}
INPUT_COUNTS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
DELTAS = {
    "text": ("text_delta",),
    "thinking": ("thinking_delta", "signature_delta"),
    "tool_use": ("input_json_delta",),
    "redacted_thinking": (),
    "compaction": ("compaction_delta",),
}


def anthropic(body: bytes) -> dict[str, Any]:
    """A streamed message as the unstreamed one."""
    reader = _Messages()
    for event in read(body):
        assert isinstance(event.data, dict), f"there is no {event.data} in this dialect"
        assert event.name == event.data["type"], f"the event is {event.name!r}, its data {event.data}"
        assert not reader.over, f"it goes on after its end: {event.data}"
        reader.take(event.data)
    assert reader.over, "there is no message_stop"
    if reader.error is not None:
        raise Failed(reader.error)
    return reader.message


class _Messages:
    def __init__(self) -> None:
        self.message: dict[str, Any] = {}
        self.error: dict[str, Any] | None = None
        self.over = False
        self._block: dict[str, Any] | None = None  # the open one
        self._json = ""  # of the input of the open call
        self._uncertain = False  # the last call's input may be cut off

    def take(self, data: dict[str, Any]) -> None:
        kind = data["type"]
        if kind == "error":
            self.error, self.over = data["error"], True
            assert self.error["type"] in ERROR_TYPES and self.error["message"], data
            return
        assert (kind == "message_start") == (not self.message), f"out of order: {data}"
        if kind != "ping":
            assert not self.message or self.message["stop_reason"] is None or kind == "message_stop", data
            getattr(self, f"_{kind}")(data)

    def _message_start(self, data: dict[str, Any]) -> None:
        message = data["message"]
        assert message["type"] == "message" and message["role"] == "assistant", data
        assert message["id"] and message["model"] and message["content"] == [], data
        assert message["stop_reason"] is None and message["stop_sequence"] is None, data
        assert is_count(message["usage"]["output_tokens"], *map(message["usage"].get, INPUT_COUNTS)), data
        self.message = message

    def _content_block_start(self, data: dict[str, Any]) -> None:
        assert self._block is None, f"a block within another one: {data}"
        assert data["index"] == len(self.message["content"]), f"indexes count blocks: {data}"
        block = data["content_block"]
        empty = {
            "text": {"text": ""},
            "thinking": {"thinking": "", "signature": ""},
            "tool_use": {"input": {}},
            "redacted_thinking": {"data": block.get("data")},
            "compaction": {"content": None},
        }[block["type"]]
        assert empty.items() <= block.items(), f"a block begins empty: {data}"
        if block["type"] == "tool_use":
            others = [each.get("id") for each in self.message["content"]]
            assert block["id"] and block["name"] and block["id"] not in others, data
        assert block["type"] != "redacted_thinking" or block["data"], data
        self._block, self._json = block, ""
        self.message["content"].append(block)

    def _content_block_delta(self, data: dict[str, Any]) -> None:
        block, delta = self._block, data["delta"]
        assert block is not None, f"no block is open: {data}"
        assert data["index"] == len(self.message["content"]) - 1, data
        assert delta["type"] in DELTAS[block["type"]], f"this does not go into {block['type']}: {data}"
        assert not block.get("signature"), f"the signature ends a thought: {data}"
        if delta["type"] == "input_json_delta":
            self._json += delta["partial_json"]
        elif block["type"] == "compaction":
            assert block["content"] is None, f"a summary comes in one piece: {data}"
            block["content"] = delta["content"]
        else:
            key = delta["type"].removesuffix("_delta")
            block[key] += delta[key]

    def _content_block_stop(self, data: dict[str, Any]) -> None:
        block = self._block
        assert block is not None and data["index"] == len(self.message["content"]) - 1, data
        self._block = None
        assert not self._uncertain, "a call that was cut off is the last block"
        if block["type"] == "tool_use" and self._json:
            try:
                block["input"] = json.loads(self._json)
            except ValueError:
                self._uncertain = True
            assert type(block["input"]) is dict, block
        assert block["type"] != "text" or block["text"], "no client may send an empty text block back"
        assert block["type"] != "thinking" or block["signature"], "a thought has a signature"

    def _message_delta(self, data: dict[str, Any]) -> None:
        assert self._block is None, f"a block is open: {data}"
        reason, sequence = data["delta"]["stop_reason"], data["delta"]["stop_sequence"]
        assert reason in STOP_REASONS and (reason == "stop_sequence") == (sequence is not None), data
        cut_off = reason in ("max_tokens", "model_context_window_exceeded")
        calls = any(block["type"] == "tool_use" for block in self.message["content"])
        kinds = [block["type"] for block in self.message["content"]]
        assert (reason == "compaction") == (kinds == ["compaction"]), "a summary stands alone"
        assert calls == (reason == "tool_use") or cut_off, data
        assert not self._uncertain or cut_off, "the input of the last call is no JSON"
        usage = {key: value for key, value in data["usage"].items() if value is not None}
        assert is_count(usage["output_tokens"], *(usage.get(key, 0) for key in INPUT_COUNTS)), data
        assert usage["output_tokens"] >= self.message["usage"]["output_tokens"], "usage only grows"
        before = sum(self.message["usage"][key] for key in INPUT_COUNTS)
        self.message["usage"] |= usage
        after = sum(self.message["usage"][key] for key in INPUT_COUNTS)
        assert before == after, f"the whole input was {before} tokens, and is {after} now"
        self.message |= {"stop_reason": reason, "stop_sequence": sequence}

    def _message_stop(self, data: dict[str, Any]) -> None:
        assert self.message["stop_reason"], "message_delta has to say why it stops"
        self.over = True
