"""What OpenAI's two completion APIs have in common: request fields, what is refused, usage, SSE chunks.

A field that would change the answer and that we cannot honour is refused by name: an answer that silently
ignores it is worse than none. Hints that leave the answer as it is are ignored (`user`, `store`, `metadata`,
`service_tier`, `prompt_cache_key`, `prediction`, `verbosity`, `parallel_tool_calls`, a tool's `strict`, ...),
and so are fields that nobody here has heard of: agents send new ones every month.
"""

from __future__ import annotations

import re
import time
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from gateway.errors import envelope
from ipc.errors import Code, CortexError
from ipc.messages import Sampling, Usage

T = TypeVar("T")

NonNegative = Annotated[int, Meta(ge=0)]
TokenId = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
Count = Annotated[int, Meta(ge=1)]
Name = Annotated[str, Meta(min_length=1)]

SEED_MASK = (1 << 64) - 1  # engines take unsigned seeds; clients send signed ones, too

encode = msgspec.json.encode


class StreamOptions(Struct):
    include_usage: bool | None = None


class Fields(Struct, kw_only=True):
    """Fields of both APIs that we honour."""

    model: Name
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    seed: int | None = None
    max_tokens: Count | None = None
    stop: str | list[Name] | None = None

    # as vLLM spells them
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    return_token_ids: bool | None = None


# Fields of both APIs that we refuse, and the values, besides null, with which they ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "response_format": ({"type": "text"},),
    "best_of": (1,),
    "moderation": (),
    "min_p": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "use_beam_search": (False,),
    "prompt_logprobs": (),
    "truncate_prompt_tokens": (),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "grammar": (),
    "json_schema": (),
}


def refusing(neutral: dict[str, tuple[Any, ...]]) -> type[Fields]:
    """`Fields` with those of `neutral` beside them, so that `refuse` sees what they ask for."""
    return msgspec.defstruct(
        "Refusing", [(name, Any, None) for name in neutral], bases=(Fields,), kw_only=True
    )


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """The typed body of a request; CortexError naming the field, by its path, when it is not one."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise invalid(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CortexError(Code.BAD_REQUEST, f"the body is not valid JSON: {error}") from error


def invalid(error: msgspec.ValidationError, root: str = "") -> CortexError:
    """msgspec's complaint as ours. `root`: the field that was validated, where it was not the whole body."""
    text, _, path = str(error).partition(" - at `$")
    param = (root + path.rstrip("`")).lstrip(".")
    if missing := re.search(r"missing required field `(\w+)`", text):
        param = f"{param}.{missing[1]}".lstrip(".")
        text = "a required field is missing"
    return CortexError(Code.BAD_REQUEST, f"{param}: {text}" if param else text, param=param or None)


def unsupported(param: str, message: str) -> CortexError:
    """A request for what cortex cannot do, at least not yet."""
    return CortexError(Code.NOT_SUPPORTED, f"{param}: {message}", param=param)


def refuse(fields: Struct, neutral: dict[str, tuple[Any, ...]]) -> None:
    """Raise for the first field of `neutral` that asks for something."""
    for name, values in neutral.items():
        value = getattr(fields, name)
        if value is not None and value not in values:
            raise unsupported(name, f"{_short(value)} is not supported; leave it out")


def _short(value: Any) -> str:
    text = encode(value).decode()
    return text if len(text) <= 40 else f"{text[:40]}…"


def sampling(fields: Fields, max_tokens: int | None) -> Sampling:
    """The sampling values that a request asks for; None where it leaves them to the model."""
    stop = fields.stop
    if isinstance(stop, str):
        if not stop:
            raise CortexError(Code.BAD_REQUEST, "stop: the string is empty", param="stop")
        stop = [stop]
    return Sampling(
        temperature=fields.temperature,
        top_k=None if fields.top_k is None else max(0, fields.top_k),
        top_p=fields.top_p,
        seed=None if fields.seed is None else fields.seed & SEED_MASK,
        max_tokens=max_tokens,
        stop=stop or [],
        stop_token_ids=fields.stop_token_ids or [],
        ignore_eos=bool(fields.ignore_eos),
    )


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
    return UsageOut(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.prompt_tokens + usage.completion_tokens,
        PromptTokens(usage.cached_tokens),
        CompletionTokens(usage.reasoning_tokens),
    )


def unset_if_none(value: T | None) -> T | UnsetType:
    return UNSET if value is None else value


def json_string(text: str) -> bytes:
    """`text` in JSON, on what every client takes for one line.

    Some split a stream wherever Unicode knows a line end, though server-sent events know only CR and LF.
    """
    encoded = encode(text)
    if not text.isascii():
        for char, escape in (
            (b"\xc2\x85", b"\\u0085"),
            (b"\xe2\x80\xa8", b"\\u2028"),
            (b"\xe2\x80\xa9", b"\\u2029"),
        ):
            encoded = encoded.replace(char, escape)
    return encoded


class Writer:
    """Writes the answer to one request. The parts of a chunk that stay the same are encoded once.

    Args:
        kind: `object` of an unstreamed answer.
        chunk_kind: `object` of a chunk.
        response_id: `id` of both.
    """

    def __init__(self, fields: Fields, kind: str, chunk_kind: str, response_id: str) -> None:
        self.model, self.kind, self.id = fields.model, kind, response_id
        self.created = int(time.time())
        self.token_ids = bool(fields.return_token_ids)
        self._with_usage = bool(fields.stream_options and fields.stream_options.include_usage)
        head = {"id": response_id, "object": chunk_kind, "created": self.created, "model": fields.model}
        self._head = b"data: " + encode(head)[:-1]
        self._open = self._head + b',"choices":[{"index":0,'
        self._close = (b',"usage":null' if self._with_usage else b"") + b"}\n\n"
        self._next = b',"logprobs":null,"finish_reason":null}]' + self._close

    def chunk(
        self, content: bytes, finish: str | None = None, extra: bytes = b"", choice_extra: bytes = b""
    ) -> bytes:
        """One chunk with one choice.

        Args:
            content: what is new, as a JSON member: `"text":"..."` or `"delta":{...}`.
            finish: the finish reason.
            extra: further members of the chunk, each with a comma before it.
            choice_extra: the same, of the choice.
        """
        reason = encode(finish)
        return b"".join(
            (
                self._open,
                content,
                b',"logprobs":null,"finish_reason":',
                reason,
                choice_extra,
                b"}]",
                extra,
                self._close,
            )
        )

    def end(self, usage: Usage) -> bytes:
        """What follows the last choice: the usage where it was asked for, and the mark of a regular end."""
        if not self._with_usage:
            return b"data: [DONE]\n\n"
        return b"".join(
            (self._head, b',"choices":[],"usage":', encode(usage_out(usage)), b"}\n\ndata: [DONE]\n\n")
        )

    def failed(self, error: CortexError) -> bytes:
        """An error in place of the rest; no `[DONE]` follows."""
        return b"data: " + envelope(error) + b"\n\n"
