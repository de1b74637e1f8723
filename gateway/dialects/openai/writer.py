"""What OpenAI's two completion APIs have in common in their answers: usage, and the chunks of streams."""

from __future__ import annotations

import secrets
import time
from functools import cached_property
from typing import TypeVar

from msgspec import UNSET, Struct, UnsetType

from gateway.dialects.event_streams import comment
from gateway.dialects.fields import renamed
from gateway.dialects.large import pieces
from gateway.dialects.openai.envelope import envelope
from gateway.dialects.openai.fields import Fields, StreamOptions
from gateway.dialects.writing import encode, on_one_line
from gateway.refusals import Refusal
from ipc.errors import CortexError
from ipc.messages.answers import Usage
from ipc.messages.replies import Progress

T = TypeVar("T")

_NO_OPTIONS = StreamOptions()

OBFUSCATION = b',"obfuscation":"'
OBFUSCATED_TO = 64  # bytes: the length of an obfuscated event is a multiple of this


class PromptTokens(Struct):
    cached_tokens: int


class CompletionTokens(Struct):
    reasoning_tokens: int


class UsageOut(Struct):
    """`usage` as OpenAI writes it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens
    completion_tokens_details: CompletionTokens


def usage_out(usage: Usage) -> UsageOut:
    """Tokens as OpenAI counts them."""
    return UsageOut(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.prompt_tokens + usage.completion_tokens,
        PromptTokens(usage.cached_tokens),
        CompletionTokens(usage.reasoning_tokens),
    )


def unset_if_none(value: T | None) -> T | UnsetType:
    """`value`; of None a field that is not written."""
    return UNSET if value is None else value


class Writer:
    """Writes the answer to one request. The parts of a chunk that stay the same are encoded once.

    Args:
        kind: `object` of an unstreamed answer.
        chunk_kind: `object` of a chunk.
        response_id: `id` of both.
        names: what the client calls the fields that a neuron may complain of, where that differs.
        choices: how many there are.
    """

    def __init__(
        self,
        fields: Fields,
        kind: str,
        chunk_kind: str,
        response_id: str,
        names: dict[str, str],
        choices: int,
    ) -> None:
        self._names, self._choices, self._chunk_kind = names, choices, chunk_kind
        self.model, self.kind, self.id = fields.model, kind, response_id
        self.created = int(time.time())
        options = fields.stream_options or _NO_OPTIONS
        self._with_usage, self._obfuscates = bool(options.include_usage), bool(options.include_obfuscation)
        self._close = (b',"usage":null' if self._with_usage else b"") + b"}\n\n"
        self._next = b',"logprobs":null,"finish_reason":null}]' + self._close

    # What only a stream needs is made when it begins.

    @cached_property
    def _head(self) -> bytes:
        head = {"id": self.id, "object": self._chunk_kind, "created": self.created, "model": self.model}
        return b"data: " + encode(head)[:-1]

    @cached_property
    def _opens(self) -> list[bytes]:  # by choice
        return [self._head + b',"choices":[{"index":%d,' % i for i in range(self._choices)]

    def chunk(
        self,
        content: bytes,
        index: int = 0,
        *,
        finish: str | None = None,
        logprobs: object = None,
        extra: bytes = b"",
        choice_extra: bytes = b"",
    ) -> bytes:
        """One chunk with one choice.

        Args:
            content: what is new, as a JSON member: `"text":"..."` or `"delta":{...}`.
            index: of the choice.
            finish: the finish reason.
            logprobs: of the new tokens, as the API writes them.
            extra: further members of the chunk, each with a comma before it.
            choice_extra: the same, of the choice.
        """
        if finish is None and logprobs is None and not extra and not choice_extra:  # nearly always
            return self.event(b"".join((self._opens[index], content, self._next)))
        data = b"".join(
            (
                self._opens[index],
                content,
                b',"logprobs":',
                *pieces(logprobs),
                b',"finish_reason":',
                encode(finish),
                choice_extra,
                b"}]",
                extra,
            )
        )
        return self.event(on_one_line(data) + self._close)

    def event(self, chunk: bytes) -> bytes:
        """The chunk as it is sent: if that was asked for, of a length that does not tell that of its text."""
        if not self._obfuscates:
            return chunk
        short = -(len(chunk) + len(OBFUSCATION) + 1) % OBFUSCATED_TO
        noise = secrets.token_urlsafe(OBFUSCATED_TO)[:short].encode()
        return chunk[: -len(b"}\n\n")] + OBFUSCATION + noise + b'"}\n\n'

    def end(self, usage: Usage) -> bytes:
        """What follows the last choice: the usage where it was asked for, and the mark of a regular end."""
        if not self._with_usage:
            return b"data: [DONE]\n\n"
        last = (self._head, b',"choices":[],"usage":', encode(usage_out(usage)), b"}\n\n")
        return self.event(b"".join(last)) + b"data: [DONE]\n\n"

    def waiting(self, progress: Progress | None) -> bytes:
        return comment(progress)

    def in_client_words(self, error: CortexError) -> CortexError:
        """The same error, with the name that the client has for the field."""
        return renamed(error, self._names)

    def failed(self, error: CortexError) -> bytes:
        """An error in place of the rest; no `[DONE]` follows."""
        return b"data: " + envelope(Refusal.of(self.in_client_words(error))) + b"\n\n"
