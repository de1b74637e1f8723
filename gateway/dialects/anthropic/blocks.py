"""Content of messages: Anthropic's blocks, and the parts of a canonical conversation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct, field
from msgspec.structs import replace

from gateway.dialects.anthropic.identifiers import inward
from gateway.dialects.fields import MISSING, bad_request, required, unsupported
from gateway.dialects.images import behind, from_base64
from gateway.dialects.thoughts import unseal
from gateway.fetching.linked import LinkedImage
from gateway.refusals import shown
from ipc.errors import Code, CortexError
from ipc.messages.conversation import (
    MAX_PARTS,
    ContentPart,
    ImagePart,
    TextPart,
    ThinkingPart,
    ToolCall,
    ToolResultPart,
)
from ipc.messages.values import MAX_NAME


class Source(Struct):
    """Where an image or a document is."""

    type: str
    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    content: Content | None = None


class Block(Struct):
    """A block of any kind. Each has a few of these fields, and others that make no difference here
    (`cache_control`, `citations`, `caller`)."""

    type: str
    text: str | None = None
    source: Source | str | None = None  # a text where the block is a search result
    id: str | None = None
    name: str | None = None
    # Empty where there is none: with None beside it in the type, nothing would be taken for raw.
    input: Raw = field(default_factory=Raw)
    tool_use_id: str | None = None
    content: Content | dict[str, Any] | None = None
    is_error: bool | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    title: str | None = None
    context: str | None = None
    tool_name: str | None = None
    tool: dict[str, Any] | None = None  # that is offered from here on, or no more
    tool_changes: list[Block] | None = None  # of what a summary stands for


Content = str | Annotated[list[Block], Meta(max_length=MAX_PARTS)]

# What tools of Anthropic's servers did in a former turn. No model here has them, and what came of it is in
# the text behind it.
_SERVER_SIDE = ("server_tool_use", "mcp_tool_use", "mcp_tool_listing", "container_upload", "fallback")

# What a conversation says of its tools on its way. `tools` reads it.
TOOL_CHANGES = ("tool_addition", "tool_removal")


def is_server_side(block: Block) -> bool:
    """Whether it tells of a tool that no model here has."""
    return block.type in _SERVER_SIDE or block.type.endswith("_tool_result")


Placed = tuple[ContentPart | ToolCall, str]  # a part, and what the client calls the block that it came from


def user_parts(blocks: Sequence[Block], param: str) -> Iterator[Placed]:
    """The parts of a turn of the user."""
    for block, place in _placed(blocks, param):
        if block.type == "tool_result":
            yield _result(block, place), place
        else:
            for part in _said(block, place):
                yield part, place


def assistant_parts(blocks: Sequence[Block], param: str) -> Iterator[Placed]:
    """The parts of a turn of the assistant, calls of tools among them."""
    for block, place in _placed(blocks, param):
        if block.type == "tool_use":
            yield _call(block, place), place
        elif block.type == "thinking":
            text = required(block.thinking, f"{place}.thinking") or unseal(block.signature or "") or ""
            if text:
                yield ThinkingPart(text=text), place
        elif block.type == "redacted_thinking":
            if text := unseal(required(block.data, f"{place}.data")):
                yield ThinkingPart(text=text), place
        else:
            for part in _said(block, place):
                yield part, place


def system_parts(blocks: Sequence[Block], param: str) -> Iterator[tuple[TextPart, str]]:
    """The parts of what the operator says, which are text."""
    for block, place in _placed(blocks, param):
        if block.type in TOOL_CHANGES:
            continue
        if block.type != "text":
            raise unsupported(f"{place}.type", f"{shown(block.type)} is not supported here; text is")
        yield TextPart(text=required(block.text, f"{place}.text")), place


def _placed(blocks: Sequence[Block], param: str) -> Iterator[tuple[Block, str]]:
    for i, block in enumerate(blocks):
        yield block, f"{param}[{i}]"


def _said(block: Block, param: str) -> list[TextPart | ImagePart]:
    """What a block says that may stand with anybody; nothing where it tells of a tool that is not here."""
    read = _READ.get(block.type)
    if read is not None:
        return read(block, param)
    if is_server_side(block) or block.type in TOOL_CHANGES:
        return []
    known = ", ".join(_READ)
    raise unsupported(f"{param}.type", f"{shown(block.type)} is not supported here; {known} are")


def _text(block: Block, param: str) -> list[TextPart | ImagePart]:
    return [TextPart(text=required(block.text, f"{param}.text"))]


def _image(block: Block, param: str) -> list[TextPart | ImagePart]:
    source, param = _source(block, param)
    if source.type == "url":
        param += ".url"
        return [behind(required(source.url, param), param, "with a source of type base64")]
    if source.type != "base64":
        raise unsupported(
            f"{param}.type", f"{shown(source.type)} is not supported: send the image itself, as base64"
        )
    media_type = required(source.media_type, f"{param}.media_type")
    if not media_type.startswith("image/") or len(media_type) > MAX_NAME:
        raise bad_request(f"{param}.media_type", f"{shown(media_type)} is none of an image")
    param += ".data"
    return [from_base64(required(source.data, param), media_type, param)]


def _document(block: Block, param: str) -> list[TextPart | ImagePart]:
    source, place = _source(block, param)
    head = [TextPart(text=text) for text in (block.title, block.context) if text]
    if source.type == "text":
        return [*head, TextPart(text=required(source.data, f"{place}.data"))]
    if source.type == "content":
        return head + _inner(required(source.content, f"{place}.content"), f"{place}.content")
    if source.type == "base64":
        kind = shown(source.media_type or "application/pdf")
        raise unsupported(f"{place}.media_type", f"{kind} is not supported: send the document's text")
    raise unsupported(f"{place}.type", f"{shown(source.type)} is not supported: send the document's text")


def _search_result(block: Block, param: str) -> list[TextPart | ImagePart]:
    if not isinstance(block.source, str):
        raise bad_request(f"{param}.source", "Expected `str`" if block.source else MISSING)
    head = [TextPart(text=text) for text in (block.title, block.source) if text]
    return head + _inner(required(block.content, f"{param}.content"), f"{param}.content")


def _tool_reference(block: Block, param: str) -> list[TextPart | ImagePart]:
    """A tool that a search found. All tools of a request are there, so its name is all there is to say."""
    return [TextPart(text=required(block.tool_name, f"{param}.tool_name"))]


def _compaction(block: Block, param: str) -> list[TextPart | ImagePart]:
    """Nothing: the summary is a turn of its own, see `summary`."""
    return []


def summary(content: Content, param: str) -> str | None:
    """The summary of the conversation before, where these blocks hold one; the last of several.

    Raises:
        CortexError: it is no text; `param` names it.
    """
    found: str | None = None
    for block, place in () if isinstance(content, str) else _placed(content, param):
        if block.type != "compaction" or block.content is None:  # null where it could not be made
            continue
        if not isinstance(block.content, str):
            raise bad_request(f"{place}.content", "Expected `str | null`")
        found = block.content or found
    return found


def tool_changes(content: str | Sequence[Block], param: str) -> Iterator[tuple[Block, str]]:
    """What these blocks say of the tools of the conversation, and what the client calls each."""
    for block, place in () if isinstance(content, str) else _placed(content, param):
        if block.type in TOOL_CHANGES:
            yield block, place
        elif block.type == "compaction" and block.tool_changes:
            yield from tool_changes(block.tool_changes, f"{place}.tool_changes")


_READ: dict[str, Callable[[Block, str], list[TextPart | ImagePart]]] = {
    "text": _text,
    "image": _image,
    "document": _document,
    "search_result": _search_result,
    "tool_reference": _tool_reference,
    "compaction": _compaction,
}


_NO_CONTENT = "Expected `str | array`, got `object`"


def _inner(content: str | list[Block] | dict[str, Any], param: str) -> list[TextPart | ImagePart]:
    """The content of a block within a block."""
    if isinstance(content, str):
        return [TextPart(text=content)]
    if isinstance(content, dict):
        raise bad_request(param, _NO_CONTENT)
    return [part for block, place in _placed(content, param) for part in _said(block, place)]


def _result(block: Block, param: str) -> ToolResultPart:
    content = "" if block.content is None else block.content
    return ToolResultPart(
        tool_call_id=call_id(block.tool_use_id, f"{param}.tool_use_id"),
        content=content if isinstance(content, str) else _shown(content, f"{param}.content") or "",
        is_error=bool(block.is_error),
    )


def _shown(content: list[Block] | dict[str, Any], param: str) -> list[TextPart | ImagePart]:
    """What a tool shows. Of what cannot be read here the model is told, in place of a refusal: the user has
    not chosen to show it, and it stays in the conversation, which would be over."""
    if isinstance(content, dict):
        raise bad_request(param, _NO_CONTENT)
    parts: list[TextPart | ImagePart] = []
    for block, place in _placed(content, param):
        told = f"(A block of type {shown(block.type)}, which cannot be read here.)"
        try:
            said = _said(block, place)
        except CortexError as error:
            if error.code != Code.NOT_SUPPORTED:
                raise
            said = [TextPart(text=told)]
        parts += [replace(each, told=told) if isinstance(each, LinkedImage) else each for each in said]
    return parts


def _call(block: Block, param: str) -> ToolCall:
    name = required(block.name, f"{param}.name")
    if not 0 < len(name) <= MAX_NAME:
        raise bad_request(f"{param}.name", f"it has {len(name)} characters; 1 to {MAX_NAME} are taken")
    return ToolCall(
        id=call_id(block.id, f"{param}.id"),
        name=name,
        arguments=arguments(required(block.input or None, f"{param}.input"), f"{param}.input"),
    )


def call_id(given: str | None, param: str) -> str:
    """The id of a call, as the neuron knows it."""
    own = inward(required(given, param))
    if not 0 < len(own) <= MAX_NAME:
        raise bad_request(param, f"it has {len(own)} characters; 1 to {MAX_NAME} are taken")
    return own


UNREADABLE = "INVALID_JSON"  # the member of an input that holds what the model wrote and was no JSON


def arguments(given: Raw, param: str) -> str:
    """The text of a call's arguments."""
    try:
        value = msgspec.json.decode(given)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(param, f"it is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise bad_request(param, "Expected `object`")
    if value.keys() == {UNREADABLE} and isinstance(value[UNREADABLE], str):
        return value[UNREADABLE]
    return bytes(given).decode()


def _source(block: Block, param: str) -> tuple[Source, str]:
    if not isinstance(block.source, Source):
        raise bad_request(f"{param}.source", "Expected `object`" if block.source else MISSING)
    return block.source, f"{param}.source"
