"""The parts of a whole answer, in the order in which it was written."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from ipc.messages.answers import Choice, Span, TokenLogprob
from ipc.messages.conversation import ToolCall

# The thought, or text, or a call, of which the other two are empty; and the tokens behind it.
Part = tuple[str, str, ToolCall | None, list[TokenLogprob]]


def parts(answer: Choice) -> Iterator[Part]:
    """All that is in it: neighbours are of different kinds, but for calls."""
    reasoning = text = call = 0  # that have been told
    entries = iter(answer.logprobs)
    for span in answer.spans or _usual(answer):
        told = list(islice(entries, span.tokens))
        if span.kind == "reasoning":
            yield answer.reasoning[reasoning : reasoning + span.length], "", None, told
            reasoning += span.length
        elif span.kind == "text":
            yield "", answer.text[text : text + span.length], None, told
            text += span.length
        elif span.kind == "call":
            yield "", "", answer.tool_calls[call], told
            call += 1


def _usual(answer: Choice) -> Iterator[Span]:
    if answer.reasoning:
        yield Span(kind="reasoning", length=len(answer.reasoning))
    if answer.text:
        yield Span(kind="text", length=len(answer.text), tokens=len(answer.logprobs))
    for _ in answer.tool_calls:
        yield Span(kind="call")
