"""Items as clients send them, and the messages that they are to a model.

Thoughts, texts and calls of the assistant that follow one another are one turn. Kinds that only a provider
can serve, such as `web_search_call`, are skipped with whatever answers them, and so are kinds that nobody
here has heard of: clients keep them in every conversation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Meta, Struct

from gateway.dialects import free_json
from gateway.dialects.fields import Short, ShortName, bad_request, convert, required, unsupported
from gateway.dialects.openai.custom_tools import as_arguments
from gateway.dialects.openai.images import image
from gateway.dialects.openai.responses.tools import flat_name
from gateway.dialects.openai.text_files import NO_FILES, text_of
from gateway.dialects.thoughts import unseal
from gateway.refusals import shown
from ipc.messages.conversation import MAX_PARTS, ContentPart, Message, TextPart, ToolCall


class Entry(NamedTuple):
    """An item, and the name of the field that it came in."""

    param: str
    item: dict[str, Any]


class Part(Struct):
    """A piece of content. `detail` of an image makes no difference: models take an image as it is."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    filename: Short | None = None
    file_data: str | None = None
    file_id: str | None = None
    file_url: str | None = None


Parts = Annotated[list[Part], Meta(max_length=MAX_PARTS)]
Content = str | Parts


class MessageItem(Struct):
    role: Literal["user", "assistant", "system", "developer"]
    content: Content


class ReasoningItem(Struct):
    summary: Parts | None = None
    content: Parts | None = None
    encrypted_content: str | None = None


class FunctionCallItem(Struct):
    call_id: ShortName
    name: ShortName
    arguments: str
    namespace: Short | None = None


class CustomCallItem(Struct):
    call_id: ShortName
    name: ShortName
    input: str
    namespace: Short | None = None


class OutputItem(Struct):
    call_id: ShortName
    output: Content


class CompactionItem(Struct):
    encrypted_content: str


class ReferenceItem(Struct):
    id: ShortName


class AdditionalToolsItem(Struct):
    tools: list[dict[str, Any]]


def kind_of(entry: Entry) -> str:
    """The type of an item, which messages and references may leave out; CortexError where it is no text."""
    kind = entry.item.get("type")
    if kind is None:
        return "item_reference" if "id" in entry.item and "role" not in entry.item else "message"
    if not isinstance(kind, str):
        raise bad_request(f"{entry.param}.type", f"Expected `str`, got `{type(kind).__name__}`")
    return kind


def referred(entry: Entry) -> str | None:
    """The id of the item that stands elsewhere and is meant here; None where it is no reference."""
    if kind_of(entry) != "item_reference":
        return None
    return convert(entry.item, ReferenceItem, entry.param).id


def messages(entries: Iterable[Entry]) -> list[Message]:
    """The canonical messages of a conversation.

    Raises:
        CortexError: an item of a kind that we know is wrong, or an output has no call before it; `param`
            names the field.
    """
    reader = _Reader()
    for entry in entries:
        reader.take(entry)
    return reader.finish()


def alone(entries: Iterable[Entry]) -> list[Message]:
    """The same of items that something stands before: what they answer may be there.

    Raises:
        CortexError: an item by itself is wrong.
    """
    reader = _Reader(alone=True)
    for entry in entries:
        reader.take(entry)
    return reader.finish()


def additional_tools(entries: Iterable[Entry]) -> list[Entry]:
    """The tools that come within the conversation."""
    return [
        Entry(f"{entry.param}.tools[{i}]", tool)
        for entry in entries
        if kind_of(entry) == "additional_tools"
        for i, tool in enumerate(convert(entry.item, AdditionalToolsItem, entry.param).tools)
    ]


class _Reader:
    def __init__(self, alone: bool = False) -> None:
        self._alone = alone  # whether calls may have been made before
        self._messages: list[Message] = []
        self._calls: set[str] = set()  # ids of calls so far
        self._skipped: set[str] = set()  # the same, of calls that no model here can have made
        # The turn of the assistant that is open.
        self._thought: list[str] = []
        self._said: str | list[ContentPart] | None = None
        self._called: list[ToolCall] = []

    def take(self, entry: Entry) -> None:
        free_json.check(entry.param, entry.item)
        match kind_of(entry):
            case "message":
                self._message(entry)
            case "reasoning":
                self._reasoning(convert(entry.item, ReasoningItem, entry.param), entry.param)
            case "function_call":
                call = convert(entry.item, FunctionCallItem, entry.param)
                self._call(call.call_id, flat_name(call.name, call.namespace), call.arguments)
            case "custom_tool_call":
                custom = convert(entry.item, CustomCallItem, entry.param)
                self._call(
                    custom.call_id, flat_name(custom.name, custom.namespace), as_arguments(custom.input)
                )
            case "function_call_output" | "custom_tool_call_output":
                self._output(convert(entry.item, OutputItem, entry.param), entry.param)
            case "compaction" | "compaction_summary":
                summary = unseal(convert(entry.item, CompactionItem, entry.param).encrypted_content)
                if summary is not None:
                    self._end_turn()
                    self._messages.append(Message(role="user", content=summary))
            case "compaction_trigger":
                instead = "POST /v1/responses/compact makes a conversation shorter"
                raise unsupported(f"{entry.param}.type", f"'compaction_trigger' is not supported; {instead}")
            case _:
                if isinstance(call_id := entry.item.get("call_id"), str):
                    self._skipped.add(call_id)

    def finish(self) -> list[Message]:
        self._end_turn()
        return self._messages

    def _message(self, entry: Entry) -> None:
        item = convert(entry.item, MessageItem, entry.param)
        content = _content(item.content, f"{entry.param}.content")
        if item.role != "assistant":
            self._end_turn()
            self._messages.append(Message(role=item.role, content=content))
            return
        if self._said is not None or self._called:
            self._end_turn()
        self._said = content

    def _reasoning(self, item: ReasoningItem, param: str) -> None:
        thought = _thought(item, param)
        if not thought:
            return
        if self._said is not None or self._called:
            self._end_turn()
        self._thought.append(thought)

    def _call(self, call_id: str, name: str, arguments: str) -> None:
        self._calls.add(call_id)
        self._called.append(ToolCall(id=call_id, name=name, arguments=arguments))

    def _output(self, item: OutputItem, param: str) -> None:
        if item.call_id not in self._calls:
            if item.call_id in self._skipped:
                return
            if not self._alone:
                text = f"there is no call with the id {shown(item.call_id)} before it"
                raise bad_request(f"{param}.call_id", text)
        self._end_turn()
        content = _content(item.output, f"{param}.output")
        self._messages.append(Message(role="tool", content=content, tool_call_id=item.call_id))

    def _end_turn(self) -> None:
        if self._thought or self._said is not None or self._called:
            turn = Message(
                role="assistant",
                content=self._said or "",
                reasoning="\n".join(self._thought) if self._thought else None,
                tool_calls=self._called,
            )
            self._messages.append(turn)
        self._thought, self._said, self._called = [], None, []


def _thought(item: ReasoningItem, param: str) -> str | None:
    """What was thought; None of a thought that another provider sealed, since what it shows may be less."""
    if item.encrypted_content:
        return unseal(item.encrypted_content)
    for name in ("content", "summary"):
        texts = [_text(part, f"{param}.{name}[{i}]") for i, part in enumerate(getattr(item, name) or ())]
        if texts:
            return "\n".join(texts)
    return None


def _content(content: Content, param: str) -> str | list[ContentPart]:
    """Text, or several parts, or one that is no text."""
    if isinstance(content, str):
        return content
    parts = [_part(part, f"{param}[{i}]") for i, part in enumerate(content)]
    if not parts:
        return ""
    return parts[0].text if len(parts) == 1 and isinstance(parts[0], TextPart) else parts


def _part(part: Part, param: str) -> ContentPart:
    if part.type == "refusal":
        return TextPart(text=required(part.refusal, f"{param}.refusal"))
    if part.file_id is not None and part.type in ("input_image", "input_file"):
        raise unsupported(f"{param}.file_id", NO_FILES)
    if part.type == "input_file":
        if part.file_url is not None:
            raise unsupported(f"{param}.file_url", "only images are fetched; send the file as file_data")
        return text_of(part.file_data, part.filename, param)
    if part.type == "input_image":
        return image(required(part.image_url, f"{param}.image_url"), f"{param}.image_url")
    if part.type in ("input_text", "output_text", "text", "summary_text", "reasoning_text"):
        return TextPart(text=_text(part, param))
    raise unsupported(
        f"{param}.type", f"{shown(part.type)} is not supported; texts, input_image and input_file are"
    )


def _text(part: Part, param: str) -> str:
    return required(part.text, f"{param}.text")
