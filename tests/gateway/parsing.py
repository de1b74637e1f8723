"""Requests as a dialect reads them, without a gateway."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway.dialects import RequestContext
from gateway.dialects.openai import chat as openai_chat
from gateway.dialects.openai import completions as openai_completions
from gateway.dialects.openai import embeddings as openai_embeddings
from ipc.errors import CortexError
from ipc.messages.requests import Embed, Generate

USER = {"role": "user", "content": "x"}
TOOL = {"type": "function", "function": {"name": "f", "strict": True}}


def parsed(parse: Callable[[bytes, RequestContext], Any], body: bytes, request_id: str = "r") -> Any:
    """What `parse` gives; it has nothing to wait for."""
    reading = parse(body, RequestContext(request_id))
    try:
        reading.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


def chat(**fields: Any) -> Generate:
    body = {"model": "m", "messages": [USER]} | fields
    return parsed(openai_chat.parse, json.dumps(body).encode())[0]


def completion(**fields: Any) -> Generate:
    return parsed(openai_completions.parse, json.dumps({"model": "m", "prompt": "x"} | fields).encode())[0]


def embed(**fields: Any) -> Embed:
    return parsed(openai_embeddings.parse, json.dumps({"model": "m", "input": "x"} | fields).encode())[0]


def refusal(parse: Any, **fields: Any) -> CortexError:
    with pytest.raises(CortexError) as caught:
        parse(**fields)
    return caught.value
