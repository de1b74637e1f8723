"""Requests of Anthropic's dialect, for the tests that read them."""

from __future__ import annotations

import base64
import json
from typing import Any

from gateway.dialects.anthropic import messages
from ipc.messages.conversation import Message
from ipc.messages.requests import Generate
from tests.gateway.parsing import parsed

USER = {"role": "user", "content": "x"}
PNG = base64.b64encode(b"\x89PNG").decode()
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PNG}}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "2"}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}
TOOL = {"name": "f", "description": "does", "input_schema": {"type": "object"}}


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said} | more


def read(**fields: Any) -> Generate:
    body = {"model": "m", "max_tokens": 2000, "messages": [USER]} | fields
    return parsed(messages.parse, json.dumps(body).encode())[0]


def turns(*given: dict[str, Any], **fields: Any) -> list[Message]:
    return read(messages=list(given), **fields).messages
