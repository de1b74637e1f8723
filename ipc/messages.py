"""The vocabulary between a client (the gateway, a test, anyone) and a neuron.

One ZeroMQ message is one frame: a 4-byte header (`HEADER`: b"cx", protocol major, protocol minor), then a
msgpack body. A client sends one `Request` a message; a neuron sends a list of `Reply` a message, so that all
events of one engine step for one client travel together. `docs/protocol.md` says it for other languages.

One frame, because libzmq aborts the process of a client whose connection ends while it has read one frame of
a message and not yet the next (`Assertion failed: !_more`, fq.cpp, with `ZMQ_IMMEDIATE`).

Every request carries an `id` that its client chose (unsigned, unique among its open requests on that
connection). Every reply carries the id that it answers. A request ends with exactly one terminal reply.
"""

from __future__ import annotations

from math import isfinite
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ipc.errors import Code, CortexError
from ipc.model_settings import MAX_MODEL_ID, ModelSettings

PROTOCOL_MAJOR = 2
PROTOCOL_MINOR = 3
HEADER = b"cx" + bytes((PROTOCOL_MAJOR, PROTOCOL_MINOR))

FinishReason = Literal["stop", "length", "tool_calls"]
# Waiting is for memory that others hold; draining: it takes nothing new, for others wait for its memory.
ModelStatus = Literal[
    "unloaded", "waiting", "loading", "ready", "draining", "restarting", "unloading", "failed"
]


class Plain(msgspec.Struct, omit_defaults=True, frozen=True, kw_only=True):
    """A value inside messages."""


# --- what is asked of a model ---------------------------------------------------------------------------


MAX_NAME = 256  # characters of a name or an id that a client chooses
MAX_IMAGE = 32 << 20  # bytes of an image's file
MAX_TURNS = 10_000
MAX_TOOLS = 1024
MAX_TOKEN_IDS = 1 << 20  # of one list
MAX_MARKS = 8

Name = Annotated[str, Meta(max_length=MAX_NAME)]
ModelId = Annotated[str, Meta(max_length=MAX_MODEL_ID)]
TokenIds = Annotated[list[int], Meta(max_length=MAX_TOKEN_IDS)]


class ToolCall(Plain):
    """A finished call of a tool. `arguments` is JSON text, exactly as the model wrote it."""

    id: Name
    name: Name
    arguments: str


class Tool(Plain):
    """A function the model may call.

    `definition` is the client's own JSON, key by key, in the shape that chat templates are written for:
    `{"type": "function", "function": {"name": ..., "description": ..., "parameters": {a JSON schema}, ...}}`.
    """

    definition: dict[str, Any]
    # Lark, as in `Structured`, of a tool whose one argument is a text: calls are held to it as to a schema.
    text_grammar: str | None = None

    @classmethod
    def function(cls, name: str, text_grammar: str | None = None, **more: Any) -> Tool:
        """The tool of that name; `more` are further members of `function`, such as `parameters`."""
        return cls(
            definition={"type": "function", "function": {"name": name, **more}}, text_grammar=text_grammar
        )

    @property
    def name(self) -> str:
        return self.definition["function"]["name"]

    @property
    def parameters(self) -> dict[str, Any]:
        """The JSON schema of its arguments; empty where the client gave none."""
        return self.definition["function"].get("parameters") or {}

    def is_valid(self) -> bool:
        """Whether the definition has a name, and what else is read of it has the right type."""
        function = self.definition.get("function")
        if not isinstance(function, dict):
            return False
        name, parameters = function.get("name"), function.get("parameters")
        return isinstance(name, str) and 0 < len(name) <= MAX_NAME and isinstance(parameters, dict | None)


class TextPart(Plain, tag_field="type", tag="text"):
    text: str


class ImagePart(Plain, tag_field="type", tag="image"):
    data: Annotated[bytes, Meta(max_length=MAX_IMAGE)]  # the file
    media_type: Name = ""  # as the client says, such as image/png


class ToolResultPart(Plain, tag_field="type", tag="tool_result"):
    """What a call came to; several may stand in one turn of the user."""

    tool_call_id: Name
    content: str | list[TextPart | ImagePart] = ""
    is_error: bool = False


class ThinkingPart(Plain, tag_field="type", tag="thinking"):
    """A thought of the assistant, between its other parts."""

    text: str


ContentPart = TextPart | ImagePart | ToolResultPart | ThinkingPart


class Message(Plain):
    """One turn of a conversation. Parts are what the client sent, in its order."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] = ""
    reasoning: str | None = None
    tool_calls: list[ToolCall] = []
    tool_call_id: Name | None = None
    name: Name | None = None


Turns = Annotated[list[Message], Meta(max_length=MAX_TURNS)]
Tools = Annotated[list[Tool], Meta(max_length=MAX_TOOLS)]


class Sampling(Plain):
    """How tokens are chosen. None means: the model's `generation_config.json`, else the neutral value."""

    temperature: float | None = None  # 0 is greedy; neutral: 1
    top_k: int | None = None  # 0 is off; neutral: 0
    top_p: float | None = None  # in (0, 1]; neutral: 1
    min_p: float | None = None  # in [0, 1]; neutral: 0
    repetition_penalty: float | None = None  # above 0; prompt and output count; neutral: 1
    presence_penalty: float = 0.0  # -2 to 2; only output counts, as for the next one
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}  # added to the logits of these token ids
    allowed_token_ids: TokenIds = []  # no other is chosen; empty: all are allowed
    bad_words: list[str] = []  # texts that are not written
    min_tokens: int = 0  # of output, before anything may end the answer
    seed: int | None = None  # choice i of `n` draws with seed + i
    n: int = 1  # choices of each prompt, each an answer of its own
    max_tokens: int | None = None  # of each choice; None: to the end of the context
    stop: list[str] = []  # strings that end the answer
    include_stop: bool = False  # whether the stop string is part of the answer
    stop_token_ids: TokenIds = []
    ignore_eos: bool = False
    logprobs: int | None = None  # alternatives beside each token; 0: the token's own; None: no logprobs
    prompt_logprobs: int | None = None  # the same of the prompt's tokens


class Thinking(Plain):
    """How much a model thinks before it answers. None: as it does by itself."""

    enabled: bool | None = None
    effort: Name | None = None  # in the client's word: "none", "low", "medium", "high", ...
    budget: Annotated[int, Meta(ge=0)] | None = None  # tokens, after which the thought is ended


class Mark(Plain):
    """What a client calls a place in a prompt, so that it is told which neurons hold the prompt up to there.

    `digest` is the client's own, the same for all prompts that are the same up to there.
    """

    digest: Annotated[bytes, Meta(min_length=1, max_length=32)]
    share: Annotated[float, Meta(ge=0, le=1)] = 1.0  # of the prompt, that comes before it


class Structured(Plain):
    """What an answer must look like. Exactly one is set; the names are vLLM's."""

    json: dict[str, Any] | bool | None = None  # a JSON schema
    json_object: bool = False  # any JSON object
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None  # Lark, as llguidance reads it


# --- requests: client to neuron -------------------------------------------------------------------------


class Request(msgspec.Struct, tag_field="verb", omit_defaults=True, kw_only=True):
    id: int


class Eviction(Plain):
    """How a neuron makes room for a model that does not fit. The gateway hands it over in `hello`."""

    # Who leaves first: the one that costs least to bring back, was used longest ago, has the lowest priority.
    strategy: Literal["cost", "lru", "priority"] = "cost"
    # loads that one worker process serves at most before it is replaced
    defrag_after_cycles: Annotated[int, Meta(ge=1)] = 50
    # from the end of its load, for which a model stays where another of its priority wants its memory
    min_residency_seconds: Annotated[float, Meta(ge=0)] = 0.0


class Hello(Request, tag="hello"):
    client: Name = ""
    eviction: Eviction | None = None


class Discover(Request, tag="discover"):
    pass


class Health(Request, tag="health"):
    pass


class Watch(Request, tag="watch"):
    """Answered by `State` now and at each change, and by `Heartbeat` each second, until it is cancelled."""


class Logs(Request, tag="logs"):
    """Answered by `LogLines`: what this neuron has written to its log, then by `Done`; with `follow` also by
    what it writes from now on, until it is cancelled."""

    lines: int = 100  # of the past, at most
    request: str = ""  # only lines about the request whose `trace` that is
    follow: bool = False


class ListModels(Request, tag="models"):
    pass


class Load(Request, tag="load"):
    """Answered by `Progress` as it goes, then `Done`. Loading a loaded model is `Done` at once."""

    model: ModelId
    keep_alive: float | None = None  # as in `Generate`


class Unload(Request, tag="unload"):
    model: ModelId
    force: bool = False  # end requests that still run, instead of waiting for them


class Pin(Request, tag="pin"):
    """Keep a model loaded, or no longer, until the neuron starts again."""

    model: ModelId
    pinned: bool = True


class Generate(Request, tag="generate"):
    """Answered by `Started`, `Delta` (when `stream`), and one of `Finished`, `Cancelled`, `Failed`.

    Either `messages` (the chat template applies; reasoning and tool calls are told apart from text) or
    `prompt` (text or token ids, taken as they are, answered as plain text), or several of these in a list:
    each is answered by itself, and choice c of prompt p has the index p * `n` + c.
    """

    model: ModelId
    messages: Turns | None = None
    # A list: token ids alone, or prompts alone.
    prompt: str | Annotated[list[int | str | TokenIds], Meta(max_length=MAX_TOKEN_IDS)] | None = None
    suffix: str | None = None  # of a `prompt`: what follows the answer, which fills in what is between
    tools: Tools = []
    # Names of tools, of which the answer calls some; one that stands alone, once.
    must_call: Annotated[list[Name], Meta(max_length=MAX_TOOLS)] = []
    template_args: dict[str, Any] = {}  # further variables of the chat template; they win over `thinking`
    thinking: Thinking = Thinking()
    sampling: Sampling = Sampling()
    structured: Structured | None = None
    stream: bool = False
    echo: bool = False  # the answer begins with the prompt; only of a `prompt`
    return_token_ids: bool = False
    priority: int = 0  # smaller is sooner
    account: Name = ""  # for whom: accounts take turns
    cache_salt: Name = ""  # only requests with the same one share cached prefixes
    parallel_tool_calls: bool = True  # False: the answer calls one tool at most
    trace: Name = ""  # the client's own id of it, for the neuron's log
    # The last turn is the assistant's and ends in text, which the answer goes on with.
    continue_final_message: bool = False
    session: Name = ""  # the conversation that it belongs to, as its client calls that
    marks: Annotated[list[Mark], Meta(max_length=MAX_MARKS)] = []  # of its one prompt; told again in `State`
    # Every token is told with its id as soon as it is there, so that the answer can go on elsewhere.
    resumable: bool = False
    # By choice, what was written of it elsewhere: the answer is told again from its beginning, and goes on.
    written: list[TokenIds] = []
    # Seconds without another request after which the model is unloaded; below 0: never. None: as its settings
    # say.
    keep_alive: float | None = None


class Cancel(Request, tag="cancel"):
    """Ends the open request `id`; the answer is its own terminal reply. Unknown ids are no error."""


class CountTokens(Request, tag="count_tokens"):
    model: ModelId
    messages: Turns | None = None
    prompt: str | None = None
    tools: Tools = []
    template_args: dict[str, Any] = {}
    thinking: Thinking = Thinking()
    account: Name = ""  # for whom
    trace: Name = ""
    continue_final_message: bool = False  # as in `Generate`


class Tokenize(CountTokens, tag="tokenize"):
    """Answered by `Tokens`. The model is not loaded for it."""

    # What the tokenizer puts around a text; None: around a `prompt`, for a chat template writes it itself.
    add_special_tokens: bool | None = None
    return_bytes: bool = False  # of each token


class Detokenize(Request, tag="detokenize"):
    """Answered by `Text`. The model is not loaded for it."""

    model: ModelId
    token_ids: TokenIds
    account: Name = ""  # for whom
    trace: Name = ""


class Embed(Request, tag="embed"):
    """Answered by `Embeddings`."""

    model: ModelId
    input: list[str | TokenIds]  # texts or token ids
    pooling: Literal["", "last", "mean"] = ""  # empty: as the model was made for, or else of the last token
    normalize: bool | None = None  # to length 1; None: as the model's files say, or else it is done
    dimensions: int | None = None  # the first so many; None: all
    priority: int = 0
    account: Name = ""
    trace: Name = ""
    prompt_name: Name | None = None  # of the model's own prompts, which is put before each text
    # Tokens of an input, of which a longer one loses its last; 0: as many as the model takes. None: a longer
    # one is refused.
    cut_to: Annotated[int, Meta(ge=0)] | None = None
    keep_alive: float | None = None  # as in `Generate`


class Rerank(Embed, tag="rerank", kw_only=True):
    """Answered by `Ranked`. `input` is the documents, as texts, and of the rest what is about vectors is not
    used. A document that is longer than `cut_to` leaves room for, beside the query, loses its end."""

    query: str
    document_tokens: Annotated[int, Meta(ge=1)] | None = None  # that a document is cut to
    instruction: str | None = None  # what makes a document a good one; None: the model's own words


class CachedPages(Request, tag="cached_pages"):
    """Which pages of prompts a model has computed already. Answered by `PageHashes`."""

    model: ModelId


class Quote(Request, tag="quote"):
    """What it would take to serve that model here, now. Nothing is done for it. Answered by `Quoted`."""

    model: ModelId


class Drain(Request, tag="drain"):
    """Take no new work, finish what runs. `Done` comes when nothing runs any more."""

    model: ModelId = ""  # only of that model, which stays loaded; empty: of all


class Resume(Request, tag="resume"):
    model: ModelId = ""  # as it was drained


class FleetCatalogue(Plain):
    """What a gateway's file says of models, as far as it is about one neuron."""

    version: Name  # of what the file says: the same one says the same
    origin: Name  # the gateway's host and its file
    modified: float  # Unix time at which the file was written
    models: list[ModelSettings] = []
    elsewhere: dict[ModelId, list[str]] = {}  # models that only these other neurons serve


class SetCatalogue(Request, tag="catalogue"):
    """Serve models as this says, from now on. Answered by `CatalogueReply`.

    What the neuron's own file has of a model counts instead. The catalogue of one origin replaces what came
    from there before; of two origins the file that was written last counts, whoever says it.
    """

    catalogue: FleetCatalogue


class CheckCatalogue(Request, tag="check_catalogue"):
    """What would become of each model by this catalogue here. Nothing is done. Answered by `Appraisals`."""

    catalogue: FleetCatalogue


AnyRequest = (
    Hello
    | Discover
    | Health
    | Watch
    | Logs
    | ListModels
    | Load
    | Unload
    | Pin
    | Generate
    | Cancel
    | CountTokens
    | Tokenize
    | Detokenize
    | Embed
    | Rerank
    | CachedPages
    | Quote
    | Drain
    | Resume
    | SetCatalogue
    | CheckCatalogue
)


def misread(error: Exception) -> CortexError:
    """The error for a body that is no such request, of what msgspec says of it."""
    # msgspec ends its sentences with " - at `$.path`".
    message, _, path = str(error).partition(" - at `$.")
    return CortexError(Code.BAD_REQUEST, message, param=path.rstrip("`") or None)


# --- replies: neuron to client --------------------------------------------------------------------------


class Reply(msgspec.Struct, tag_field="type", omit_defaults=True, kw_only=True):
    id: int


class Usage(Plain):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0  # part of prompt_tokens
    reasoning_tokens: int = 0  # part of completion_tokens


class Timings(Plain):
    """Seconds, measured in the neuron. `first_token` counts from the arrival of the request."""

    queue: float = 0.0  # arrival to hand-over to the worker, loading included
    first_token: float = 0.0
    total: float = 0.0


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


class Started(Reply, tag="started"):
    """Every prompt is tokenised and accepted by the engine."""

    prompt_tokens: int  # of all prompts
    prompt_token_ids: list[list[int]] | None = None  # of each prompt, when `return_token_ids`


class Progress(Reply, tag="progress"):
    """Not terminal: what is waited for. Where it is known, `fraction` runs from 0 to 1."""

    stage: Literal["queued", "loading"]
    message: str = ""
    fraction: float | None = None
    seconds_left: float | None = None
    position: int | None = (
        None  # when "queued": of the request before its model, or of its model before memory
    )
    waiting: int | None = None  # requests that stand in the former line


class Delta(Reply, tag="delta"):
    """New output of one choice of a streamed request: a thought, what is said after it, then calls.

    `tokens` counts the tokens behind it; text may lag behind tokens.
    """

    tokens: int
    index: int = 0  # of the choice
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = []
    token_ids: list[int] | None = None
    logprobs: list[TokenLogprob] = []
    prompt_logprobs: list[TokenLogprob] | None = None  # one a token; first delta of a prompt's first choice


class Span(Plain):
    """A part of an answer: so many of the characters of its text or its reasoning, or its next tool call."""

    kind: Literal["text", "reasoning", "call"]
    length: int = 0  # characters; none of a call
    tokens: int = 0  # behind it: so many of `logprobs`


class Choice(Plain):
    """One whole answer. Of a streamed request only how it ended: the rest came in `Delta`."""

    reason: FinishReason
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
    retry_after: float | None = None
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
    tokens: int


class Tokens(Reply, tag="tokens"):
    token_ids: list[int]
    context_length: int  # of the model
    pieces: list[bytes] | None = None  # that each of them stands for, when `return_bytes`


class Text(Reply, tag="text"):
    """Special tokens are in it, as they are written."""

    text: str


class Embeddings(Reply, tag="embeddings"):
    vectors: list[bytes]  # float32, little-endian, in the order of the input
    prompt_tokens: int


class Ranked(Reply, tag="ranked"):
    scores: list[float]  # of the documents, in their order; the higher, the better
    prompt_tokens: int


class PageHashes(Reply, tag="page_hashes"):
    """Each hash stands for a page of `page_size` tokens and all that come before it (docs/protocol.md)."""

    page_size: int
    hashes: list[bytes]  # 16 bytes each


class Quoted(Reply, tag="quoted"):
    """Terminal. What a request for the model would meet here.

    `ready`: it is loaded, and `loading`: it is on its way. Else its memory: `fits` where it is free, `evicts`
    where idle models would leave for it, `waits` where some that would leave have work to finish first, or
    others wait for memory before it, or it is in that line itself, or its files are not here and have to be
    pulled (`bytes_to_pull`). `refused`: it cannot be had, and `code` and `message` say why.
    """

    verdict: Literal["ready", "loading", "fits", "evicts", "waits", "refused"]
    # Until it could begin: as its last load took, else its bytes at the rate of others. None: not known.
    seconds: float | None = None
    evicts: list[str] = []  # the models that would leave
    bytes: int = 0  # that it would book, or has booked
    queue: int = 0  # requests for it that have not begun
    ahead: int = 0  # models that wait for memory before it would
    code: str = ""
    message: str = ""
    loss: float = 0.0  # seconds that whoever wants the evicted models next will wait for them, at a guess
    parked: bool = False  # its weights are in the host's memory, which `seconds` reckons with
    # Its files are not here, and so much of them has to come from a hub before it loads; 0: not known yet.
    bytes_to_pull: int | None = None


class CatalogueReply(Reply, tag="catalogue"):
    """Terminal. The catalogue that counts here now, which may be that of another gateway."""

    version: str
    origin: str
    own: dict[str, list[str]] = {}  # models of which the neuron's own file counts: the keys that differ there
    refused: dict[str, str] = {}  # models that it cannot serve as they are wanted, and why


class Appraisal(Plain):
    """What would become of one model of a catalogue on one host.

    `fits`: it is there, and would fit if nothing else was loaded. `too_large`: it would not. `missing`: its
    files are not there. `broken`: they cannot be served like this. `refused`: the host or the catalogue says
    no. `own`: the neuron's own file has it, which counts. `pulled`: its files come when somebody asks for it.
    """

    model: str
    verdict: Literal["fits", "too_large", "missing", "broken", "refused", "own", "pulled"]
    message: str = ""
    path: str = ""  # of its files
    devices: list[str] = []  # that its ranks would be on
    bytes: int = 0  # that it would book
    context_length: int = 0
    context_wanted: int = 0  # what that would be with enough memory


class Appraisals(Reply, tag="appraisals"):
    """Terminal."""

    models: list[Appraisal]


class HelloReply(Reply, tag="hello"):
    neuron: str  # its name
    version: str
    instance: str  # random, new at each start of the daemon
    protocol: tuple[int, int] = (2, 0)  # left out by neurons of version 2.0: newer ones say theirs


class Device(Plain):
    """A GPU, or the CPU as a device of its own. Bytes."""

    id: str  # "cuda:0", "cpu"
    kind: Literal["cuda", "cpu"]
    name: str
    memory_total: int
    memory_free: int  # as the driver or the kernel says now
    memory_reserved: int = 0  # by the neuron's ledger
    compute_capability: str | None = None
    driver: str | None = None
    cores: int | None = None
    utilization: float | None = None  # 0 to 1
    temperature: float | None = None  # degrees Celsius


class RankState(Plain):
    """One rank, from its heartbeat page."""

    rank: int
    pid: int
    device: str
    state: str
    step: int
    age: float  # seconds since it last wrote
    memory: int  # bytes it holds on its device
    collectives: int = 0  # that it took part in
    # In all of them. The others wait for the rank with the fewest seconds; the difference is the skew.
    collective_seconds: float = 0.0


class ModelState(Plain):
    """What a neuron knows of one model: enough for routing, `/v1/models`, `status` and metrics."""

    id: str
    status: ModelStatus
    architecture: str = ""
    engine: str = "transformer"
    dtype: str = ""
    context_length: int = 0
    context_wanted: int = 0  # what it would be with enough memory
    chat: bool = True  # it has a chat template
    tools: bool = False  # the template takes tools
    reasoning: bool = False  # the template knows thinking
    vision: bool = False  # it takes images
    devices: list[str] = []
    bytes_weights: int = 0
    bytes_reserved: int = 0  # planned, over all its devices
    bytes_measured: int = 0  # what its ranks found that they hold
    pinned: bool = False
    priority: int = 100
    progress: float | None = None  # of a load, 0 to 1
    seconds_left: float | None = None  # of it, at the rate so far
    error: str | None = None  # why it failed last
    epoch: int = 0  # worker groups started so far
    restarts: int = 0
    running: int = 0  # requests in the worker
    waiting: int = 0  # requests in the neuron's queue
    finished: int = 0  # requests so far
    cancelled: int = 0
    failed: int = 0
    pages_total: int = 0
    pages_free: int = 0  # pages that a running request could have; those of cached prefixes included
    pages_cached: int = 0
    prompt_tokens: int = 0  # in prompts that began, since the load
    cached_tokens: int = 0  # part of prompt_tokens
    preemptions: int = 0
    out_of_memory: int = 0  # steps that ran out of memory
    collectives: int = 0  # between its ranks, since the load
    collective_seconds: list[
        float
    ] = []  # by rank, in all of them: the others wait for the one with the least
    steps: int = 0
    created: int = 0  # Unix time of the checkpoint
    load_seconds: float | None = None  # that its last load took, from the start of its processes
    adapters: list[str] = []  # names; each is asked for as `ID:NAME`
    completion: bool = True  # it writes text
    embedding: bool = False  # it turns texts into vectors
    rerank: bool = False  # it scores documents for a query
    max_sequences: int = 0  # that it computes at once
    request_seconds: float = 0.0  # that a request takes from its beginning, smoothed; 0: not measured yet
    prefill_rate: float = 0.0  # tokens of prompts a second, lately at best; 0: not measured yet
    evictions: int = 0  # times that it left for another model
    bytes_parked: int = 0  # of its weights, in the host's memory, from where a load brings them back
    wakes: int = 0  # loads from there
    wake_seconds: float | None = None  # that the last one took
    keep_alive: float | None = None  # seconds without a request after which it is unloaded; None: never
    drained: bool = False  # it takes nothing new here until a `Resume`
    max_output: int = 0  # tokens of one answer, whatever a request wants; 0: what the context leaves
    adapters_loaded: list[str] = []  # names of those that are in memory now
    bytes_to_pull: int | None = None  # its files are not here: so much is to come; 0: nobody knows yet
    drafted: int = 0  # tokens that were guessed, since the load
    accepted: int = 0  # of these, that were right


class Discovery(Reply, tag="discovery"):
    hostname: str
    devices: list[Device]
    cuda_unavailable: str | None = None  # why, where a GPU is there and cannot be used


class HealthReply(Reply, tag="health"):
    uptime: float
    draining: bool
    devices: list[Device]
    models: list[ModelState]
    ranks: dict[str, list[RankState]]
    text_memory: int = 0  # bytes of the host that the processes hold which prepare requests


class ModelList(Reply, tag="models"):
    models: list[ModelState]


class State(Reply, tag="state"):
    """The state of a neuron; sent at once, and when it changed: a status at once, else ten times a second.

    The first one of a watch is whole. After it, `models` are those that changed, and `gone` those that are no
    longer there.
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
    prefixes: dict[str, dict[bytes, int]] = {}
    text_memory: int = 0  # as of `health`


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
    | Finished
    | Cancelled
    | Failed
    | Done
    | TokenCount
    | Tokens
    | Text
    | Embeddings
    | Ranked
    | PageHashes
    | Quoted
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
    CatalogueReply,
    Appraisals,
    HelloReply,
    Discovery,
    HealthReply,
    ModelList,
)
