"""Tool calls in the Hermes format: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` in the text."""

from __future__ import annotations

import re
import secrets
from typing import Any, Literal

import msgspec

from ipc.messages import ToolCall, ToolCallDelta
from neuron.text.tags import CALL, END_CALL, SPACE, before

Part = tuple[Literal["text"], str] | tuple[Literal["tool"], ToolCallDelta]

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


class _Call(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class ToolCallParser:
    """Finds tool calls in text as it streams.

    A call is handed out whole, once it is known to be one. What only looks like one (bad JSON, no end) comes
    out as the text that it is.
    """

    def __init__(self) -> None:
        self.calls: list[ToolCall] = []
        self._text = ""  # outside of a call: what may be the start of one; inside: the call so far
        self._opening: str | None = None  # inside of a call: its tag with the space before it
        self._looked_at = 0  # characters of the call that hold no end of it
        self._after_call = False  # space that comes now belongs to the tag

    def push(self, text: str) -> list[Part]:
        """Take more text; the parts that are sure."""
        self._text += text
        parts: list[Part] = []
        while self._step(parts):
            pass
        return parts

    def finish(self) -> list[Part]:
        """What was held back, once it is known that nothing follows."""
        parts: list[Part] = []
        if self._opening is not None:
            # Models may end their answer instead of the call, as the end of text says the same.
            self._close(parts, self._text, "")
            self._text = ""
        if self._text:
            parts.append(("text", self._text))
        self._text = ""
        return parts

    def _step(self, parts: list[Part]) -> bool:
        """Take one part off the text; False when it needs more text."""
        if self._opening is not None:
            end = self._text.find(END_CALL, self._looked_at)
            if end < 0:
                self._looked_at = max(self._looked_at, len(self._text) - len(END_CALL) + 1)
                return False
            body, rest = self._text[:end], self._text[end + len(END_CALL) :]
            if '"' in _STRING.sub("", body):  # the tag is in a string of the arguments
                self._looked_at = end + len(END_CALL)
                return True
            self._text = rest
            self._close(parts, body, END_CALL)
            return True
        if self._after_call:
            self._text = self._text.lstrip(SPACE)
            self._after_call = not self._text
        said, tag, rest = self._text.partition(CALL)
        sure = len(said.rstrip(SPACE)) if tag else before(CALL, self._text)
        if sure:
            parts.append(("text", self._text[:sure]))
        if not tag:
            self._text = self._text[sure:]
            return False
        self._opening, self._text, self._looked_at = said[sure:] + tag, rest, 0
        return True

    def _close(self, parts: list[Part], body: str, ending: str) -> None:
        call = parse_call(body)
        if call is None:
            parts.append(("text", self._opening + body + ending))
        else:
            delta = ToolCallDelta(
                index=len(self.calls), call_id=call.id, name=call.name, arguments=call.arguments
            )
            self.calls.append(call)
            parts.append(("tool", delta))
        self._opening, self._after_call = None, call is not None


def parse_call(body: str) -> ToolCall | None:
    """The call that `body` holds, its arguments as the model wrote them; None when it holds none.

    Arguments are a JSON object, or a string that holds one.
    """
    try:
        call = msgspec.json.decode(body, type=_Call)
        arguments = bytes(call.arguments).decode()
        value: Any = msgspec.json.decode(arguments)
        if isinstance(value, str):
            arguments, value = value, msgspec.json.decode(value)
    except (msgspec.MsgspecError, RecursionError):
        return None
    if value is None:
        arguments, value = "{}", {}
    if not isinstance(value, dict) or not call.name:
        return None
    return ToolCall(id=f"call_{secrets.token_hex(12)}", name=call.name, arguments=arguments)
