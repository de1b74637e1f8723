"""The parts of an answer: text, reasoning, tool calls."""

from __future__ import annotations

from typing import Literal

from ipc.messages import ToolCall, ToolCallDelta
from neuron.text.reasoning import ReasoningSplitter
from neuron.text.tools import ToolCallParser

Piece = tuple[Literal["text", "reasoning"], str] | tuple[Literal["tool"], ToolCallDelta]


class AnswerParser:
    """Takes the text of one answer as it streams and tells its parts apart. However the text was cut, the
    parts are the same; nothing is lost but tags and the space around them.

    Args:
        prompt: the rendered prompt, whose end may have opened the reasoning already.
        tools: whether the request has tools; without them a tool call is text like any other.
    """

    def __init__(self, prompt: str, tools: bool) -> None:
        self._reasoning = ReasoningSplitter(prompt)
        self._tools = ToolCallParser() if tools else None

    @property
    def in_reasoning(self) -> bool:
        """Whether the model reasons at the moment."""
        return self._reasoning.in_reasoning

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls so far."""
        return self._tools.calls if self._tools is not None else []

    def push(self, text: str) -> list[Piece]:
        """Take more text; the pieces that are sure."""
        return self._tell_tools(self._reasoning.push(text))

    def finish(self) -> list[Piece]:
        """What was held back, once it is known that nothing follows."""
        pieces = self._tell_tools(self._reasoning.finish())
        return pieces + self._tools.finish() if self._tools is not None else pieces

    def _tell_tools(self, parts: list[tuple[Literal["text", "reasoning"], str]]) -> list[Piece]:
        pieces: list[Piece] = []
        for kind, part in parts:
            if kind == "text" and self._tools is not None:
                pieces += self._tools.push(part)
            else:
                pieces.append((kind, part))
        return pieces
