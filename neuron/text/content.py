"""Parts of messages, sorted into the turns that templates know."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from ipc.errors import Code, CortexError
from ipc.messages.conversation import ContentPart, ImagePart, Message, TextPart, ThinkingPart, ToolResultPart

_ERROR = "Error: "
_SAYS_ERROR = re.compile(r"\W*\w*error", re.IGNORECASE)
_UNSEEN = "(An image, which this model cannot see.)"


def turns(messages: Sequence[Message], sees: bool = False) -> Iterator[Message]:
    """The same conversation, with text for content, or parts of text and images where the client sent parts:
    results of tools become turns of their own, thoughts the reasoning of their turn.

    Args:
        sees: whether the model does.

    Raises:
        CortexError: NOT_SUPPORTED naming an image that somebody shows a model that does not see.
    """
    for i, message in enumerate(messages):
        if isinstance(message.content, str):
            yield message
            continue
        param = f"messages[{i}].content"
        said, thought = [], [] if message.reasoning is None else [message.reasoning]
        for j, part in enumerate(message.content):
            if isinstance(part, ToolResultPart):
                yield _result(part, sees)
            elif isinstance(part, ThinkingPart):
                thought.append(part.text)
            else:
                said.append(part if sees else _only_text(part, f"{param}[{j}]"))
        if said or thought or message.tool_calls or not message.content:
            yield replace(message, content=said, reasoning="\n".join(thought) if thought else None)


def images(messages: Sequence[Message]) -> Iterator[tuple[str, ImagePart]]:
    """All images of a conversation, in the order in which `turns` has them, each behind its field."""
    for i, message in enumerate(messages):
        results, shown = [], []
        for j, part in enumerate(() if isinstance(message.content, str) else message.content):
            param = f"messages[{i}].content[{j}]"
            if isinstance(part, ImagePart):
                shown.append((param, part))
            elif isinstance(part, ToolResultPart) and not isinstance(part.content, str):
                inner = enumerate(part.content)
                results += [
                    (f"{param}.content[{k}]", each) for k, each in inner if isinstance(each, ImagePart)
                ]
        yield from results
        yield from shown


def says(messages: Sequence[Message], words: str) -> str:
    """The first field of a conversation whose text has these words; `messages`, where none has."""
    for i, message in enumerate(messages):
        for param, text in _texts(message.content, f"messages[{i}].content"):
            if words in text:
                return param
    return "messages"


def _texts(content: str | Sequence[ContentPart], param: str) -> Iterator[tuple[str, str]]:
    if isinstance(content, str):
        yield param, content
        return
    for j, part in enumerate(content):
        if isinstance(part, ToolResultPart):
            yield from _texts(part.content, f"{param}[{j}].content")
        elif not isinstance(part, ImagePart):
            yield f"{param}[{j}]", part.text


def characters(messages: Sequence[Message]) -> int:
    """Of what users and tools said, which no template leaves out. (Thoughts of former turns it may.)"""
    total = 0
    for message in messages:
        if message.role in ("user", "tool"):
            if isinstance(message.content, str):
                total += len(message.content)
            elif all(isinstance(part, TextPart) for part in message.content):
                total += size(message)
    return total


def size(message: Message) -> int:
    """Characters and bytes of its content."""
    return len(message.content) if isinstance(message.content, str) else sum(map(_size, message.content))


def _result(part: ToolResultPart, sees: bool) -> Message:
    """A result, as a turn of its own. Templates have no other way than words to say that a call failed."""
    content: Any = part.content
    if not isinstance(content, str) and not sees:
        content = [_told(each) for each in content]
    if part.is_error:
        first = content
        if not isinstance(content, str):
            first = next((each.text for each in content if isinstance(each, TextPart)), "")
        if not _SAYS_ERROR.match(first):
            content = f"{_ERROR}{content}" if isinstance(content, str) else [TextPart(text=_ERROR), *content]
    return Message(role="tool", content=content, tool_call_id=part.tool_call_id)


def _told(part: TextPart | ImagePart) -> TextPart:
    """A part of a result as the model gets it. An image is told of, not refused: the user has not chosen to
    show it, and it stays in the conversation, which would be over."""
    return part if isinstance(part, TextPart) else TextPart(text=_UNSEEN)


def _only_text(part: TextPart | ImagePart, param: str) -> TextPart:
    if isinstance(part, ImagePart):
        raise CortexError(Code.NOT_SUPPORTED, f"{param}: the model takes no images", param=param)
    return part


def _size(part: ContentPart) -> int:
    if isinstance(part, ToolResultPart):
        return len(part.content) if isinstance(part.content, str) else sum(map(_size, part.content))
    return len(part.data) if isinstance(part, ImagePart) else len(part.text)
