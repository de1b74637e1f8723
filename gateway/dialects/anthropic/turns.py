"""The turns of a conversation: Anthropic's system prompt and messages, as canonical messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from gateway.dialects.anthropic.blocks import Content, assistant_parts, system_parts, user_parts
from gateway.dialects.fields import bad_request
from gateway.refusals import shown
from ipc.messages.conversation import (
    MAX_PARTS,
    MAX_TURNS,
    ContentPart,
    Message,
    TextPart,
    ToolCall,
    ToolResultPart,
)

Role = Literal["user", "assistant", "system"]

BILLING = "x-anthropic-billing-header:"  # differs from one conversation to the next, and means nothing

_READ = {"user": user_parts, "assistant": assistant_parts, "system": system_parts}


class TurnField(Struct):
    role: Role
    content: Content


@dataclass(slots=True)
class Turn:
    """One turn, of one or several messages.

    Attributes:
        place: what the client calls it.
        text: its content, where that is one text.
        places: what the client calls the blocks that its parts came from.
    """

    role: Role
    place: str
    text: str | None = None
    parts: list[ContentPart] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)

    def add(self, content: Content, place: str) -> None:
        """Take the content of a message, whose name for the client is `place`."""
        if isinstance(content, str) and self.text is None and not self.parts and not self.calls:
            self.text = content
            return
        if self.text is not None:
            text, self.text = self.text, None
            self._say(text, self.place)
        if isinstance(content, str):
            self._say(content, place)
            return
        param = place if self.role == "system" and place == "system" else f"{place}.content"
        for part, where in _READ[self.role](content, param):
            if isinstance(part, ToolCall):
                self.calls.append(part)
            else:
                self.parts.append(part)
                self.places.append(where)

    def _say(self, text: str, place: str) -> None:
        if text:
            self.parts.append(TextPart(text=text))
            self.places.append(place)

    @property
    def size(self) -> int:
        return len(self.parts) + len(self.calls)

    @property
    def is_empty(self) -> bool:
        return not (self.text or self.parts or self.calls)

    @property
    def ends_in_text(self) -> bool:
        if self.calls:
            return False
        return bool(self.text) or (bool(self.parts) and isinstance(self.parts[-1], TextPart))

    def message(self) -> Message:
        content = self.parts if self.text is None else self.text
        return Message(role=self.role, content=content, tool_calls=self.calls)


def read(system: Content | None, messages: Sequence[TurnField]) -> list[Turn]:
    """The turns of a conversation; those of one role that follow each other are one.

    Raises:
        CortexError: a block cannot be read, a result is of no call, or there are too many turns or blocks.
    """
    turns: list[Turn] = []
    if system is not None and (content := _without_billing(system)):
        turns.append(Turn("system", "system"))
        turns[-1].add(content, "system")
    for i, message in enumerate(messages):
        if not turns or message.role != turns[-1].role or message.role == "system":
            turns.append(Turn(message.role, f"messages[{i}]"))
        turns[-1].add(message.content, f"messages[{i}]")
        if turns[-1].size > MAX_PARTS:
            raise bad_request(f"messages[{i}].content", f"its turn has more than {MAX_PARTS} blocks with it")
    if turns[-1].role == "assistant" and turns[-1].is_empty:
        turns.pop()  # there is nothing in it to be gone on with
    if not turns:
        raise bad_request("messages", "nobody says anything")
    if len(turns) > MAX_TURNS:
        raise bad_request("messages", f"there are {len(turns)} turns, more than {MAX_TURNS}")
    _see_calls(turns)
    return turns


def names(turns: Sequence[Turn]) -> Iterator[tuple[str, str]]:
    """The neuron's names for turns and their parts, and the client's; parts come before their turn."""
    for k, turn in enumerate(turns):
        for j, place in enumerate(turn.places):
            yield f"messages[{k}].content[{j}]", place
        yield f"messages[{k}]", turn.place


def _without_billing(system: Content) -> Content:
    """The system prompt without the line that Claude Code begins it with."""
    if isinstance(system, str):
        return system.partition("\n")[2] if system.startswith(BILLING) else system
    first = system[0] if system else None
    if first is None or first.text is None or not first.text.startswith(BILLING):
        return system
    rest = first.text.partition("\n")[2]
    return [replace(first, text=rest), *system[1:]] if rest else system[1:]


def _see_calls(turns: Sequence[Turn]) -> None:
    """See that each result of a tool is that of a call before it."""
    called: set[str] = set()
    for turn in turns:
        called.update(call.id for call in turn.calls)
        for part, place in zip(turn.parts, turn.places, strict=True):
            if isinstance(part, ToolResultPart) and part.tool_call_id not in called:
                raise bad_request(
                    f"{place}.tool_use_id",
                    f"no `tool_use` block before this `tool_result` has the id {shown(part.tool_call_id)}",
                )
