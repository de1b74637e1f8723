"""What a way to write tool calls has to offer: one file a format, and a line in the registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from ipc.messages import ToolCall, ToolCallDelta

Part = tuple[Literal["text"], str] | tuple[Literal["tool"], ToolCallDelta]


class CallParser(Protocol):
    """Finds tool calls in the text of one answer as it streams."""

    @property
    def calls(self) -> list[ToolCall]:
        """The calls so far; the last one may be incomplete."""
        ...

    @property
    def limited(self) -> bool:
        """Whether a call may end the answer."""
        ...

    @property
    def over(self) -> bool:
        """Whether there were as many calls as there may be."""
        ...

    def push(self, text: str) -> list[Part]:
        """Take more text; the parts that are sure."""
        ...

    def finish(self, cut: bool = False) -> list[Part]:
        """What was held back, once it is known that nothing follows."""
        ...


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A format. Without state: one for all models that write it.

    Attributes:
        opening, closing: the tags around a call, which are text even where they are special tokens.
        head: what comes before the arguments of a call, which are JSON, from the tool's name.
        tail: what comes after them.
        parser: makes a parser for one answer; for its arguments see `hermes.ToolCallParser`.
    """

    name: str
    opening: str
    closing: str
    head: Callable[[str], str]
    tail: str
    parser: Callable[..., CallParser]

    def is_of(self, template: str) -> bool:
        """Whether a chat template has its model write calls this way."""
        return self.opening in template
