"""Parts of messages, sorted into the turns that templates know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from ipc.errors import Code, CortexError
from ipc.messages import ContentPart, ImagePart, Message, TextPart, ThinkingPart, ToolResultPart


def turns(messages: Sequence[Message]) -> Iterator[Message]:
    """The same conversation, with text for content, or parts of nothing but text where the client sent parts:
    results of tools become turns of their own, thoughts the reasoning of their turn.

    Raises:
        CortexError: NOT_SUPPORTED naming a part that is no text.
    """
    for i, message in enumerate(messages):
        if isinstance(message.content, str):
            yield message
            continue
        param = f"messages[{i}].content"
        said, thought = [], [] if message.reasoning is None else [message.reasoning]
        for j, part in enumerate(message.content):
            if isinstance(part, ToolResultPart):
                yield _result(part, f"{param}[{j}]")
            elif isinstance(part, ThinkingPart):
                thought.append(part.text)
            else:
                said.append(_only_text(part, f"{param}[{j}]"))
        if said or thought or message.tool_calls or not message.content:
            yield replace(message, content=said, reasoning="\n".join(thought) if thought else None)


def characters(messages: Sequence[Message]) -> int:
    """Of what users and tools said, which no template leaves out. (Thoughts of former turns it may.)"""
    return sum(
        size(message)
        for message in messages
        if message.role in ("user", "tool")
        and (isinstance(message.content, str) or all(isinstance(part, TextPart) for part in message.content))
    )


def size(message: Message) -> int:
    """Characters and bytes of its content."""
    return len(message.content) if isinstance(message.content, str) else sum(map(_size, message.content))


def _result(part: ToolResultPart, param: str) -> Message:
    content = part.content
    if not isinstance(content, str):
        content = [_only_text(each, f"{param}.content[{k}]") for k, each in enumerate(content)]
    return Message(role="tool", content=content, tool_call_id=part.tool_call_id)


def _only_text(part: TextPart | ImagePart, param: str) -> TextPart:
    if isinstance(part, ImagePart):
        raise CortexError(Code.NOT_SUPPORTED, f"{param}: the model takes no images", param=param)
    return part


def _size(part: ContentPart) -> int:
    if isinstance(part, ToolResultPart):
        return len(part.content) if isinstance(part.content, str) else sum(map(_size, part.content))
    return len(part.data) if isinstance(part, ImagePart) else len(part.text)
