"""`POST /v1/completions`: text or token ids in, text out, no chat template."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from gateway.dialects.openai import (
    NEUTRAL,
    TokenId,
    UsageOut,
    Writer,
    decode,
    encode,
    invalid,
    json_string,
    refuse,
    refusing,
    sampling,
    unset_if_none,
    unsupported,
    usage_out,
)
from ipc.errors import Code, CortexError
from ipc.messages import Delta, Finished, FinishReason, Generate, Started

COMPLETION_NEUTRAL = NEUTRAL | {"logprobs": (), "echo": (False,), "suffix": ("",)}


class CompletionFields(refusing(COMPLETION_NEUTRAL), kw_only=True):
    prompt: str | list[Any]


_decoder = msgspec.json.Decoder(CompletionFields)


def parse(body: bytes, request_id: str) -> tuple[Generate, CompletionAnswer]:
    """Read a request.

    Raises:
        CortexError: a field is wrong or asks for what we cannot do; `param` names it.
    """
    fields = decode(_decoder, body)
    refuse(fields, COMPLETION_NEUTRAL)
    generate = Generate(
        id=0,
        model=fields.model,
        prompt=_prompt(fields.prompt),
        sampling=sampling(fields, fields.max_tokens),
        stream=bool(fields.stream),
        return_token_ids=bool(fields.return_token_ids),
    )
    return generate, CompletionAnswer(fields, request_id)


def _prompt(prompt: str | list[Any]) -> str | list[int]:
    """The one prompt of a request: text or token ids, bare or as the only item of a list."""
    root = "prompt"
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            raise unsupported("prompt", f"{len(prompt)} prompts in one request are not supported; send one")
        prompt, root = prompt[0], "prompt[0]"
    if isinstance(prompt, list):
        try:
            prompt = msgspec.convert(prompt, list[TokenId])
        except msgspec.ValidationError as error:
            raise invalid(error, root) from error
    if not prompt:
        raise CortexError(Code.BAD_REQUEST, f"{root}: is empty", param=root)
    return prompt


class Choice(Struct):
    text: str
    finish_reason: FinishReason
    index: int = 0
    logprobs: None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Completion(Struct):
    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: UsageOut


class CompletionAnswer(Writer):
    """Writes a text completion. vLLM puts the prompt's token ids into the choice here, and so do we."""

    def __init__(self, fields: CompletionFields, request_id: str) -> None:
        super().__init__(fields, "text_completion", "text_completion", f"cmpl-{request_id}")
        self._text = self._open + b'"text":'

    def whole(self, started: Started, finished: Finished) -> bytes:
        answer = finished.choices[0]
        choice = Choice(
            answer.text,
            answer.reason,
            token_ids=unset_if_none(answer.token_ids),
            prompt_token_ids=unset_if_none(started.prompt_token_ids),
        )
        return encode(
            Completion(self.id, self.kind, self.created, self.model, [choice], usage_out(finished.usage))
        )

    def started(self, started: Started) -> bytes:
        ids = started.prompt_token_ids
        return (
            b""
            if ids is None
            else self.chunk(b'"text":""', choice_extra=b',"prompt_token_ids":' + encode(ids))
        )

    def delta(self, delta: Delta) -> bytes:
        if delta.token_ids is None:
            return b"".join((self._text, json_string(delta.text), self._next)) if delta.text else b""
        return self.chunk(
            b'"text":' + json_string(delta.text), choice_extra=b',"token_ids":' + encode(delta.token_ids)
        )

    def finished(self, finished: Finished) -> bytes:
        return self.chunk(b'"text":""', finish=finished.choices[0].reason) + self.end(finished.usage)
