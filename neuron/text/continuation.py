"""The last turn of a conversation, where the assistant is to go on with it instead of answering.

Templates close every turn. So the text of the last one gets a mark at its end, and what a template writes
behind the mark is cut off.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from msgspec.structs import replace

from ipc.errors import Code, CortexError
from ipc.messages.conversation import Message, TextPart

_MARK = f"qzx{secrets.token_hex(8)}"  # no conversation has it


def can_continue(messages: Sequence[Message]) -> bool:
    """Whether the last turn is the assistant's and ends in text."""
    if not messages:
        return False
    last = messages[-1]
    if last.role != "assistant" or last.tool_calls or not last.content:
        return False
    return isinstance(last.content, str) or isinstance(last.content[-1], TextPart)


def marked(messages: Sequence[Message]) -> list[Message]:
    """The same conversation, with the mark at its end."""
    *others, last = messages
    if isinstance(last.content, str):
        content = last.content + _MARK
    else:
        *parts, part = last.content
        content = [*parts, replace(part, text=part.text + _MARK)]
    return [*others, replace(last, content=content)]


def cut(rendered: str) -> str:
    """A prompt up to the mark. CortexError when the template left it out."""
    prompt, mark, _ = rendered.rpartition(_MARK)
    if not mark:
        text = "the chat template leaves out the last turn of the assistant, which is to be continued"
        raise CortexError(Code.TEMPLATE_FAILED, text, param="messages")
    return prompt
