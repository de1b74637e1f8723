"""Log-probabilities, as the two completion APIs write them, and those of prompts, as vLLM does."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

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
    content: list[TokenWithTop]
    refusal: None = None


def chat_logprobs(entries: list[TokenLogprob]) -> ChatLogprobs:
    """`choices[].logprobs` of a chat completion."""
    return ChatLogprobs(
        [
            TokenWithTop(
                entry.token,
                _number(entry.logprob),
                list(entry.raw),
                [Token(each.token, _number(each.logprob), list(each.raw)) for each in entry.top],
            )
            for entry in entries
        ]
    )


class CompletionLogprobs(Struct):
    """One entry a token in each list. `text_offset` counts characters from the start of the choice's text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


def completion_logprobs(entries: list[TokenLogprob], offset: int) -> CompletionLogprobs:
    """`choices[].logprobs` of a text completion; `offset` is where the first token's text begins."""
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry.token)
    return CompletionLogprobs(
        [entry.token for entry in entries],
        [None if entry.logprob is None else _number(entry.logprob) for entry in entries],
        [None if entry.logprob is None else _tops(entry) for entry in entries],
        offsets,
    )


def prompt_logprobs(entries: list[TokenLogprob]) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: for each token of the prompt but the first, entries by token id."""
    return [None if entry.logprob is None else _by_id(entry) for entry in entries]


def _by_id(entry: TokenLogprob) -> dict[str, Any]:
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
