"""Writes messages: whole, or as server-sent events, each with its type as its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from gateway.dialects.anthropic.blocks import UNREADABLE
from gateway.dialects.anthropic.envelope import envelope
from gateway.dialects.anthropic.identifiers import outward
from gateway.dialects.event_streams import comment
from gateway.dialects.parts import parts
from gateway.dialects.thoughts import seal
from gateway.dialects.writing import encode, json_string, on_one_line
from gateway.refusals import Refusal
from ipc.errors import CortexError
from ipc.messages.answers import Choice, ToolCallDelta, Usage
from ipc.messages.conversation import ToolCall
from ipc.messages.replies import Delta, Finished, Progress, Started

# What becomes of thoughts: shown; in a block's signature only; or nothing, for those who asked for none.
Thoughts = Literal["shown", "hidden", "left out"]

Kind = Literal["text", "thinking", "tool_use"]

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_DELTAS: dict[Kind, bytes] = {
    "text": b'"delta":{"type":"text_delta","text":',
    "thinking": b'"delta":{"type":"thinking_delta","thinking":',
    "tool_use": b'"delta":{"type":"input_json_delta","partial_json":',
}
_END = b"}}\n\n"


class MessageRenderer:
    """Writes the answer to one request. Blocks follow each other, and each holds one kind of output.

    Args:
        model: as the client calls it.
        in_client_words: an error of a neuron, with the client's names for fields.
    """

    def __init__(
        self,
        model: str,
        request_id: str,
        thoughts: Thoughts,
        in_client_words: Callable[[CortexError], CortexError],
    ) -> None:
        self._model, self._request_id = model, request_id
        self.in_client_words = in_client_words
        self._thoughts = thoughts
        self._started = False
        self._blocks = 0  # that were begun
        self._open: Kind | None = None  # the block that output goes to
        self._head = b""  # of its deltas
        self._hidden: list[str] = []  # of the thought in it

    # --- unstreamed ---------------------------------------------------------------------------------------

    def whole(self, started: Started, finished: Finished) -> bytes:
        [answer] = finished.choices
        content: list[dict[str, Any]] = []
        for thought, text, call, _ in parts(answer):
            if call is not None:
                content.append(_tool_use(call))
            elif text and content and content[-1]["type"] == "text":  # the thought between them is left out
                content[-1]["text"] += text
            elif text:
                content.append({"type": "text", "text": text} | _UNCITED)
            elif self._thoughts != "left out":
                shown = self._thoughts == "shown"
                content.append(
                    {
                        "type": "thinking",
                        "thinking": thought if shown else "",
                        "signature": seal("" if shown else thought),
                    }
                )
        return encode(self._message(content, _stop(answer), usage_out(finished.usage)))

    def _message(
        self, content: list[Any], stop: dict[str, str | None], usage: dict[str, Any]
    ) -> dict[str, Any]:
        return {
            "id": f"msg_{self._request_id}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            **stop,
            "stop_details": None,
            "usage": usage,
            "container": None,
        }

    # --- streamed -----------------------------------------------------------------------------------------

    def waiting(self, progress: Progress | None) -> bytes:
        """Before the message begins there can only be comments.

        In an open block nothing is added to it, also while a worker is replaced: Claude Code ends a stream
        that has had no event for five minutes, and for that neither a comment nor a ping is one.
        """
        said = b"" if self._started and progress is None else comment(progress)
        if self._open is not None:
            return said + self._head + b'""' + _END
        return said or PING

    def started(self, started: Started) -> bytes:
        self._started = True
        usage = usage_out(Usage(prompt_tokens=started.prompt_tokens))
        return event("message_start", message=self._message([], _GOING_ON, usage))

    def delta(self, delta: Delta) -> bytes:
        text = delta.text
        if text and self._open == "text" and not delta.reasoning and not delta.tool_calls:
            return b"".join((self._head, json_string(text), _END))
        said: list[bytes] = []
        if delta.reasoning and self._thoughts != "left out":
            if self._open != "thinking":
                said.append(self._begin("thinking", thinking="", signature=""))
            if self._thoughts == "hidden":
                self._hidden.append(delta.reasoning)
            else:
                said += (self._head, json_string(delta.reasoning), _END)
        if text:
            if self._open != "text":
                said.append(self._begin("text", text="", **_UNCITED))
            said += (self._head, json_string(text), _END)
        for call in delta.tool_calls:
            said += self._call(call)
        return b"".join(said)

    def _call(self, call: ToolCallDelta) -> tuple[bytes, ...]:
        begin = b""
        if call.call_id is not None:
            begin = self._begin("tool_use", id=outward(call.call_id), name=call.name, input={}, **_CALLED)
        if not call.arguments:
            return (begin,)
        return begin, self._head, json_string(call.arguments), _END

    def _begin(self, kind: Kind, **fields: Any) -> bytes:
        """The end of the block that is open, and the beginning of one."""
        end = self._close()
        index = self._blocks
        self._blocks += 1
        self._open = kind
        self._head = (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,' % index
            + _DELTAS[kind]
        )
        return end + event("content_block_start", index=index, content_block={"type": kind} | fields)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        index, end = self._blocks - 1, b""
        if self._open == "thinking":
            signature = seal("".join(self._hidden))
            self._hidden.clear()
            end = event(
                "content_block_delta",
                index=index,
                delta={"type": "signature_delta", "signature": signature},
            )
        self._open = None
        return end + event("content_block_stop", index=index)

    def finished(self, finished: Finished) -> bytes:
        [answer] = finished.choices
        end = event("message_delta", delta=_stop(answer), usage=usage_out(finished.usage))
        return self._close() + end + STOP

    # --- errors -------------------------------------------------------------------------------------------

    def failed(self, error: CortexError) -> bytes:
        refusal = Refusal.of(self.in_client_words(error), self._request_id)
        return b"event: error\ndata: " + envelope(refusal) + b"\n\n"


def event(name: str, **fields: Any) -> bytes:
    """One event of a stream."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), on_one_line(encode({"type": name} | fields)))


# The specification asks for both. Null is nothing that every client takes: Vercel's refuse an answer with it.
_UNCITED: dict[str, Any] = {"citations": []}
_CALLED: dict[str, Any] = {"caller": {"type": "direct"}}
_GOING_ON: dict[str, str | None] = {"stop_reason": None, "stop_sequence": None}


def _stop(answer: Choice) -> dict[str, str | None]:
    """Why it ended."""
    sequence = answer.stop_sequence if answer.reason == "stop" else None
    ends = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
    reason = ends[answer.reason] if sequence is None else "stop_sequence"
    if answer.context_full:
        reason = "model_context_window_exceeded"
    return {"stop_reason": reason, "stop_sequence": sequence}


def _tool_use(call: ToolCall) -> dict[str, Any]:
    """The block of a call. Arguments that are no object, as of a call that was cut, stand in one."""
    try:
        is_object = isinstance(msgspec.json.decode(call.arguments or "{}"), dict)
    except (msgspec.DecodeError, RecursionError):
        is_object = False
    given = msgspec.Raw(call.arguments or "{}") if is_object else {UNREADABLE: call.arguments}
    return {"type": "tool_use", "id": outward(call.id), "name": call.name, "input": given} | _CALLED


def usage_out(usage: Usage) -> dict[str, Any]:
    """Input in three parts that have nothing in common. Nothing is charged for what is kept, so none is."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "cache_creation": None,
        "inference_geo": None,
        "server_tool_use": None,
        "service_tier": "standard",
    }
