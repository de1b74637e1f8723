"""What a neuron replies.

Every reply carries the id of the request that it answers. A request ends with exactly one terminal reply.
"""

from __future__ import annotations

from math import isfinite
from typing import Any, Literal

import msgspec

from ipc.errors import CortexError
from ipc.messages.answers import Choice, Timings, TokenLogprob, ToolCallDelta, Usage
from ipc.messages.catalogue import Appraisal
from ipc.messages.requests import Eviction
from ipc.messages.state import Device, ModelState, RankState
from ipc.messages.values import Count, Digest, Finite, TokenTotal, take_word

_VERDICTS = frozenset(("ready", "loading", "fits", "evicts", "waits", "refused"))


class Reply(msgspec.Struct, tag_field="type", omit_defaults=True, kw_only=True):
    id: int


class Started(Reply, tag="started"):
    """Every prompt is tokenised and accepted by the engine."""

    prompt_tokens: TokenTotal  # of all prompts
    prompt_token_ids: list[list[int]] | None = None  # of each prompt, when `return_token_ids`


class Progress(Reply, tag="progress"):
    """Not terminal: what is waited for. Where it is known, `fraction` runs from 0 to 1."""

    stage: Literal["queued", "loading"]
    message: str = ""
    fraction: Finite | None = None
    seconds_left: Finite | None = None
    position: int | None = (
        None  # when "queued": of the request before its model, or of its model before memory
    )
    waiting: int | None = None  # requests that stand in the former line


class Delta(Reply, tag="delta"):
    """New output of one choice of a streamed request: a thought, what is said after it, then calls.

    `tokens` counts the tokens behind it; text may lag behind tokens.
    """

    tokens: int
    index: Count = 0  # of the choice
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = []
    token_ids: list[int] | None = None
    logprobs: list[TokenLogprob] = []
    # One a token: in deltas of a prompt's first choice, the last of which has its first token.
    prompt_logprobs: list[TokenLogprob] | None = None


class LogprobPiece(Reply, tag="logprobs"):
    """Not terminal, of an unstreamed request that takes its log-probabilities `in_pieces`: some of one choice
    or prompt, which follow those of its last piece. `Finished` has the rest."""

    entries: msgspec.Raw  # a list of `TokenLogprob`: read it where that holds up nobody
    tokens: int  # so many of them
    index: int = 0  # of the choice
    of_prompt: bool = False  # then of the prompt


class Finished(Reply, tag="finished"):
    """Terminal: all choices ended. Of a streamed request the last `Delta` of each has been sent."""

    choices: list[Choice]  # by index
    usage: Usage  # of all choices together; each prompt counts once
    timings: Timings
    prompt_logprobs: list[list[TokenLogprob]] | None = None  # of each prompt; unstreamed


class Cancelled(Reply, tag="cancelled"):
    """Terminal."""

    usage: Usage = Usage()


class Failed(Reply, tag="failed"):
    """Terminal, for every verb. `code` is one of `ipc.errors.Code`. Id 0: the request's id was unreadable."""

    code: str
    message: str
    param: str | None = None
    retry_after: Finite | None = None
    tokens_sent: int = 0
    details: dict[str, Any] = {}

    @classmethod
    def of(cls, request_id: int, error: CortexError) -> Failed:
        """The reply that carries an error across."""
        return cls(
            id=request_id,
            code=error.code,
            message=error.message,
            param=error.param,
            retry_after=error.retry_after,
            tokens_sent=error.tokens_sent,
            details=error.details,
        )

    def error(self) -> CortexError:
        """The error that it carries."""
        wait = self.retry_after
        return CortexError(
            self.code,
            self.message,
            param=self.param,
            retry_after=wait if wait is not None and isfinite(wait) else None,
            tokens_sent=self.tokens_sent,
            details=self.details,
        )


class Done(Reply, tag="done"):
    """Terminal: load, unload, drain, resume."""


class TokenCount(Reply, tag="token_count"):
    tokens: TokenTotal


class Tokens(Reply, tag="tokens"):
    token_ids: list[int]
    context_length: int  # of the model
    pieces: list[bytes] | None = None  # that each of them stands for, when `return_bytes`


class Text(Reply, tag="text"):
    """Special tokens are in it, as they are written."""

    text: str


class VectorPiece(Reply, tag="vectors"):
    """Not terminal, of an `Embed` that takes its vectors `in_pieces`: some of them, as they were made. Where
    there was one, all come so, and `Embeddings` has none."""

    numbers: list[int]  # of their inputs
    vectors: list[bytes]


class Embeddings(Reply, tag="embeddings"):
    vectors: list[bytes]  # float32, little-endian, in the order of the input
    prompt_tokens: TokenTotal


class Ranked(Reply, tag="ranked"):
    scores: list[Finite]  # of the documents, in their order; the higher, the better
    prompt_tokens: TokenTotal


class PageHashes(Reply, tag="page_hashes"):
    """Each hash stands for a page of `page_size` tokens and all that come before it (docs/protocol.md)."""

    page_size: int
    hashes: list[bytes]  # 16 bytes each


class Quoted(Reply, tag="quoted"):
    """Terminal. What a request for the model would meet here.

    `ready`: it is loaded, and `loading`: it is on its way. Else its memory: `fits` where it is free, `evicts`
    where idle models would leave for it, `waits` where some that would leave have work to finish first, or
    others wait for memory before it, or it is in that line itself, or its files are not here and have to be
    pulled (`bytes_to_pull`). `refused`: it cannot be had, and `code` and `message` say why. A word that we do
    not know is `waits`: nobody should count on it.
    """

    verdict: str
    # Until it could begin: as its last load took, else its bytes at the rate of others. None: not known.
    seconds: Finite | None = None
    evicts: list[str] = []  # the models that would leave
    bytes: int = 0  # that it would book, or has booked
    queue: int = 0  # requests for it that have not begun
    ahead: int = 0  # models that wait for memory before it would
    code: str = ""
    message: str = ""
    loss: Finite = 0.0  # seconds that whoever wants the evicted models next will wait for them, at a guess
    parked: bool = False  # its weights are in the host's memory, which `seconds` reckons with
    # Its files are not here, and so much of them has to come from a hub before it loads; 0: not known yet.
    bytes_to_pull: int | None = None

    def __post_init__(self) -> None:
        take_word(self, "verdict", _VERDICTS, "waits")


class Claimed(Reply, tag="claimed"):
    """Terminal. The neuron at which a model is to be loaded."""

    neuron: str


class CatalogueReply(Reply, tag="catalogue"):
    """Terminal. The catalogue that counts here now, which may be that of another gateway."""

    version: str
    origin: str
    own: dict[str, list[str]] = {}  # models of which the neuron's own file counts: the keys that differ there
    refused: dict[str, str] = {}  # models that it cannot serve as they are wanted, and why


class Appraisals(Reply, tag="appraisals"):
    """Terminal."""

    models: list[Appraisal]


class HelloReply(Reply, tag="hello"):
    neuron: str  # its name
    version: str
    instance: str  # random, new at each start of the daemon
    protocol: tuple[int, int] = (2, 0)  # left out by neurons of version 2.0: newer ones say theirs
    eviction: Eviction | None = None  # that counts here; None: no gateway has said one


class Discovery(Reply, tag="discovery"):
    hostname: str
    devices: list[Device]
    cuda_unavailable: str | None = None  # why, where a GPU is there and cannot be used


class HealthReply(Reply, tag="health"):
    uptime: Finite
    draining: bool
    devices: list[Device]
    models: list[ModelState]
    ranks: dict[str, list[RankState]]
    text_memory: int = 0  # bytes of the host that the processes hold which prepare requests
    parked_memory: int = 0  # bytes of the host that weights of models are parked in,
    parking: int = 0  # and that they may be parked in


class ModelList(Reply, tag="models"):
    models: list[ModelState]


class State(Reply, tag="state"):
    """The state of a neuron; sent at once, and when it changed: a status at once, else ten times a second.

    The first one of a watch is whole, and so is the first one after the search for models. After it, `models`
    are those that changed, and `gone` those that are no longer there.
    """

    neuron: str
    instance: str
    draining: bool
    devices: list[Device]
    models: list[ModelState]
    whole: bool = True
    gone: list[str] = []
    # By model, the marks of prompts whose pages its worker holds, and how many tokens that is: those that are
    # new, and with 0 those of which it no longer holds all. An epoch begins with none.
    prefixes: dict[str, dict[Digest, Count]] = {}
    text_memory: int = 0  # as of `health`, and these
    parked_memory: int = 0
    parking: int = 0
    catalogue: str = ""  # the version of the one that counts; "": no gateway has said one
    eviction: Eviction | None = None  # that counts; None: no gateway has said how
    searching: bool = False  # it has just started, and may have models that it has not found yet


class Heartbeat(Reply, tag="heartbeat"):
    """Sent once a second to every client with a watch or an open request. Its `id` is 0 without a watch."""


class LogLines(Reply, tag="log_lines"):
    """Not terminal: lines of a log as they were written, the oldest first; none at first where none are there
    yet to be followed."""

    lines: list[str]


AnyReply = (
    Started
    | Progress
    | Delta
    | LogprobPiece
    | Finished
    | Cancelled
    | Failed
    | Done
    | TokenCount
    | Tokens
    | Text
    | VectorPiece
    | Embeddings
    | Ranked
    | PageHashes
    | Quoted
    | Claimed
    | CatalogueReply
    | Appraisals
    | HelloReply
    | Discovery
    | HealthReply
    | ModelList
    | State
    | LogLines
    | Heartbeat
)

TERMINAL = (
    Finished,
    Cancelled,
    Failed,
    Done,
    TokenCount,
    Tokens,
    Text,
    Embeddings,
    Ranked,
    PageHashes,
    Quoted,
    Claimed,
    CatalogueReply,
    Appraisals,
    HelloReply,
    Discovery,
    HealthReply,
    ModelList,
)
