"""Calls of tools as chat completions write them: of functions, of custom tools, and for old clients."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct, UnsetType

from gateway.dialects.openai.custom_tools import InputReader, as_input
from gateway.dialects.openai.tools import ChosenTools
from gateway.dialects.writing import encode, json_string, on_one_line
from ipc.messages.answers import FinishReason, ToolCallDelta
from ipc.messages.conversation import ToolCall


class FunctionOut(Struct):
    name: str
    arguments: str


class CustomOut(Struct):
    name: str
    input: str


class CallOut(Struct):
    id: str
    type: str
    function: FunctionOut | UnsetType = UNSET
    custom: CustomOut | UnsetType = UNSET


def calls_out(calls: list[ToolCall], tools: ChosenTools) -> list[CallOut]:
    """The calls of a whole answer."""
    return [
        CallOut(call.id, "custom", custom=CustomOut(call.name, as_input(call.arguments)))
        if call.name in tools.custom
        else CallOut(call.id, "function", FunctionOut(call.name, call.arguments))
        for call in calls
    ]


def reason_out(reason: FinishReason, tools: ChosenTools) -> str:
    """Why an answer ended, in the words that the client knows."""
    return "function_call" if tools.is_old and reason == "tool_calls" else reason


class CallWriter:
    """Writes the calls of one streamed answer. The first piece of a call names it and has nothing else."""

    def __init__(self, tools: ChosenTools) -> None:
        self._tools = tools
        self._open: tuple[int, InputReader] | None = None  # a call of a custom tool, and its reader

    def pieces(self, call: ToolCallDelta) -> list[bytes]:
        """The members `delta` of chunks for what is new of a call."""
        pieces: list[bytes] = []
        if call.call_id is not None:
            pieces = [*self.finish(), self._first(call)]
        if not call.arguments:
            return pieces
        if self._open is not None:
            text = self._open[1].push(call.arguments)
            return [*pieces, _custom(call.index, text)] if text else pieces
        return [*pieces, self._more(call)]

    def finish(self) -> list[bytes]:
        """What was held back of the last call."""
        if self._open is None:
            return []
        (index, reader), self._open = self._open, None
        text = reader.finish()
        return [_custom(index, text)] if text else []

    def _first(self, call: ToolCallDelta) -> bytes:
        name = call.name or ""
        if self._tools.is_old:
            return _delta({"function_call": {"name": name, "arguments": ""}})
        head = {"index": call.index, "id": call.call_id}
        if name in self._tools.custom:
            self._open = call.index, InputReader()
            return _call(head | {"type": "custom", "custom": {"name": name, "input": ""}})
        return _call(head | {"type": "function", "function": {"name": name, "arguments": ""}})

    def _more(self, call: ToolCallDelta) -> bytes:
        if self._tools.is_old:
            return _delta({"function_call": {"arguments": call.arguments}})
        start = b'"delta":{"tool_calls":[{"index":%d,"function":{"arguments":' % call.index
        return b"".join((start, json_string(call.arguments), b"}}]}"))


def _custom(index: int, text: str) -> bytes:
    return _call({"index": index, "custom": {"input": text}})


def _call(piece: dict[str, Any]) -> bytes:
    return _delta({"tool_calls": [piece]})


def _delta(delta: dict[str, Any]) -> bytes:
    return b'"delta":' + on_one_line(encode(delta))
