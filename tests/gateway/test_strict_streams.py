"""Streams pass the strict reader of their dialect, and add up to the unstreamed answer."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests import streams

HELLO = [{"role": "user", "content": "one two three"}]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "echo"},
        {"model": "echo", "max_tokens": 2},
        {"model": "tools", "tools": TOOLS},
    ],
)
def test_chat(http: httpx.Client, fields: dict[str, Any]) -> None:
    ask = {"messages": HELLO} | fields
    whole = http.post("/v1/chat/completions", json=ask).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    body = http.post("/v1/chat/completions", json=ask | options).content
    streamed = streams.chat(body, usage=True)
    assert streamed["usage"] == whole["usage"]
    for choice, told in zip(streamed["choices"], whole["choices"], strict=True):
        assert choice["finish_reason"] == told["finish_reason"]
        assert choice["message"].items() <= told["message"].items()
    streams.chat(http.post("/v1/chat/completions", json=ask | {"stream": True}).content)


@pytest.mark.parametrize("fields", [{"prompt": "a b c"}, {"prompt": ["a b", "c d e"]}])
def test_completion(http: httpx.Client, fields: dict[str, Any]) -> None:
    ask = {"model": "echo", "max_tokens": 2} | fields
    whole = http.post("/v1/completions", json=ask).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    body = http.post("/v1/completions", json=ask | options).content
    streamed = streams.completion(body, n=len(whole["choices"]), usage=True)
    assert streamed["usage"] == whole["usage"]
    assert all(
        choice.items() <= told.items()
        for choice, told in zip(streamed["choices"], whole["choices"], strict=True)
    )
