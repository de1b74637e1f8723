"""Log-probabilities, as the two completion APIs write them, and those of prompts, as vLLM does.

Each token's are JSON as soon as they are read: of many, nothing else stays that would have to be freed.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Raw, Struct

from gateway.dialects.writing import encode
from ipc.messages.answers import TokenLogprob

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
    content: list[Raw]
    refusal: None = None


def chat_logprobs(entries: Iterable[TokenLogprob]) -> ChatLogprobs:
    """`choices[].logprobs` of a chat completion."""
    return ChatLogprobs([_json(_with_top(entry)) for entry in entries])


def _with_top(entry: TokenLogprob) -> TokenWithTop:
    top = [Token(each.token, _number(each.logprob), list(each.raw)) for each in entry.top]
    return TokenWithTop(entry.token, _number(entry.logprob), list(entry.raw), top)


class CompletionLogprobs(Struct):
    """One entry a token in each list. `text_offset` counts characters from the start of the choice's text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[Raw | None]
    text_offset: list[int]


def completion_logprobs(entries: Iterable[TokenLogprob], offset: int) -> CompletionLogprobs:
    """`choices[].logprobs` of a text completion; `offset` is where the first token's text begins."""
    told = CompletionLogprobs([], [], [], [])
    for entry in entries:
        is_first = entry.logprob is None
        told.tokens.append(entry.token)
        told.token_logprobs.append(None if is_first else _number(entry.logprob))
        told.top_logprobs.append(None if is_first else _json(_tops(entry)))
        told.text_offset.append(offset)
        offset += len(entry.token)
    return told


def prompt_logprobs(entries: Iterable[TokenLogprob]) -> list[Raw | None]:
    """vLLM's `prompt_logprobs`: for each token of the prompt but the first, entries by token id."""
    return [None if entry.logprob is None else _json(_by_id(entry)) for entry in entries]


def _json(value: object) -> Raw:
    return Raw(encode(value))


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
