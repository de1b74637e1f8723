"""What an answer consists of: text, calls and tokens, how it ended, and what it took."""

from __future__ import annotations

from typing import Literal, get_args

from ipc.messages.conversation import ToolCall
from ipc.messages.values import Finite, Plain, TokenTotal, take_word

FinishReason = Literal["stop", "length", "tool_calls"]
_REASONS = frozenset(get_args(FinishReason))


class Usage(Plain):
    prompt_tokens: TokenTotal = 0
    completion_tokens: TokenTotal = 0
    cached_tokens: TokenTotal = 0  # part of prompt_tokens
    reasoning_tokens: TokenTotal = 0  # part of completion_tokens


class Timings(Plain):
    """Seconds, measured in the neuron. `first_token` counts from the arrival of the request."""

    queue: Finite = 0.0  # arrival to hand-over to the worker, loading included
    first_token: Finite = 0.0
    total: Finite = 0.0


class ToolCallDelta(Plain):
    """A piece of a tool call: the first of a call has `call_id` and `name`, later ones add `arguments`."""

    index: int
    call_id: str | None = None
    name: str | None = None
    arguments: str = ""


class Alternative(Plain):
    """A token that might have stood there."""

    token_id: int
    token: str  # its text; a part of a character is U+FFFD
    raw: bytes  # of its text
    logprob: float


class TokenLogprob(Alternative):
    """A token that stands there, with the `top` most probable ones, in order of probability."""

    logprob: float | None  # of the first token of a prompt there is none
    rank: int = 1  # 1 is the most probable
    top: list[Alternative] = []


class Span(Plain):
    """A part of an answer: so many of the characters of its text or its reasoning, or its next tool call."""

    kind: str  # "text", "reasoning", "call"; of another nothing is known
    length: int = 0  # characters; none of a call
    tokens: int = 0  # behind it: so many of `logprobs`


class Choice(Plain):
    """One whole answer. Of a streamed request only how it ended: the rest came in `Delta`."""

    reason: str  # a `FinishReason`; one that we do not know is "stop"
    index: int = 0
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = []
    token_ids: list[int] | None = None
    logprobs: list[TokenLogprob] = []
    stop_sequence: str | None = None  # the stop string that ended it
    context_full: bool = False  # of "length": the model's context ended it, not `max_tokens`
    # What follows what, where that is not the reasoning, then the text, then the calls.
    spans: list[Span] = []

    def __post_init__(self) -> None:
        take_word(self, "reason", _REASONS, "stop")
