"""The items of an answer, and the events that tell a stream of them.

A whole answer is written in the same way: as one that came in one piece, whose events nobody reads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

from gateway.dialects.large import Large, pieces
from gateway.dialects.openai.custom_tools import InputReader
from gateway.dialects.openai.logprobs import chat_entries
from gateway.dialects.openai.responses.tools import Origin, Tools
from gateway.dialects.thoughts import seal
from gateway.dialects.writing import encode, json_string, on_one_line
from ipc.messages.answers import TokenLogprob, ToolCallDelta
from ipc.messages.replies import Delta

Status = Literal["completed", "incomplete"]


class Events:
    """Writes events, and counts them.

    Args:
        unread: nobody reads them, and nothing is written.
    """

    def __init__(self, unread: bool = False) -> None:
        self.count = 0
        self.unread = unread

    def write(self, kind: str, **members: Any) -> bytes:
        """One event."""
        return b"".join(self.pieces(kind, **members))

    def pieces(self, kind: str, **members: Any) -> list[bytes]:
        """The same, of what may be long: a `Large` in it is of one line already."""
        if self.unread:
            return []
        said = pieces({"type": kind, "sequence_number": self.count} | members, on_one_line)
        self.count += 1
        return [b"event: " + kind.encode() + b"\ndata: ", *said, b"\n\n"]


class Piece:
    """Writes the many events that differ in a text alone; what stays the same is encoded once."""

    def __init__(self, events: Events, kind: str, obfuscate: bool, **members: Any) -> None:
        self._events, self._obfuscate = events, obfuscate
        if events.unread:
            return
        head = encode({"type": kind} | members)[:-1]
        self._head = b"event: " + kind.encode() + b"\ndata: " + head + b',"delta":'

    def write(self, text: str, more: bytes = b"") -> bytes:
        """One event; `more` are further members, each with a comma before it."""
        events = self._events
        if events.unread:
            return b""
        number = events.count
        events.count = number + 1
        delta = json_string(text)
        if self._obfuscate:
            more += b',"obfuscation":"' + _padding(len(delta)) + b'"'
        return b'%b%b%b,"sequence_number":%d}\n\n' % (self._head, delta, more, number)


def _padding(length: int) -> bytes:
    """Noise that makes lengths up to some bytes look the same to whoever sees only those."""
    return os.urandom(8).hex().encode()[: -length % 16]


class Output:
    """The items of one answer.

    Args:
        stamp: what the ids of all its items have in common; no other answer has it.
        tools: of the request.
        summary: the thought is told as the summary of itself.
        sealed: thoughts are sent sealed, too.
        with_logprobs: of the tokens of the text.
        obfuscate: pieces get noise, so that their length tells nothing.
        max_calls: more are ignored.

    Attributes:
        items: those that are done.
    """

    def __init__(
        self,
        events: Events,
        stamp: str,
        tools: Tools,
        *,
        summary: bool = False,
        sealed: bool = False,
        with_logprobs: bool = False,
        obfuscate: bool = False,
        max_calls: int | None = None,
    ) -> None:
        self.events = events
        self.items: list[dict[str, Any]] = []
        self.tools, self.summary, self.sealed = tools, summary, sealed
        self.with_logprobs, self.obfuscate = with_logprobs, obfuscate
        self._stamp = stamp
        self._calls, self._max_calls = 0, max_calls
        self._open: _Thought | _Text | _Call | None = None
        self._early: list[TokenLogprob] = []  # of tokens that nothing came of yet

    def take(self, delta: Delta) -> bytes:
        """What is new, as events: thoughts first, then text, then calls."""
        item = self._open
        if type(item) is _Text and not delta.reasoning and not delta.tool_calls:
            return item.add(delta.text, delta.logprobs)
        said = b""
        if delta.reasoning:
            if type(item) is not _Thought:
                said += self._begin(_Thought)
            said += self._open.add(delta.reasoning)
        early, self._early = self._early + delta.logprobs, []
        if delta.text:
            if type(self._open) is not _Text:
                said += self._begin(_Text)
            said += self._open.add(delta.text, early)
        elif not delta.reasoning and not delta.tool_calls:
            self._early = early
        for piece in delta.tool_calls:
            said += self._take_call(piece)
        return said

    def close(self, status: Status) -> list[bytes]:
        """The end of the item that is open, in pieces."""
        if self._open is None:
            return []
        item, said = self._open.done(status)
        said += self.events.pieces("response.output_item.done", output_index=len(self.items), item=item)
        self.items.append(item)
        self._open = None
        return said

    def new_id(self, prefix: str) -> str:
        """An id for the next item."""
        return f"{prefix}_{self._stamp}{len(self.items):04x}"

    def _take_call(self, piece: ToolCallDelta) -> bytes:
        said = b""
        if piece.call_id is not None:
            self._calls += 1
        if self._max_calls is not None and self._calls > self._max_calls:
            return b""
        if piece.call_id is not None:
            origin = self.tools.origin(piece.name or "")
            call = _CustomCall if origin.kind == "custom" else _Call
            said += self._begin(lambda output: call(output, piece.call_id, origin))
        if piece.arguments and isinstance(self._open, _Call):
            said += self._open.add(piece.arguments)
        return said

    def _begin(self, make: Callable[[Output], _Thought | _Text | _Call]) -> bytes:
        said = b"".join(self.close("completed"))
        self._open = make(self)
        return said + self._open.begin()


class _Thought:
    """A `reasoning` item, with one part."""

    def __init__(self, output: Output) -> None:
        self._output, self._events = output, output.events
        self._id, self._index = output.new_id("rs"), len(output.items)
        self._text: list[str] = []
        if output.summary:
            self._part, self._stem = "response.reasoning_summary_part", "response.reasoning_summary_text"
            self._type, number = "summary_text", "summary_index"
        else:
            self._part, self._stem = "response.content_part", "response.reasoning_text"
            self._type, number = "reasoning_text", "content_index"
        self._place: dict[str, Any] = {"item_id": self._id, "output_index": self._index, number: 0}
        self._piece = Piece(self._events, f"{self._stem}.delta", output.obfuscate, **self._place)

    def begin(self) -> bytes:
        item = self._item([], None) | {"status": "in_progress"}
        added = self._events.write("response.output_item.added", output_index=self._index, item=item)
        part = {"type": self._type, "text": ""}
        return added + self._events.write(f"{self._part}.added", **self._place, part=part)

    def add(self, text: str) -> bytes:
        self._text.append(text)
        return self._piece.write(text)

    def done(self, status: Status) -> tuple[dict[str, Any], list[bytes]]:
        text = "".join(self._text)
        part = {"type": self._type, "text": text}
        said = self._events.pieces(f"{self._stem}.done", **self._place, text=text)
        said += self._events.pieces(f"{self._part}.done", **self._place, part=part)
        sealed = seal(text) if self._output.sealed else None
        return self._item([part], sealed) | {"status": status}, said

    def _item(self, parts: list[dict[str, Any]], sealed: str | None) -> dict[str, Any]:
        item: dict[str, Any] = {"type": "reasoning", "id": self._id, "summary": []}
        item["summary" if self._output.summary else "content"] = parts
        if sealed is not None:
            item["encrypted_content"] = sealed
        return item


class _Text:
    """A `message` item, with one part."""

    def __init__(self, output: Output) -> None:
        self._events, self._with_logprobs = output.events, output.with_logprobs
        self._id, self._index = output.new_id("msg"), len(output.items)
        self._text: list[str] = []
        self._logprobs: list[bytes] = []  # JSON of one line
        self._ahead: list[TokenLogprob] = []  # tokens whose text has not come yet
        self._place: dict[str, Any] = {"item_id": self._id, "output_index": self._index, "content_index": 0}
        self._piece = Piece(self._events, "response.output_text.delta", output.obfuscate, **self._place)

    def begin(self) -> bytes:
        item = self._item([], "in_progress")
        added = self._events.write("response.output_item.added", output_index=self._index, item=item)
        return added + self._events.write(
            "response.content_part.added", **self._place, part=_output_text("", [])
        )

    def add(self, text: str, logprobs: list[TokenLogprob]) -> bytes:
        if not self._with_logprobs:
            if not text:
                return b""
            self._text.append(text)
            return self._piece.write(text, b',"logprobs":[]')
        self._ahead += logprobs
        if not text:
            return b""
        self._text.append(text)
        mine, self._ahead = _behind(text, self._ahead)
        entries = list(map(on_one_line, chat_entries(mine)))
        self._logprobs += entries
        if self._events.unread:
            return b""
        return self._piece.write(text, b',"logprobs":[' + b",".join(entries) + b"]")

    def done(self, status: Status) -> tuple[dict[str, Any], list[bytes]]:
        text = "".join(self._text)
        logprobs = Large(self._logprobs) if self._logprobs else []
        part = _output_text(text, logprobs)
        said = self._events.pieces("response.output_text.done", **self._place, text=text, logprobs=logprobs)
        said += self._events.pieces("response.content_part.done", **self._place, part=part)
        return self._item([part], status), said

    def _item(self, parts: list[dict[str, Any]], status: str) -> dict[str, Any]:
        return {"type": "message", "id": self._id, "status": status, "role": "assistant", "content": parts}


class _Call:
    """A `function_call` item."""

    type, key, prefix = "function_call", "arguments", "fc"
    stem = "response.function_call_arguments"

    def __init__(self, output: Output, call_id: str, origin: Origin) -> None:
        self._events, self._origin, self._call_id = output.events, origin, call_id
        self._id, self._index = output.new_id(self.prefix), len(output.items)
        self._text: list[str] = []
        self._place: dict[str, Any] = {"item_id": self._id, "output_index": self._index}
        self._piece = Piece(self._events, f"{self.stem}.delta", output.obfuscate, **self._place)

    def begin(self) -> bytes:
        item = self._item("", "in_progress")
        return self._events.write("response.output_item.added", output_index=self._index, item=item)

    def add(self, arguments: str) -> bytes:
        self._text.append(arguments)
        return self._piece.write(arguments)

    def done(self, status: Status) -> tuple[dict[str, Any], list[bytes]]:
        text = "".join(self._text)
        said = self._events.pieces(f"{self.stem}.done", **self._place, **self._named(), **{self.key: text})
        return self._item(text, status), said

    def _named(self) -> dict[str, str]:
        """What the last event says beside the text."""
        return {"name": self._origin.name}

    def _item(self, text: str, status: str) -> dict[str, Any]:
        item = {
            "type": self.type,
            "id": self._id,
            "status": status,
            "call_id": self._call_id,
            "name": self._origin.name,
            self.key: text,
        }
        if self._origin.namespace is not None:
            item["namespace"] = self._origin.namespace
        return item


class _CustomCall(_Call):
    """A `custom_tool_call` item: the one argument of the function that stands for the tool."""

    type, key, prefix = "custom_tool_call", "input", "ctc"
    stem = "response.custom_tool_call_input"

    def __init__(self, output: Output, call_id: str, origin: Origin) -> None:
        super().__init__(output, call_id, origin)
        self._reader = InputReader()

    def add(self, arguments: str) -> bytes:
        text = self._reader.push(arguments)
        return super().add(text) if text else b""

    def done(self, status: Status) -> tuple[dict[str, Any], list[bytes]]:
        rest = self._reader.finish()
        said = [super().add(rest)] if rest else []
        item, end = super().done(status)
        return item, said + end

    def _named(self) -> dict[str, str]:
        return {}


def _output_text(text: str, logprobs: Large | list[Any]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _behind(text: str, tokens: list[TokenLogprob]) -> tuple[list[TokenLogprob], list[TokenLogprob]]:
    """The tokens that `text` was made of, among those of which it may be, and those that follow them."""
    wanted = text.encode()
    start = b"".join(token.raw for token in tokens).rfind(wanted)
    if start < 0:  # a part of it was held back, or has been replaced
        return tokens, []
    mine, at = [], 0
    for i, token in enumerate(tokens):
        if at >= start + len(wanted):
            return mine, tokens[i:]
        if at + len(token.raw) > start:
            mine.append(token)
        at += len(token.raw)
    return mine, []
