"""Log-probabilities, as the two completion APIs write them, and those of prompts, as vLLM does.

Each token's are JSON as soon as they are read: of many, nothing else stays that would have to be freed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec import Struct

from gateway.dialects.large import Large
from gateway.dialects.writing import encode
from ipc.messages.answers import TokenLogprob

_NULL = b"null"
LEAST = -9999.0  # what OpenAI writes where JSON has no number


class Token(Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenWithTop(Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Token]


class ChatLogprobs(Struct):
    content: Large
    refusal: None = None


def chat_logprobs(entries: Iterable[TokenLogprob]) -> ChatLogprobs:
    """`choices[].logprobs` of a chat completion."""
    return ChatLogprobs(Large(chat_entries(entries)))


def chat_entries(entries: Iterable[TokenLogprob]) -> Iterator[bytes]:
    """Each token's, as JSON."""
    return (encode(_with_top(entry)) for entry in entries)


def _with_top(entry: TokenLogprob) -> TokenWithTop:
    top = [Token(each.token, _number(each.logprob), list(each.raw)) for each in entry.top]
    return TokenWithTop(entry.token, _number(entry.logprob), list(entry.raw), top)


class CompletionLogprobs(Struct):
    """One entry a token in each list. `text_offset` counts characters from the start of the choice's text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: Large
    text_offset: list[int]


def completion_logprobs(entries: Iterable[TokenLogprob], offset: int) -> CompletionLogprobs:
    """`choices[].logprobs` of a text completion; `offset` is where the first token's text begins."""
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    offsets: list[int] = []

    def tops() -> Iterator[bytes]:
        nonlocal offset
        for entry in entries:
            tokens.append(entry.token)
            offsets.append(offset)
            offset += len(entry.token)
            token_logprobs.append(None if entry.logprob is None else _number(entry.logprob))
            yield _NULL if entry.logprob is None else encode(_tops(entry))

    top_logprobs = Large(tops())
    return CompletionLogprobs(tokens, token_logprobs, top_logprobs, offsets)


def prompt_logprobs(entries: Iterable[TokenLogprob]) -> Large:
    """vLLM's `prompt_logprobs`: for each token of the prompt but the first, entries by token id."""
    return Large(_NULL if entry.logprob is None else encode(_by_id(entry)) for entry in entries)


def _by_id(entry: TokenLogprob) -> dict[str, object]:
    ranked = {
        str(each.token_id): {"logprob": _number(each.logprob), "rank": rank, "decoded_token": each.token}
        for rank, each in enumerate(entry.top, 1)
    }
    own = {"logprob": _number(entry.logprob), "rank": entry.rank, "decoded_token": entry.token}
    return {str(entry.token_id): own} | ranked


def _tops(entry: TokenLogprob) -> dict[str, float]:
    """By text; of tokens with one text the most probable counts. The token itself is always there."""
    tops: dict[str, float] = {}
    for each in (*entry.top, entry):
        tops.setdefault(each.token, _number(each.logprob))
    return tops


def _number(logprob: float) -> float:
    return max(logprob, LEAST)
