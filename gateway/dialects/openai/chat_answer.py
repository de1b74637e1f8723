"""How a chat completion is written, whole and streamed."""

from __future__ import annotations

from functools import cached_property

from msgspec import UNSET, Struct, UnsetType

from gateway.dialects.large import Body, Large, written
from gateway.dialects.openai.calls import CallOut, CallWriter, FunctionOut, calls_out, reason_out
from gateway.dialects.openai.fields import Fields
from gateway.dialects.openai.logprobs import ChatLogprobs, chat_logprobs, prompt_logprobs
from gateway.dialects.openai.tools import ChosenTools
from gateway.dialects.openai.writer import UsageOut, Writer, unset_if_none, usage_out
from gateway.dialects.writing import encode, json_string
from ipc.messages import answers
from ipc.messages.answers import TokenLogprob
from ipc.messages.replies import Delta, Finished, Started


class MessageOut(Struct):
    """The reasoning goes out under both its names: each half of the clients reads the other one, and some
    read the attribute without asking whether it is there."""

    content: str | None
    reasoning_content: str | None
    reasoning: str | None
    tool_calls: list[CallOut] | UnsetType = UNSET
    function_call: FunctionOut | UnsetType = UNSET
    role: str = "assistant"
    refusal: None = None


class Choice(Struct):
    message: MessageOut
    finish_reason: str
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
    prompt_logprobs: Large | UnsetType = UNSET


class ChatRenderer(Writer):
    """Writes a chat completion. Reasoning, text and tool calls never share a chunk: some clients read one.

    Args:
        tools: what the request says of its tools.
        with_logprobs: whether those of the answer's tokens were asked for.
        hides_reasoning: whether the thought is not to be shown.
    """

    def __init__(
        self,
        fields: Fields,
        request_id: str,
        names: dict[str, str],
        tools: ChosenTools,
        *,
        with_logprobs: bool,
        hides_reasoning: bool,
    ) -> None:
        super().__init__(
            fields,
            "chat.completion",
            "chat.completion.chunk",
            f"chatcmpl-{request_id}",
            names,
            fields.n or 1,
        )
        self._text_next = b"}" + self._next
        self._with_logprobs, self._hides_reasoning = with_logprobs, hides_reasoning
        self._tools = tools

    @cached_property
    def _texts(self) -> list[bytes]:  # by choice
        return [start + b'"delta":{"content":' for start in self._opens]

    @cached_property
    def _calls(self) -> list[CallWriter]:  # by choice
        return [CallWriter(self._tools) for _ in self._opens]

    def whole(self, started: Started, finished: Finished) -> Body:
        ids, told = started.prompt_token_ids, finished.prompt_logprobs
        return written(
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

    def _choice(self, answer: answers.Choice) -> Choice:
        calls = calls_out(answer.tool_calls, self._tools)
        reasoning = None if self._hides_reasoning else answer.reasoning or None
        message = MessageOut((answer.text or None) if calls else answer.text, reasoning, reasoning)
        if calls and self._tools.is_old:
            message.function_call = calls[0].function
        elif calls:
            message.tool_calls = calls
        return Choice(
            message,
            reason_out(answer.reason, self._tools),
            answer.index,
            self._logprobs(answer.logprobs),
            unset_if_none(answer.token_ids),
        )

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
            if not delta.text:
                return b""
            chunk = b"".join((self._texts[index], json_string(delta.text), self._text_next))
            return self.event(chunk) if self._obfuscates else chunk
        parts = []
        if delta.reasoning and not self._hides_reasoning:
            text = json_string(delta.reasoning)
            parts.append(b'"delta":{"reasoning_content":' + text + b',"reasoning":' + text + b"}")
        if delta.text:
            parts.append(b'"delta":{"content":' + json_string(delta.text) + b"}")
        for call in delta.tool_calls:
            parts += self._calls[index].pieces(call)
        if bare:
            return b"".join(self.chunk(part, index) for part in parts)
        # Tokens may come ahead of their text; no id is lost, and none is sent twice.
        extra, choice_extra = b"", b""
        if delta.prompt_logprobs is not None:
            extra = b"".join((b',"prompt_logprobs":', *prompt_logprobs(delta.prompt_logprobs).pieces))
        if delta.token_ids is not None:
            choice_extra = b',"token_ids":' + encode(delta.token_ids)
        first, *others = parts or [b'"delta":{}']
        told = self._logprobs(delta.logprobs)
        chunk = self.chunk(first, index, logprobs=told, extra=extra, choice_extra=choice_extra)
        return chunk + b"".join(self.chunk(part, index) for part in others)

    def finished(self, finished: Finished) -> bytes:
        ends = []
        for each in finished.choices:
            ends += [self.chunk(piece, each.index) for piece in self._calls[each.index].finish()]
            reason = reason_out(each.reason, self._tools)
            ends.append(self.chunk(b'"delta":{}', each.index, finish=reason))
        return b"".join(ends) + self.end(finished.usage)

    def _logprobs(self, entries: list[TokenLogprob]) -> ChatLogprobs | None:
        return chat_logprobs(entries) if self._with_logprobs else None
