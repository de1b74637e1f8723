"""What a client asks of a neuron.

Every request carries an `id` that its client chose (unsigned, unique among its open requests on that
connection). Fields travel in the order in which they stand here: what may be large comes last, so that a
neuron knows whose a large request is without reading it (`ipc.unread`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from ipc.errors import Code, CortexError
from ipc.messages.catalogue import FleetCatalogue
from ipc.messages.conversation import MAX_TOOLS, Tools, Turns
from ipc.messages.sampling import Sampling, Structured, Thinking
from ipc.messages.values import MAX_TOKEN_IDS, Digest, ModelId, Name, Plain, Seconds, TokenIds

MAX_MARKS = 8
MAX_NEURONS = 64  # of which one is chosen
MAX_WRITTEN = 1 << 17  # tokens of a request that were written elsewhere; they are told again in one message

# Who leaves first: the one that costs least to bring back, was used longest ago, has the lowest priority.
Strategy = Literal["cost", "lru", "priority"]
STRATEGIES = frozenset(get_args(Strategy))


class Mark(Plain):
    """What a client calls a place in a prompt, so that it is told which neurons hold the prompt up to there.

    `digest` is the client's own, the same for all prompts that are the same up to there.
    """

    digest: Digest
    share: Annotated[float, Meta(ge=0, le=1)] = 1.0  # of the prompt, that comes before it


class Request(msgspec.Struct, tag_field="verb", omit_defaults=True, kw_only=True):
    id: int


class Eviction(Plain):
    """How a neuron makes room for a model that does not fit. The gateway hands it over in `hello`."""

    strategy: str = "cost"  # a `Strategy`
    # loads that one worker process serves at most before it is replaced
    defrag_after_cycles: Annotated[int, Meta(ge=1)] = 50
    # from the end of its load, for which a model stays where another of its priority wants its memory
    min_residency_seconds: Annotated[float, Meta(ge=0)] = 0.0
    origin: Name = ""  # the gateway's host and its file
    modified: Seconds = 0.0  # Unix time at which the file was written

    @property
    def version(self) -> str:
        """What it says: the same one says the same."""
        return f"{self.strategy} {self.min_residency_seconds:g} s {self.defrag_after_cycles} loads"


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
    keep_alive: Seconds | None = None  # as in `Generate`


class Unload(Request, tag="unload"):
    model: ModelId
    force: bool = False  # end requests that still run, instead of waiting for them


class Pin(Request, tag="pin"):
    """Keep a model loaded, or no longer, until the neuron starts again."""

    model: ModelId
    pinned: bool = True


class Generate(Request, tag="generate", kw_only=True):
    """Answered by `Started`, `Delta` (when `stream`) or `LogprobPiece` (when `in_pieces`), and one of
    `Finished`, `Cancelled`, `Failed`.

    Either `messages` (the chat template applies; reasoning and tool calls are told apart from text) or
    `prompt` (text or token ids, taken as they are, answered as plain text), or several of these in a list:
    each is answered by itself, and choice c of prompt p has the index p * `n` + c.
    """

    model: ModelId
    account: Name = ""  # for whom: accounts take turns
    trace: Name = ""  # the client's own id of it, for the neuron's log
    thinking: Thinking = Thinking()
    stream: bool = False
    echo: bool = False  # the answer begins with the prompt; only of a `prompt`
    return_token_ids: bool = False
    priority: int = 0  # smaller is sooner
    cache_salt: Name = ""  # only requests with the same one share cached prefixes
    parallel_tool_calls: bool = True  # False: the answer calls one tool at most
    # The last turn is the assistant's and ends in text, which the answer goes on with.
    continue_final_message: bool = False
    session: Name = ""  # the conversation that it belongs to, as its client calls that
    # Every token is told with its id as soon as it is there, so that the answer can go on elsewhere.
    resumable: bool = False
    # Another neuron has its model loaded, too: where its worker dies it fails at once, to go on there.
    replicated: bool = False
    # Seconds without another request after which the model is unloaded; below 0: never. None: as its settings
    # say.
    keep_alive: Seconds | None = None
    # Log-probabilities of an unstreamed answer come as there are some, and not all of them with its end.
    in_pieces: bool = False
    # Here begins what may be large.
    # Names of tools, of which the answer calls some; one that stands alone, once.
    must_call: Annotated[list[Name], Meta(max_length=MAX_TOOLS)] = []
    structured: Structured | None = None
    sampling: Sampling = Sampling()
    marks: Annotated[list[Mark], Meta(max_length=MAX_MARKS)] = []  # of its one prompt; told again in `State`
    # By choice, what was written of it elsewhere: the answer is told again from its beginning, and goes on.
    written: list[TokenIds] = []
    template_args: dict[str, Any] = {}  # further variables of the chat template; they win over `thinking`
    # A list: token ids alone, or prompts alone.
    prompt: str | Annotated[list[int | str | TokenIds], Meta(max_length=MAX_TOKEN_IDS)] | None = None
    suffix: str | None = None  # of a `prompt`: what follows the answer, which fills in what is between
    messages: Turns | None = None
    tools: Tools = []


class Cancel(Request, tag="cancel"):
    """Ends the open request `id`; the answer is its own terminal reply. Unknown ids are no error."""


class CountTokens(Request, tag="count_tokens", kw_only=True):
    model: ModelId
    account: Name = ""  # for whom
    trace: Name = ""
    thinking: Thinking = Thinking()
    continue_final_message: bool = False  # as in `Generate`
    template_args: dict[str, Any] = {}
    prompt: str | None = None
    messages: Turns | None = None
    tools: Tools = []


class Tokenize(CountTokens, tag="tokenize", kw_only=True):
    """Answered by `Tokens`. The model is not loaded for it."""

    # What the tokenizer puts around a text; None: around a `prompt`, for a chat template writes it itself.
    add_special_tokens: bool | None = None
    return_bytes: bool = False  # of each token


class Detokenize(Request, tag="detokenize", kw_only=True):
    """Answered by `Text`. The model is not loaded for it."""

    model: ModelId
    account: Name = ""  # for whom
    trace: Name = ""
    token_ids: TokenIds


class Embed(Request, tag="embed", kw_only=True):
    """Answered by `Embeddings`, after `VectorPiece`s when `in_pieces`."""

    model: ModelId
    account: Name = ""
    trace: Name = ""
    pooling: Literal["", "last", "mean"] = ""  # empty: as the model was made for, or else of the last token
    normalize: bool | None = None  # to length 1; None: as the model's files say, or else it is done
    dimensions: int | None = None  # the first so many; None: all
    priority: int = 0
    prompt_name: Name | None = None  # of the model's own prompts, which is put before each text
    # Tokens of an input, of which a longer one loses its last; 0: as many as the model takes. None: a longer
    # one is refused.
    cut_to: Annotated[int, Meta(ge=0)] | None = None
    keep_alive: Seconds | None = None  # as in `Generate`
    # Many vectors come as they are made: all in one message take its reader and its writer 20 ms each.
    in_pieces: bool = False
    input: list[str | TokenIds]  # texts or token ids


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


class Claim(Request, tag="claim"):
    """At which neuron that model is to be loaded: who asks first decides, for all that ask the same neuron
    within a moment. Nothing is done for it. Answered by `Claimed`.

    Neurons are told apart by their `instance`.
    """

    model: ModelId
    equals: Annotated[list[Name], Meta(min_length=1, max_length=MAX_NEURONS)]  # that would do best, in order
    others: Annotated[list[Name], Meta(max_length=MAX_NEURONS)] = []  # that would do, where it is decided so


class Drain(Request, tag="drain"):
    """Take no new work, finish what runs. `Done` comes when nothing runs any more."""

    model: ModelId = ""  # only of that model, which stays loaded; empty: of all


class Resume(Request, tag="resume"):
    model: ModelId = ""  # as it was drained


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
    | Claim
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
