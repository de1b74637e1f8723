"""Items as they are kept and listed: as they came, each with an id, and messages in their long form."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from gateway.dialects.openai.responses.items import Entry, kind_of
from ipc.messages.values import MAX_NAME

_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "cto",
    "compaction": "cmp",
}
_WITH_STATUS = (
    "message",
    "function_call",
    "function_call_output",
    "custom_tool_call",
    "custom_tool_call_output",
)


def kept(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """The items of a request, which has been read without complaint."""
    stamp, ids = os.urandom(20).hex(), set[str]()
    items = []
    for i, entry in enumerate(entries):
        kind = kind_of(entry)
        item_id = entry.item.get("id")
        if not isinstance(item_id, str) or not 0 < len(item_id) <= MAX_NAME or item_id in ids:
            item_id = f"{_PREFIXES.get(kind, 'item')}_{stamp}{i:04x}"
        ids.add(item_id)
        item: dict[str, Any] = entry.item | {"type": kind, "id": item_id}
        if kind in _WITH_STATUS and item.get("status") is None:
            item["status"] = "completed"
        if kind == "message" and isinstance(item["content"], str):
            part = {"type": "output_text", "text": item["content"], "annotations": [], "logprobs": []}
            if item["role"] != "assistant":
                part = {"type": "input_text", "text": item["content"]}
            item["content"] = [part]
        items.append(item)
    return items
