"""The turns of a conversation: Anthropic's system prompt and messages, as canonical messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from gateway.dialects.anthropic.blocks import Content, assistant_parts, summary, system_parts, user_parts
from gateway.dialects.fields import MISSING, bad_request
from gateway.dialects.summaries import HEAD
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


Effort = Literal["low", "medium", "high", "xhigh", "max"]


class TurnConfig(Struct):
    effort: Effort | None = None


class TurnField(Struct):
    """One message. What the operator says on the way may hold until the user's next one alone (`clear_at`),
    and may say nothing but how hard the model is to think about the turn (`output_config`)."""

    role: Role
    content: Content | None = None
    clear_at: Literal["next_user_message", "never"] | None = None
    output_config: TurnConfig | None = None


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
    """The turns of a conversation; those of one role that follow each other are one. A summary stands for all
    messages before it, and is the user's words.

    Raises:
        CortexError: a block cannot be read, a result is of no call, or there are too many turns or blocks.
    """
    turns: list[Turn] = []
    if system is not None and (content := _without_billing(system)):
        turns.append(Turn("system", "system"))
        turns[-1].add(content, "system")
    head, last = len(turns), _last_of_user(messages)
    for i, message in enumerate(messages):
        place = f"messages[{i}]"
        if message.content is None and not (message.role == "system" and message.output_config):
            raise bad_request(f"{place}.content", MISSING)
        if message.content is None or (message.clear_at == "next_user_message" and i < last):
            continue
        if said := summary(message.content, f"{place}.content"):
            turns[head:] = [Turn("user", place, text=HEAD + said)]
        if not turns or message.role != turns[-1].role or message.role == "system":
            turns.append(Turn(message.role, place))
        turns[-1].add(message.content, place)
        if turns[-1].size > MAX_PARTS:
            raise bad_request(f"{place}.content", f"its turn has more than {MAX_PARTS} blocks with it")
        if turns[-1].is_empty and (said or message.role == "system"):
            turns.pop()
    if turns and turns[-1].role == "assistant" and turns[-1].is_empty:
        turns.pop()  # there is nothing in it to be gone on with
    if not turns:
        raise bad_request("messages", "nobody says anything")
    if len(turns) > MAX_TURNS:
        raise bad_request("messages", f"there are {len(turns)} turns, more than {MAX_TURNS}")
    _see_calls(turns)
    return turns


def effort(messages: Sequence[TurnField]) -> Effort | None:
    """How hard the model is to think about the turn that it is in, where the operator said it on the way."""
    said = None
    for message in messages:
        if message.role == "user" and not _is_results(message.content):
            said = None
        elif message.role == "system" and message.output_config is not None:
            said = message.output_config.effort or said
    return said


def _last_of_user(messages: Sequence[TurnField]) -> int:
    """The index of the user's last message; -1: there is none."""
    return max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)


def _is_results(content: Content | None) -> bool:
    """Whether a message of the user only brings what tools found, in a turn that goes on."""
    return isinstance(content, list) and bool(content) and all(each.type == "tool_result" for each in content)


def ends_in_results(messages: Sequence[TurnField]) -> bool:
    """Whether the model is to go on after calls of tools; what the operator said meanwhile has no say."""
    last = next((message for message in reversed(messages) if message.role != "system"), None)
    return last is not None and last.role == "user" and _is_results(last.content)


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
