"""Server-sent events, read strictly."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

DONE = "[DONE]"


class Failed(Exception):
    """The stream is sound, and its last event is an error: `error` is what it says."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error.get("message"))
        self.error = error


class Event(NamedTuple):
    name: str | None  # of its `event:` line
    data: Any  # decoded JSON, or `DONE`


def read(body: bytes) -> list[Event]:
    """The server-sent events in `body`: comments by themselves, one `data:` line each, nothing cut off."""
    text = body.decode("utf-8")
    assert "\r" not in text, "lines end in a line feed alone"
    assert text.endswith("\n\n") or not text, f"the last event is cut off: {text[-200:]!r}"
    events = []
    for frame in text.split("\n\n")[:-1]:
        lines = frame.split("\n")
        if all(line.startswith(":") for line in lines):
            continue
        name = lines.pop(0).removeprefix("event: ") if lines[0].startswith("event: ") else None
        assert len(lines) == 1 and lines[0].startswith("data: "), f"not an event: {frame!r}"
        data = lines[0].removeprefix("data: ")
        assert name is None or name, f"an event without a name: {frame!r}"
        events.append(Event(name, data if data == DONE else json.loads(data, object_pairs_hook=_unique)))
    return events


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    assert len(keys) == len(set(keys)), f"a key comes twice among {keys}"
    return dict(pairs)


def is_count(*values: Any) -> bool:
    """Whether all of them are whole numbers that count something."""
    return all(type(value) is int and value >= 0 for value in values)
