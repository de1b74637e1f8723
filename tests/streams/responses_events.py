"""Streams of `/v1/responses`."""

from __future__ import annotations

import json
from typing import Any

from tests.streams.sse import DONE, Failed, is_count, read

# Every one of them is there, null where there is nothing to say.
FIELDS = {
    "id",
    "object",
    "created_at",
    "completed_at",
    "status",
    "incomplete_details",
    "model",
    "previous_response_id",
    "instructions",
    "output",
    "error",
    "tools",
    "tool_choice",
    "truncation",
    "parallel_tool_calls",
    "text",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "top_logprobs",
    "temperature",
    "reasoning",
    "usage",
    "max_output_tokens",
    "max_tool_calls",
    "store",
    "background",
    "service_tier",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
}
ENDS = {"response.completed": "completed", "response.incomplete": "incomplete", "response.failed": "failed"}
BEGINS = {"response.queued": "queued", "response.in_progress": "in_progress"}


def responses(body: bytes) -> dict[str, Any]:
    """A streamed response as the unstreamed one.

    Raises:
        Failed: it ended in `response.failed` or `error`.
    """
    events = read(body)
    if events and events[-1].data == DONE:  # some providers end so
        assert events.pop().name is None
    reader = _Response()
    for number, event in enumerate(events):
        assert isinstance(event.data, dict), f"{event.data} comes before the end"
        assert event.name == event.data["type"], f"the event is {event.name!r}, its data {event.data}"
        assert event.data["sequence_number"] == number, f"not number {number}: {event.data}"
        assert not reader.over, f"it goes on after its end: {event.data}"
        reader.take(event.data)
    assert reader.over, "no event ends it"
    if reader.error is not None:
        raise Failed(reader.error)
    return reader.response


def check_response(response: dict[str, Any]) -> None:
    """Hold a response object, streamed or not, against what every one of them has to be."""
    assert set(response) >= FIELDS, f"missing: {FIELDS - set(response)}"
    assert response["object"] == "response" and response["id"] and response["model"], response
    assert type(response["created_at"]) is int, response
    status = response["status"]
    assert (response["completed_at"] is not None) == (status == "completed"), response
    assert (response["error"] is not None) == (status == "failed"), response
    assert (response["incomplete_details"] is not None) == (status == "incomplete"), response
    if status == "incomplete":
        assert response["incomplete_details"]["reason"] in ("max_output_tokens", "content_filter"), response
    if status == "failed":
        assert response["error"]["code"] and response["error"]["message"], response
    if status in ("completed", "incomplete"):
        _check_usage(response["usage"])
    ids = [item["id"] for item in response["output"]]
    assert all(ids) and len(set(ids)) == len(ids), f"the ids of items are not unique: {ids}"


def _check_usage(usage: dict[str, Any]) -> None:
    total_in, total_out = usage["input_tokens"], usage["output_tokens"]
    cached = usage["input_tokens_details"]["cached_tokens"]
    thought = usage["output_tokens_details"]["reasoning_tokens"]
    assert is_count(total_in, total_out, cached, thought), usage
    assert usage["total_tokens"] == total_in + total_out, usage
    assert cached <= total_in and thought <= total_out, usage


class _Response:
    def __init__(self) -> None:
        self.response: dict[str, Any] = {}
        self.error: dict[str, Any] | None = None
        self.over = False
        self._items: list[dict[str, Any]] = []  # as they were when they were done
        self._item: _Item | None = None  # the open one
        self._created: dict[str, Any] = {}

    def take(self, data: dict[str, Any]) -> None:
        kind = data["type"]
        if kind == "error":
            self.error, self.over = data, True
            assert {"code", "message", "param"} <= set(data) and data["message"], data
        elif kind == "response.created":
            assert not self.response, f"created twice: {data}"
            self._see(data["response"], data["response"]["status"])
            assert data["response"]["status"] in BEGINS.values(), data
            self._created = data["response"]
        elif kind in BEGINS:
            assert self._created, f"before response.created: {data}"
            self._see(data["response"], BEGINS[kind])
            assert not self._items and self._item is None, f"too late: {data}"
        elif kind in ENDS:
            self._end(data["response"], ENDS[kind])
        else:
            assert self.response, f"before response.created: {data}"
            self._within(kind, data)

    def _see(self, response: dict[str, Any], status: str) -> None:
        check_response(response)
        assert response["status"] == status, response
        same = ("id", "created_at", "model")
        assert all(response[key] == self._created.get(key, response[key]) for key in same), response
        assert status in ENDS.values() or not response["output"], f"nothing was said yet: {response}"
        self.response = response

    def _end(self, response: dict[str, Any], status: str) -> None:
        assert self.response, f"before response.created: {response}"
        self._see(response, status)
        self.over, self.error = True, response["error"]
        if status == "failed":
            return
        assert self._item is None, f"item {self._item} is open"
        assert response["output"] == self._items, "the output is not what was said to be done"
        if status == "completed":
            assert all(item.get("status", "completed") == "completed" for item in self._items), response

    def _within(self, kind: str, data: dict[str, Any]) -> None:
        assert data["output_index"] == len(self._items), (
            f"not the item that is open, nor the next one: {data}"
        )
        if kind == "response.output_item.added":
            assert self._item is None, f"an item within another one: {data}"
            self._item = _Item(data["item"])
            return
        assert self._item is not None, f"no item is open: {data}"
        if kind == "response.output_item.done":
            self._item.done(data["item"])
            self._items.append(data["item"])
            self._item = None
            return
        assert data["item_id"] == self._item.id, f"another item's id: {data}"
        self._item.take(kind, data)


# An item that comes piece by piece: the stem of its events, and the key of the whole in item and last event.
ARGUMENTS = {
    "function_call": ("response.function_call_arguments", "arguments"),
    "custom_tool_call": ("response.custom_tool_call_input", "input"),
}
# A part of an item: the stems of its bracket and of its text, the key of the text, the key of its index.
PARTS = {
    "output_text": ("response.content_part", "response.output_text", "text", "content_index"),
    "refusal": ("response.content_part", "response.refusal", "refusal", "content_index"),
    "reasoning_text": ("response.content_part", "response.reasoning_text", "text", "content_index"),
    "summary_text": (
        "response.reasoning_summary_part",
        "response.reasoning_summary_text",
        "text",
        "summary_index",
    ),
}
PARTS_OF = {
    "message": {"content": ("output_text", "refusal")},
    "reasoning": {"summary": ("summary_text",), "content": ("reasoning_text",)},
}


class _Item:
    """An item from `added` to `done`."""

    def __init__(self, item: dict[str, Any]) -> None:
        self.id, self.kind = item["id"], item["type"]
        assert self.id, item
        assert item.get("status", "in_progress") == "in_progress", item
        self._said = ""  # of its arguments, or of the open part
        self._said_all = False  # the text's `done` came
        self._part: str | None = None  # the type of the open one
        self._lists: dict[str, list[dict[str, Any]]] = {key: [] for key in PARTS_OF.get(self.kind, ())}
        if self.kind in ARGUMENTS:
            assert item[ARGUMENTS[self.kind][1]] == "" and item["name"] and item["call_id"], item
        else:
            assert all(not item.get(key) for key in PARTS_OF[self.kind]), f"an item begins empty: {item}"
            assert self.kind != "message" or (item["role"] == "assistant" and item["content"] == []), item
            assert self.kind != "reasoning" or item["summary"] == [], item
        self._added = item

    def __repr__(self) -> str:
        return repr(self._added)

    def take(self, kind: str, data: dict[str, Any]) -> None:
        if self.kind in ARGUMENTS:
            stem, key = ARGUMENTS[self.kind]
            self._text(kind, data, stem, key)
            if kind.endswith("arguments.done"):
                assert data["name"] == self._added["name"], data
        elif self._part is None:
            self._open(kind, data)
        else:
            bracket, stem, key, number = PARTS[self._part]
            place = self._place(self._part)
            assert data[number] == len(place), f"the index counts parts: {data}"
            if kind == f"{bracket}.done":
                assert self._said_all, f"the text is not done: {data}"
                assert data["part"]["type"] == self._part and data["part"][key] == self._said, data
                place.append(data["part"])
                self._part = None
            else:
                self._text(kind, data, stem, key)
                assert self._part != "output_text" or type(data["logprobs"]) is list, data

    def _place(self, part: str) -> list[dict[str, Any]]:
        """The list of the item that parts of this type go into."""
        key = next((key for key, types in PARTS_OF[self.kind].items() if part in types), None)
        assert key is not None, f"{part} is no part of {self.kind}"
        return self._lists[key]

    def _open(self, kind: str, data: dict[str, Any]) -> None:
        part = data["part"]["type"]
        bracket, _, key, number = PARTS[part]
        assert kind == f"{bracket}.added" and data["part"][key] == "", f"a part begins empty: {data}"
        assert data[number] == len(self._place(part)), f"the index counts parts: {data}"
        assert part != "output_text" or {"annotations", "logprobs"} <= set(data["part"]), data
        self._part, self._said, self._said_all = part, "", False

    def _text(self, kind: str, data: dict[str, Any], stem: str, key: str) -> None:
        assert not self._said_all, f"it was done: {data}"
        if kind == f"{stem}.delta":
            assert type(data["delta"]) is str, data
            self._said += data["delta"]
        else:
            assert kind == f"{stem}.done", f"{kind} has no place in {self.kind}"
            assert data[key] == self._said, f"the pieces add up to {self._said!r}: {data}"
            self._said_all = True

    def done(self, item: dict[str, Any]) -> None:
        assert self._part is None, f"a part is open: {item}"
        assert (item["id"], item["type"]) == (self.id, self.kind), item
        if "status" in self._added or "status" in item:
            assert item["status"] in ("completed", "incomplete"), item
        for key, parts in self._lists.items():
            assert (item.get(key) or []) == parts, f"{key} is not what was said: {item}"
        if self.kind in ARGUMENTS:
            key = ARGUMENTS[self.kind][1]
            assert self._said_all and item[key] == self._said, item
            same = ("name", "call_id", "namespace")
            assert all(item.get(name) == self._added.get(name) for name in same), item
            if self.kind == "function_call" and item.get("status") == "completed":
                assert type(json.loads(item["arguments"])) is dict, item
