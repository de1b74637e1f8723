"""`POST /v1/chat/completions`, as OpenAI has it, with the extensions of vLLM that agents use."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from gateway.dialects.openai import (
    NEUTRAL,
    Count,
    Name,
    UsageOut,
    Writer,
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
from ipc.messages import (
    Delta,
    Finished,
    FinishReason,
    Generate,
    Message,
    Started,
    Tool,
    ToolCall,
    ToolCallDelta,
)

# --- the request ----------------------------------------------------------------------------------------


class Part(Struct):
    """A piece of a message's content; only text can be served."""

    type: str
    text: str = ""


class FunctionCall(Struct):
    name: Name
    arguments: str = "{}"


class Call(Struct):
    id: str = ""
    type: str = "function"
    function: FunctionCall | None = None


class Turn(Struct):
    """One message. `reasoning_content` and `reasoning` are two names of the same thing."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Function(Struct):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolField(Struct):
    type: str
    function: Function | None = None


CHAT_NEUTRAL = NEUTRAL | {
    "tool_choice": ("auto", "none"),
    "top_logprobs": (0,),
    "audio": (),
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("auto", "none"),
    "web_search_options": (),
    "chat_template": (),
    "documents": ([],),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
}


class ChatFields(refusing(CHAT_NEUTRAL), kw_only=True):
    messages: Annotated[list[Turn], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    tools: list[ToolField] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


_decoder = msgspec.json.Decoder(ChatFields)


def parse(body: bytes, request_id: str) -> tuple[Generate, ChatAnswer]:
    """Read a request.

    Raises:
        CortexError: a field is wrong or asks for what we cannot do; `param` names it.
    """
    fields = decode(_decoder, body)
    refuse(fields, CHAT_NEUTRAL)
    generate = Generate(
        id=0,
        model=fields.model,
        messages=[_message(turn, f"messages[{i}]") for i, turn in enumerate(fields.messages)],
        tools=_tools(fields),
        template_args=_template_args(fields),
        sampling=sampling(fields, fields.max_completion_tokens or fields.max_tokens),
        stream=bool(fields.stream),
        return_token_ids=bool(fields.return_token_ids),
    )
    return generate, ChatAnswer(fields, request_id)


def _message(turn: Turn, param: str) -> Message:
    return Message(
        role="system" if turn.role == "developer" else turn.role,
        content=_text(turn.content, f"{param}.content"),
        reasoning=turn.reasoning if turn.reasoning_content is None else turn.reasoning_content,
        tool_calls=[_call(call, f"{param}.tool_calls[{i}]") for i, call in enumerate(turn.tool_calls or ())],
        tool_call_id=turn.tool_call_id,
        name=turn.name,
    )


def _text(content: str | list[Part] | None, param: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for i, part in enumerate(content):
        if part.type != "text":
            raise unsupported(f"{param}[{i}].type", f"{part.type!r} is not supported; only text is")
    return "\n".join(part.text for part in content)


def _call(call: Call, param: str) -> ToolCall:
    if call.type != "function" or call.function is None:
        raise unsupported(f"{param}.type", "only calls of functions are supported")
    return ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)


def _tools(fields: ChatFields) -> list[Tool]:
    """The tools that the model may call: with `tool_choice` "none" it is not told of any."""
    if fields.tools is None or fields.tool_choice == "none":
        return []
    tools = []
    for i, tool in enumerate(fields.tools):
        if tool.type != "function" or tool.function is None:
            raise unsupported(f"tools[{i}].type", f"{tool.type!r} is not supported; only functions are")
        function = tool.function
        tools.append(
            Tool(
                name=function.name,
                description=function.description or "",
                parameters=function.parameters or {},
            )
        )
    return tools


def _template_args(fields: ChatFields) -> dict[str, Any]:
    """Variables of the chat template; those that the client spells out win over what its effort implies."""
    effort = fields.reasoning_effort
    thinking = {} if effort is None else {"enable_thinking": effort != "none", "reasoning_effort": effort}
    return thinking | (fields.chat_template_kwargs or {})


# --- the answer -----------------------------------------------------------------------------------------


class CallOut(Struct):
    id: str
    function: FunctionCall
    type: str = "function"


class MessageOut(Struct):
    """The reasoning goes out under both its names: each half of the clients reads the other one."""

    content: str | None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[CallOut] | UnsetType = UNSET
    role: str = "assistant"
    refusal: None = None


class Choice(Struct):
    message: MessageOut
    finish_reason: FinishReason
    index: int = 0
    logprobs: None = None
    token_ids: list[int] | UnsetType = UNSET


class Completion(Struct):
    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: UsageOut
    prompt_token_ids: list[int] | UnsetType = UNSET


class ChatAnswer(Writer):
    """Writes a chat completion. Reasoning, text and tool calls never share a chunk: some clients read one."""

    def __init__(self, fields: ChatFields, request_id: str) -> None:
        super().__init__(fields, "chat.completion", "chat.completion.chunk", f"chatcmpl-{request_id}")
        self._text = self._open + b'"delta":{"content":'
        self._text_next = b"}" + self._next

    def whole(self, started: Started, finished: Finished) -> bytes:
        answer = finished.choices[0]
        reasoning = answer.reasoning or UNSET
        calls = [CallOut(call.id, FunctionCall(call.name, call.arguments)) for call in answer.tool_calls]
        message = MessageOut(
            (answer.text or None) if calls else answer.text, reasoning, reasoning, calls or UNSET
        )
        choice = Choice(message, answer.reason, token_ids=unset_if_none(answer.token_ids))
        return encode(
            Completion(
                self.id,
                self.kind,
                self.created,
                self.model,
                [choice],
                usage_out(finished.usage),
                unset_if_none(started.prompt_token_ids),
            )
        )

    def started(self, started: Started) -> bytes:
        ids = started.prompt_token_ids
        extra = b"" if ids is None else b',"prompt_token_ids":' + encode(ids)
        return self.chunk(b'"delta":{"role":"assistant","content":""}', extra=extra)

    def delta(self, delta: Delta) -> bytes:
        if delta.token_ids is None and not delta.reasoning and not delta.tool_calls:
            return b"".join((self._text, json_string(delta.text), self._text_next)) if delta.text else b""
        parts = []
        if delta.reasoning:
            text = json_string(delta.reasoning)
            parts.append(b'"delta":{"reasoning_content":' + text + b',"reasoning":' + text + b"}")
        if delta.text:
            parts.append(b'"delta":{"content":' + json_string(delta.text) + b"}")
        parts += [_call_delta(call) for call in delta.tool_calls]
        if delta.token_ids is None:
            return b"".join(map(self.chunk, parts))
        # Tokens may come ahead of their text; no id is lost, and none is sent twice.
        ids = b',"token_ids":' + encode(delta.token_ids)
        first, *others = parts or [b'"delta":{}']
        return b"".join((self.chunk(first, choice_extra=ids), *map(self.chunk, others)))

    def finished(self, finished: Finished) -> bytes:
        return self.chunk(b'"delta":{}', finish=finished.choices[0].reason) + self.end(finished.usage)


def _call_delta(call: ToolCallDelta) -> bytes:
    function: dict[str, Any] = {"arguments": call.arguments}
    piece: dict[str, Any] = {"index": call.index}
    if call.call_id is not None:
        function = {"name": call.name, "arguments": call.arguments}
        piece |= {"id": call.call_id, "type": "function"}
    return b'"delta":' + encode({"tool_calls": [piece | {"function": function}]})
