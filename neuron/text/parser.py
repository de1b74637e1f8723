"""The parts of an answer: text, reasoning, tool calls; and where its text ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ipc.messages.answers import ToolCallDelta
from ipc.messages.conversation import ToolCall
from neuron.text.formats.call_parser import CallParser
from neuron.text.reasoning import Part, ReasoningSplitter
from neuron.text.stops import StopStrings
from neuron.text.tags import TOKEN, HeldSpace

Piece = tuple[Literal["text", "reasoning"], str] | tuple[Literal["tool"], ToolCallDelta]


class AnswerParser:
    """Takes the text of one answer as it streams and tells its parts apart. However the text was cut, the
    parts are the same; nothing is lost but tags and the space around them.

    Stop strings end an answer in its text: what they mean to say is "write no further than this", and neither
    a thought nor a call is written to somebody.

    Args:
        reasoning: finds the thought; None where none comes.
        tools: finds calls; without it a tool call is text like any other.
        stop: strings that end the answer.
        include_stop: whether the stop string that ends it belongs to it.
    """

    def __init__(
        self,
        reasoning: ReasoningSplitter | None = None,
        tools: CallParser | None = None,
        stop: Sequence[str] = (),
        include_stop: bool = False,
    ) -> None:
        self.stop_sequence: str | None = None  # the stop string that ended it
        self._reasoning = reasoning
        self._tools = tools
        self._stop, self._include_stop = stop, include_stop
        self._stops = StopStrings(stop) if stop else None
        self._space = HeldSpace()  # at the end of the text so far: it belongs to the tag if a call follows

    @property
    def in_reasoning(self) -> bool:
        """Whether the model reasons at the moment."""
        return self._reasoning is not None and self._reasoning.in_reasoning

    @property
    def ended(self) -> bool:
        """Whether the answer is over, whatever the model goes on to write."""
        return self.stop_sequence is not None or (self._tools is not None and self._tools.over)

    @property
    def counts_tokens(self) -> bool:
        """Which token it is matters now, to end the answer there or to tell reasoning from text."""
        thinks = self._reasoning is not None and not (self._reasoning.is_decided and not self.in_reasoning)
        return thinks or self._stops is not None or (self._tools is not None and self._tools.limited)

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls so far."""
        return self._tools.calls if self._tools is not None else []

    def push(self, text: str) -> list[Piece]:
        """Take more text; the pieces that are sure."""
        if self._reasoning is None:
            if self._tools is None and self._stops is None:
                return [("text", said)] if (said := text.replace(TOKEN, "")) else []
            return self._end(self._tell_tools([("text", text)]))
        parts = self._reasoning.push(text)
        if self._reasoning.is_over:
            self._reasoning = None
        return self._end(self._tell_tools(parts))

    def finish(self, cut: bool = False) -> list[Piece]:
        """What was held back, once it is known that nothing follows.

        Args:
            cut: the model had more to say.
        """
        if self._reasoning is None and self._tools is None and self._stops is None:
            return []
        pieces: list[Piece] = []
        if not self.ended:
            parts = self._tell_tools(self._reasoning.finish() if self._reasoning is not None else [])
            pieces = self._end(parts + self._tools.finish(cut) if self._tools is not None else parts)
        if self.stop_sequence is None:
            pieces += self._flush()
        if space := self._space.take():
            pieces.append(("text", space))
        return pieces

    def _tell_tools(self, parts: Sequence[Part]) -> list[Piece]:
        pieces: list[Piece] = []
        for kind, part in parts:
            if kind == "text" and self._tools is not None:
                pieces += self._tools.push(part)
            elif said := part.replace(TOKEN, ""):
                pieces.append((kind, said))
        return pieces

    def _end(self, parts: list[Piece]) -> list[Piece]:
        """The parts up to where a stop string ends the answer, without the space in front of calls."""
        pieces: list[Piece] = []
        for kind, part in parts:
            if kind != "text":
                pieces += self._flush()
                self._space.take()
                pieces.append((kind, part))
                continue
            if self._stops is not None:
                part, self.stop_sequence = self._stops.push(part)
                if self.stop_sequence is not None and self._include_stop:
                    part += self.stop_sequence
            pieces += self._say(part)
            if self.stop_sequence is not None:
                break
        return pieces

    def _flush(self) -> list[Piece]:
        """Text that was held back for a stop string, which does not come any more."""
        return self._say(self._stops.finish()) if self._stops is not None else []

    def _say(self, text: str) -> list[Piece]:
        if self._tools is not None:
            text = self._space.push(text)
        return [("text", text)] if text else []
