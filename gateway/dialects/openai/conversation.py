"""The messages of a chat, in all the shapes that clients keep them in."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Raw, Struct, field

from gateway.dialects.fields import MISSING, Short, ShortName, bad_request, required, unsupported
from gateway.dialects.openai.custom_tools import as_arguments
from gateway.dialects.openai.images import image
from gateway.dialects.openai.text_files import NO_FILES, text_of
from gateway.refusals import shown
from ipc.messages.conversation import MAX_PARTS, ContentPart, Message, TextPart, ThinkingPart, ToolCall


class ImageUrl(Struct):
    """`detail` makes no difference: models take an image as it is."""

    url: str


class FileField(Struct):
    file_data: str | None = None
    filename: Short | None = None
    file_id: str | None = None


class PartField(Struct):
    """A piece of a message: text, an image, a file, a refusal, or a thought as Mistral writes it."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: ImageUrl | str | None = None  # a bare URL is what older clients send
    file: FileField | None = None
    thinking: str | list[PartField] | None = None


class FunctionCall(Struct):
    """`arguments` is JSON in a text, as OpenAI has it, or the object itself, as some clients keep it."""

    name: ShortName
    arguments: Raw = field(default_factory=lambda: Raw(b'"{}"'))


class CustomCall(Struct):
    name: ShortName
    input: str = ""


class Call(Struct):
    id: Short | None = None
    type: str | None = None
    function: FunctionCall | None = None
    custom: CustomCall | None = None


class ReasoningDetail(Struct):
    """A piece of a thought, as OpenRouter hands it out."""

    text: str | None = None
    summary: str | None = None


class Turn(Struct):
    """One message. `reasoning_content`, `reasoning` and `reasoning_details` are names of the same thing;
    `function_call` and the role `function` came before `tool_calls` and the role `tool`. With `prefix` the
    answer goes on with this message, as Mistral and DeepSeek have it."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[PartField], Meta(max_length=MAX_PARTS)] | None = None
    refusal: str | None = None
    name: Short | None = None
    tool_calls: Annotated[list[Call], Meta(max_length=MAX_PARTS)] | None = None
    tool_call_id: Short | None = None
    function_call: FunctionCall | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: list[ReasoningDetail] | None = None
    prefix: bool | None = None


class ContinueFields(Struct, kw_only=True):
    """Fields of a request that has the answer go on with its last message, as vLLM has it."""

    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None


def continues(fields: ContinueFields, turns: list[Turn]) -> tuple[bool, dict[str, str]]:
    """Whether the answer goes on with the last message, and what the client calls that.

    Raises:
        CortexError: it is to begin anew at the same time, or not to begin at all; `param` names the field.
    """
    begins, name = fields.add_generation_prompt, "add_generation_prompt"
    if fields.continue_final_message:
        if begins:
            raise bad_request(name, "it cannot be true where continue_final_message is")
        return True, {}
    if begins is False:
        raise unsupported(name, "false is supported beside continue_final_message alone")
    if turns and turns[-1].prefix:
        return True, {"continue_final_message": f"messages[{len(turns) - 1}].prefix"}
    return False, {}


def conversation(turns: list[Turn]) -> list[Message]:
    """The canonical messages.

    A result of a tool may name a call that is not there, or none: the template makes of it what it can.

    Raises:
        CortexError: a part or a call is of a kind that we do not know, or incomplete; `param` names it.
    """
    messages: list[Message] = []
    called: dict[str, str] = {}  # ids that we gave to calls without one, by the function's name
    for i, turn in enumerate(turns):
        param = f"messages[{i}]"
        if turn.role == "function":
            messages.append(_function_result(turn, param, called))
            continue
        calls: list[ToolCall] = []
        if turn.tool_calls:
            calls = [_call(call, f"{param}.tool_calls[{j}]") for j, call in enumerate(turn.tool_calls)]
        if turn.function_call is not None:
            called[turn.function_call.name] = call_id = f"call{i:05}"
            arguments = _arguments(turn.function_call, param, ".function_call")
            calls.append(ToolCall(id=call_id, name=turn.function_call.name, arguments=arguments))
        messages.append(
            Message(
                role=turn.role,
                content=_said(turn, param),
                reasoning=_thought(turn),
                tool_calls=calls,
                tool_call_id=turn.tool_call_id,
                name=turn.name,
            )
        )
    return messages


def _function_result(turn: Turn, param: str, called: dict[str, str]) -> Message:
    content = _content(turn.content, param)
    return Message(role="tool", content=content, tool_call_id=called.get(turn.name or ""), name=turn.name)


def _said(turn: Turn, param: str) -> str | list[ContentPart]:
    """The content; a refusal is something that the assistant said."""
    content = _content(turn.content, param)
    if not turn.refusal:
        return content
    if not content:
        return turn.refusal
    parts = [TextPart(text=content)] if isinstance(content, str) else content
    return [*parts, TextPart(text=turn.refusal)]


def _thought(turn: Turn) -> str | None:
    if turn.reasoning_content is not None:
        return turn.reasoning_content
    if turn.reasoning is not None or not turn.reasoning_details:
        return turn.reasoning
    return "".join(each.text or each.summary or "" for each in turn.reasoning_details) or None


def _content(content: str | list[PartField] | None, param: str) -> str | list[ContentPart]:
    if content is None or isinstance(content, str):
        return content or ""
    return [_part(part, f"{param}.content[{i}]") for i, part in enumerate(content)]


def _part(part: PartField, param: str) -> ContentPart:
    match part.type:
        case "text" | "input_text" | "output_text":
            return TextPart(text=required(part.text, f"{param}.text"))
        case "refusal":
            return TextPart(text=required(part.refusal, f"{param}.refusal"))
        case "image_url":
            given = required(part.image_url, f"{param}.image_url")
            if isinstance(given, str):
                return image(given, f"{param}.image_url")
            return image(given.url, f"{param}.image_url.url")
        case "file":
            file = required(part.file, f"{param}.file")
            if file.file_id is not None:
                raise unsupported(f"{param}.file.file_id", NO_FILES)
            return text_of(file.file_data, file.filename, f"{param}.file")
        case "thinking":
            thought = required(part.thinking, f"{param}.thinking")
            if not isinstance(thought, str):
                thought = "".join(each.text or "" for each in thought)
            return ThinkingPart(text=thought)
    raise unsupported(f"{param}.type", f"{shown(part.type)} is not supported; text, image_url and file are")


def _call(call: Call, param: str) -> ToolCall:
    function, kind = call.function, call.type or ("custom" if call.custom is not None else "function")
    if kind == "function" and function is not None:
        return ToolCall(id=call.id or "", name=function.name, arguments=_arguments(function, param))
    if kind == "custom" and call.custom is not None:
        return ToolCall(id=call.id or "", name=call.custom.name, arguments=as_arguments(call.custom.input))
    if kind in ("function", "custom"):
        raise bad_request(f"{param}.{kind}", MISSING)
    raise unsupported(f"{param}.type", f"{shown(kind)} is not supported; function and custom are")


def _arguments(function: FunctionCall, param: str, member: str = ".function") -> str:
    """The text of an object is taken as it stands; so is a text, which may be one that was cut off.

    Args:
        member: of what stands at `param`: the function.
    """
    given = bytes(function.arguments)
    try:
        if given.startswith(b'"'):
            return msgspec.json.decode(given, type=str)
        if given.startswith(b"{"):
            return given.decode()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(f"{param}{member}.arguments", f"it is not valid JSON: {error}") from error
    if given == b"null":
        return "{}"
    raise bad_request(f"{param}{member}.arguments", "Expected `str | object`")
