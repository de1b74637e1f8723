"""`POST /v1/completions`: text or token ids in, text out, no chat template."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from itertools import chain
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from gateway.dialects import RequestContext
from gateway.dialects.fields import bad_request, decode, keep_alive, refuser, refusing
from gateway.dialects.large import Body, Large, written
from gateway.dialects.openai.fields import (
    MAX_CHOICES,
    NEUTRAL,
    Fields,
    LogprobCount,
    MaxTokens,
    is_one,
    limit,
    prompts,
    sampling,
)
from gateway.dialects.openai.logprobs import CompletionLogprobs, completion_logprobs, prompt_logprobs
from gateway.dialects.openai.structured import structured
from gateway.dialects.openai.writer import UsageOut, Writer, unset_if_none, usage_out
from gateway.dialects.writing import encode, json_string
from ipc.messages import answers
from ipc.messages.answers import FinishReason, TokenLogprob
from ipc.messages.replies import Delta, Finished, Started
from ipc.messages.requests import Generate

T = TypeVar("T")

COMPLETION_NEUTRAL = NEUTRAL | {
    "add_special_tokens": (True,),
    "max_completion_tokens": (),
    "top_logprobs": (0,),
}


class CompletionFields(refusing(Fields, COMPLETION_NEUTRAL), kw_only=True):
    prompt: str | list[Any]
    max_tokens: MaxTokens | None = None
    logprobs: LogprobCount | None = None
    echo: bool | None = None
    suffix: str | None = None


MAX_TOKENS = 16  # OpenAI's default

_refuse = refuser(COMPLETION_NEUTRAL)
_decoder = msgspec.json.Decoder(CompletionFields)


async def parse(body: bytes, context: RequestContext) -> tuple[Generate, CompletionRenderer]:
    """Read a request.

    Raises:
        CortexError: a field is wrong or asks for what we cannot do; `param` names it.
    """
    fields = decode(_decoder, body)
    _refuse(fields)
    if fields.max_tokens == 0 and not fields.echo:
        raise bad_request("max_tokens", "0 needs echo")
    prompt = "" if fields.suffix and fields.prompt == "" else prompts(fields.prompt, "prompt")
    choices = _choices(prompt, fields.n or 1)
    form, names = structured(fields)
    max_tokens = fields.max_tokens
    if max_tokens != 0:
        max_tokens = MAX_TOKENS if max_tokens is None else limit(max_tokens, "max_tokens")
    generate = Generate(
        id=0,
        model=fields.model,
        prompt=prompt,
        suffix=fields.suffix or None,
        sampling=sampling(fields, max_tokens, fields.logprobs),
        structured=form,
        stream=bool(fields.stream),
        echo=bool(fields.echo),
        return_token_ids=bool(fields.return_token_ids),
        priority=fields.priority or 0,
        cache_salt=fields.cache_salt or "",
        keep_alive=keep_alive(fields.keep_alive),
    )
    return generate, CompletionRenderer(fields, context.request_id, names, choices)


def _choices(prompt: str | list[int] | list[str] | list[list[int]], n: int) -> int:
    """How many choices there are; CortexError naming the limit when they are too many."""
    count = 1 if is_one(prompt) else len(prompt)
    if count * n > MAX_CHOICES:
        text = f"{count} prompts times n, which is {n}, are more than {MAX_CHOICES} choices"
        raise bad_request("prompt", text)
    return count * n


class Choice(Struct):
    text: str
    finish_reason: FinishReason
    index: int = 0
    logprobs: CompletionLogprobs | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: Large | UnsetType = UNSET


class Completion(Struct):
    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: UsageOut


class CompletionRenderer(Writer):
    """Writes a text completion. vLLM puts what it says of a prompt into its choices here, and so do we."""

    def __init__(
        self, fields: CompletionFields, request_id: str, names: dict[str, str], choices: int
    ) -> None:
        super().__init__(fields, "text_completion", "text_completion", f"cmpl-{request_id}", names, choices)
        self._each = fields.n or 1  # choices of each prompt
        self._with_logprobs = fields.logprobs is not None
        self._echo = bool(fields.echo)
        self._offsets = [0] * choices  # characters of each choice so far
        # By prompt: tokens that its choices begin with.
        self._echoed: defaultdict[int, list[TokenLogprob]] = defaultdict(list)
        self._of_prompt = fields.prompt_logprobs is not None

    @cached_property
    def _texts(self) -> list[bytes]:  # by choice
        return [start + b'"text":' for start in self._opens]

    def whole(self, started: Started, finished: Finished) -> Body:
        choices = [self._choice(answer, started, finished) for answer in finished.choices]
        return written(
            Completion(self.id, self.kind, self.created, self.model, choices, usage_out(finished.usage))
        )

    def _choice(self, answer: answers.Choice, started: Started, finished: Finished) -> Choice:
        told = self._its(finished.prompt_logprobs, answer.index) or ()
        return Choice(
            answer.text,
            answer.reason,
            answer.index,
            self._logprobs(chain(told if self._echo else (), answer.logprobs), 0),
            unset_if_none(answer.token_ids),
            unset_if_none(self._its(started.prompt_token_ids, answer.index)),
            prompt_logprobs(told) if self._of_prompt else UNSET,
        )

    def _its(self, of_prompts: list[T] | None, index: int) -> T | None:
        """Of what is told of each prompt, that of the prompt of choice `index`."""
        return None if of_prompts is None else of_prompts[index // self._each]

    def started(self, started: Started) -> bytes:
        if started.prompt_token_ids is None:
            return b""
        ids = [b',"prompt_token_ids":' + encode(each) for each in started.prompt_token_ids]
        return b"".join(
            self.chunk(b'"text":""', index, choice_extra=self._its(ids, index))
            for index in range(len(self._opens))
        )

    def delta(self, delta: Delta) -> bytes:
        plain = delta.token_ids is None and not self._with_logprobs and delta.prompt_logprobs is None
        if plain:
            if not delta.text:
                return b""
            chunk = b"".join((self._texts[delta.index], json_string(delta.text), self._next))
            return self.event(chunk) if self._obfuscates else chunk
        entries, prompt = delta.logprobs, delta.index // self._each
        if self._echo and delta.prompt_logprobs is not None:
            self._echoed[prompt] += delta.prompt_logprobs
            entries = [*delta.prompt_logprobs, *entries]
        elif not self._offsets[delta.index] and delta.index % self._each:
            entries = [*self._echoed[prompt], *entries]
        extra = b"" if delta.token_ids is None else b',"token_ids":' + encode(delta.token_ids)
        if delta.prompt_logprobs is not None and self._of_prompt:
            told_of = prompt_logprobs(delta.prompt_logprobs).pieces
            extra += b"".join((b',"prompt_logprobs":', *told_of))
        told = self._logprobs(entries, self._offsets[delta.index])
        self._offsets[delta.index] += sum(len(entry.token) for entry in entries)
        return self.chunk(
            b'"text":' + json_string(delta.text), delta.index, logprobs=told, choice_extra=extra
        )

    def finished(self, finished: Finished) -> bytes:
        ends = [self.chunk(b'"text":""', each.index, finish=each.reason) for each in finished.choices]
        return b"".join(ends) + self.end(finished.usage)

    def _logprobs(self, entries: Iterable[TokenLogprob], offset: int) -> CompletionLogprobs | None:
        return completion_logprobs(entries, offset) if self._with_logprobs else None
