"""`POST /v1/chat/completions`, as OpenAI has it, with the extensions of vLLM that agents use."""

from __future__ import annotations

import base64
import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from gateway.dialects import RequestContext, free_json
from gateway.dialects.openai.common import (
    NEUTRAL,
    Count,
    LogprobCount,
    Short,
    ShortName,
    UsageOut,
    Writer,
    convert,
    decode,
    encode,
    json_string,
    refuse,
    refusing,
    sampling,
    unset_if_none,
    unsupported,
    usage_out,
)
from gateway.dialects.openai.logprobs import ChatLogprobs, chat_logprobs, prompt_logprobs
from gateway.dialects.openai.structured import structured
from gateway.refusals import shown
from ipc import messages
from ipc.errors import Code, CortexError
from ipc.messages import (
    MAX_IMAGE,
    ContentPart,
    Delta,
    Finished,
    FinishReason,
    Generate,
    ImagePart,
    Message,
    Started,
    TextPart,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
)

# --- the request ----------------------------------------------------------------------------------------


class ImageUrl(Struct):
    """`detail` makes no difference: models take an image as it is."""

    url: str


class PartField(Struct):
    """A piece of a message's content: text, or an image."""

    type: str
    text: str = ""
    image_url: ImageUrl | None = None


class FunctionCall(Struct):
    name: ShortName
    arguments: str = "{}"


class Call(Struct):
    id: Short = ""
    type: str = "function"
    function: FunctionCall | None = None


class Turn(Struct):
    """One message. `reasoning_content` and `reasoning` are two names of the same thing."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[PartField] | None = None
    name: Short | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: Short | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Function(Struct):
    """What is read of a function; the chat template gets it as the client wrote it."""

    name: ShortName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolField(Struct):
    type: str
    function: Function | None = None


class FunctionName(Struct):
    name: ShortName


class NamedTool(Struct):
    type: Literal["function"]
    function: FunctionName


CHAT_NEUTRAL = NEUTRAL | {
    "audio": (),
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("auto", "none"),
    "web_search_options": (),
    "chat_template": (),
    "documents": ([],),
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "echo": (False,),
    "continue_final_message": (False,),
}


class ChatFields(refusing(CHAT_NEUTRAL), kw_only=True):
    messages: Annotated[list[Turn], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: LogprobCount | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Short | None = None
    chat_template_kwargs: dict[str, Any] | None = None


_decoder = msgspec.json.Decoder(ChatFields)


async def parse(body: bytes, context: RequestContext) -> tuple[Generate, ChatRenderer]:
    """Read a request.

    Raises:
        CortexError: a field is wrong or asks for what we cannot do; `param` names it.
    """
    fields = decode(_decoder, body)
    refuse(fields, CHAT_NEUTRAL)
    if fields.top_logprobs and not fields.logprobs:
        raise CortexError(Code.BAD_REQUEST, "top_logprobs: needs logprobs to be true", param="top_logprobs")
    form, names = structured(fields)
    tools = _tools(fields)
    max_tokens = fields.max_completion_tokens or fields.max_tokens
    generate = Generate(
        id=0,
        model=fields.model,
        messages=[_message(turn, f"messages[{i}]") for i, turn in enumerate(fields.messages)],
        tools=tools,
        must_call=_must_call(fields, tools),
        template_args=_template_args(fields),
        sampling=sampling(fields, max_tokens, (fields.top_logprobs or 0) if fields.logprobs else None),
        structured=form,
        stream=bool(fields.stream),
        return_token_ids=bool(fields.return_token_ids),
        priority=fields.priority or 0,
        cache_salt=fields.cache_salt or "",
        parallel_tool_calls=fields.parallel_tool_calls is not False,
    )
    names |= {"must_call": "tool_choice", "template_args": "chat_template_kwargs"}
    if fields.max_completion_tokens:
        names["max_tokens"] = "max_completion_tokens"
    return generate, ChatRenderer(fields, context.request_id, names)


def _message(turn: Turn, param: str) -> Message:
    return Message(
        role=turn.role,
        content=_content(turn.content, f"{param}.content"),
        reasoning=turn.reasoning if turn.reasoning_content is None else turn.reasoning_content,
        tool_calls=[_call(call, f"{param}.tool_calls[{i}]") for i, call in enumerate(turn.tool_calls or ())],
        tool_call_id=turn.tool_call_id,
        name=turn.name,
    )


def _content(content: str | list[PartField] | None, param: str) -> str | list[ContentPart]:
    if content is None or isinstance(content, str):
        return content or ""
    return [_part(part, f"{param}[{i}]") for i, part in enumerate(content)]


def _part(part: PartField, param: str) -> ContentPart:
    if part.type == "text":
        return TextPart(text=part.text)
    if part.type == "image_url":
        return _image(part.image_url, f"{param}.image_url")
    raise unsupported(f"{param}.type", f"{shown(part.type)} is not supported; text and image_url are")


_DATA_URL = re.compile(r"data:(image/[\w.+-]{1,64});base64,", re.ASCII)


def _image(image: ImageUrl | None, param: str) -> ImagePart:
    if image is None:
        raise CortexError(Code.BAD_REQUEST, f"{param}: a required field is missing", param=param)
    param += ".url"
    start = _DATA_URL.match(image.url)
    if start is None:
        raise unsupported(param, "nothing is fetched; send the image itself, as data:image/...;base64,...")
    try:
        data = base64.b64decode(image.url[start.end() :], validate=True)
    except ValueError as error:
        raise CortexError(Code.BAD_REQUEST, f"{param}: it is not base64: {error}", param=param) from error
    if not 0 < len(data) <= MAX_IMAGE:
        text = f"{param}: the image has {len(data)} bytes; 1 to {MAX_IMAGE} are taken"
        raise CortexError(Code.BAD_REQUEST, text, param=param)
    return ImagePart(data=data, media_type=start[1])


def _call(call: Call, param: str) -> ToolCall:
    if call.type != "function" or call.function is None:
        raise unsupported(f"{param}.type", "only calls of functions are supported")
    return ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)


def _tools(fields: ChatFields) -> list[Tool]:
    """The tools that the model may call: with `tool_choice` "none" it is not told of any."""
    if fields.tools is None or fields.tool_choice == "none":
        return []
    for i, tool in enumerate(convert(fields.tools, list[ToolField], "tools")):
        if tool.type != "function" or tool.function is None:
            raise unsupported(f"tools[{i}].type", f"{shown(tool.type)} is not supported; only functions are")
        free_json.check(f"tools[{i}]", fields.tools[i])
    return [Tool(definition=tool) for tool in fields.tools]


def _must_call(fields: ChatFields, tools: list[Tool]) -> list[str]:
    """Names of the tools that `tool_choice` leaves to choose from, where the answer has to call one."""
    names, choice = [tool.name for tool in tools], fields.tool_choice
    if isinstance(choice, NamedTool):
        if choice.function.name not in names:
            raise CortexError(
                Code.BAD_REQUEST,
                f"tool_choice.function.name: {shown(choice.function.name)} is none of the tools",
                param="tool_choice.function.name",
            )
        return [choice.function.name]
    if choice != "required":
        return []
    if not names:
        raise CortexError(Code.BAD_REQUEST, "tool_choice: needs tools to choose from", param="tool_choice")
    return names


def _template_args(fields: ChatFields) -> dict[str, Any]:
    """Variables of the chat template; those that the client spells out win over what its effort implies."""
    effort = fields.reasoning_effort
    thinking = {} if effort is None else {"enable_thinking": effort != "none", "reasoning_effort": effort}
    free_json.check("chat_template_kwargs", fields.chat_template_kwargs)
    return thinking | (fields.chat_template_kwargs or {})


# --- the answer -----------------------------------------------------------------------------------------


class CallOut(Struct):
    id: str
    function: FunctionCall
    type: str = "function"


class MessageOut(Struct):
    """The reasoning goes out under both its names: each half of the clients reads the other one, and some
    read the attribute without asking whether it is there."""

    content: str | None
    reasoning_content: str | None
    reasoning: str | None
    tool_calls: list[CallOut] | UnsetType = UNSET
    role: str = "assistant"
    refusal: None = None


class Choice(Struct):
    message: MessageOut
    finish_reason: FinishReason
    index: int = 0
    logprobs: ChatLogprobs | None = None
    token_ids: list[int] | UnsetType = UNSET


class Completion(Struct):
    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: UsageOut
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[dict[str, Any] | None] | UnsetType = UNSET


class ChatRenderer(Writer):
    """Writes a chat completion. Reasoning, text and tool calls never share a chunk: some clients read one."""

    def __init__(self, fields: ChatFields, request_id: str, names: dict[str, str]) -> None:
        super().__init__(
            fields,
            "chat.completion",
            "chat.completion.chunk",
            f"chatcmpl-{request_id}",
            names,
            fields.n or 1,
        )
        self._texts = [start + b'"delta":{"content":' for start in self._opens]  # by choice
        self._text_next = b"}" + self._next
        self._with_logprobs = bool(fields.logprobs)

    def whole(self, started: Started, finished: Finished) -> bytes:
        ids, told = started.prompt_token_ids, finished.prompt_logprobs
        return encode(
            Completion(
                self.id,
                self.kind,
                self.created,
                self.model,
                [self._choice(answer) for answer in finished.choices],
                usage_out(finished.usage),
                UNSET if ids is None else ids[0],
                UNSET if told is None else prompt_logprobs(told[0]),
            )
        )

    def _choice(self, answer: messages.Choice) -> Choice:
        calls = [CallOut(call.id, FunctionCall(call.name, call.arguments)) for call in answer.tool_calls]
        reasoning = answer.reasoning or None
        message = MessageOut(
            (answer.text or None) if calls else answer.text, reasoning, reasoning, calls or UNSET
        )
        told = self._logprobs(answer.logprobs)
        return Choice(message, answer.reason, answer.index, told, unset_if_none(answer.token_ids))

    def started(self, started: Started) -> bytes:
        ids = started.prompt_token_ids
        extra = b"" if ids is None else b',"prompt_token_ids":' + encode(ids[0])
        role = b'"delta":{"role":"assistant","content":""}'
        first = self.chunk(role, extra=extra)
        return first + b"".join(self.chunk(role, index) for index in range(1, len(self._opens)))

    def delta(self, delta: Delta) -> bytes:
        index = delta.index
        bare = delta.token_ids is None and not self._with_logprobs and delta.prompt_logprobs is None
        if bare and not delta.reasoning and not delta.tool_calls:
            text = delta.text
            return b"".join((self._texts[index], json_string(text), self._text_next)) if text else b""
        parts = []
        if delta.reasoning:
            text = json_string(delta.reasoning)
            parts.append(b'"delta":{"reasoning_content":' + text + b',"reasoning":' + text + b"}")
        if delta.text:
            parts.append(b'"delta":{"content":' + json_string(delta.text) + b"}")
        parts += [_call_delta(call) for call in delta.tool_calls]
        if bare:
            return b"".join(self.chunk(part, index) for part in parts)
        # Tokens may come ahead of their text; no id is lost, and none is sent twice.
        extra, choice_extra = b"", b""
        if delta.prompt_logprobs is not None:
            extra = b',"prompt_logprobs":' + encode(prompt_logprobs(delta.prompt_logprobs))
        if delta.token_ids is not None:
            choice_extra = b',"token_ids":' + encode(delta.token_ids)
        first, *others = parts or [b'"delta":{}']
        told = self._logprobs(delta.logprobs)
        chunk = self.chunk(first, index, logprobs=told, extra=extra, choice_extra=choice_extra)
        return chunk + b"".join(self.chunk(part, index) for part in others)

    def finished(self, finished: Finished) -> bytes:
        ends = [self.chunk(b'"delta":{}', each.index, finish=each.reason) for each in finished.choices]
        return b"".join(ends) + self.end(finished.usage)

    def _logprobs(self, entries: list[TokenLogprob]) -> ChatLogprobs | None:
        return chat_logprobs(entries) if self._with_logprobs else None


def _call_delta(call: ToolCallDelta) -> bytes:
    function: dict[str, Any] = {"arguments": call.arguments}
    piece: dict[str, Any] = {"index": call.index}
    if call.call_id is not None:
        function = {"name": call.name, "arguments": call.arguments}
        piece |= {"id": call.call_id, "type": "function"}
    return b'"delta":' + encode({"tool_calls": [piece | {"function": function}]})
