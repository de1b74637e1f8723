"""The vocabulary between a supervisor and the worker processes that it started.

Over its control socket (`ipc/control.py`) a process is told to warm up, and which rank to be; it answers with
`Waiting`. The rest travels in shared-memory rings: the supervisor writes `Command`s into rank 0's ring; every
rank writes `Report`s into its own token ring; rank 0 writes plans for the others into the plan ring
(`workers/step/plan.py` holds those: no other process reads them). All are msgpack, array-like where they are
sent each step.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ipc.messages.values import Plain
from ipc.model_settings import Dtype, FailurePlan, KVCacheDtype, Quantization, Speculation

CacheKind = Literal["full", "window", "chunk", "state", "latent"]  # of what layers keep (see `CacheGroup`)

PAGE_SIZE = 32  # tokens in one page of a KV pool
FREE_ROWS = 16  # of a decode step, guesses included: about as fast as one, a tile of a GPU's product
SMALLEST_CONTEXT = 2048  # tokens; a model that cannot have so many is not worth its weights

# What a process takes of a GPU before it has a tensor there: the driver's context and the libraries' code.
# From inside it cannot be seen, and from outside not told from other programs where processes are hidden.
CONTEXT_BYTES = 640 << 20

# What oneDNN keeps, on a CPU, of the code that it makes for every shape of a product that it meets. A step
# has up to about 50 of them (five, and three for each prompt and each run of pages), in each layer the same;
# by default a thousand are kept of each of two kinds, which comes to more than a gigabyte.
KERNELS = 64
KERNEL_BYTES = 48 << 20

# What decode steps that are recorded as graphs hold, on a GPU: their activations, and what the driver keeps
# for some hundred launches in each. A worker records no more of them once they hold as much.
GRAPH_BYTES = 256 << 20

# Memory of the host's in which ranks on GPUs add small tensors: two ranks up to 128 kB, four up to 64. Words
# there are twice as long as what they carry, and each rank reads those of all others over its bus: larger
# tensors should be faster as a library divides them. Where it is faster has not been timed yet.
SUM_BYTES = 1 << 20

# llguidance's own bounds (`LLParserLimits`) on what a grammar may cost, in a supervisor that tries it and in
# a rank that follows it. They count work and not time, so all ranks come to the same end.
GRAMMAR_LIMITS = {
    "initial_lexer_fuel": 400_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 2_500,  # about 10 ms; an object with 490 properties that may be missing needs 2,000
    "max_lexer_states": 20_000,  # about 40 MB
    "max_grammar_size": 200_000,
}


class RingHandle(Plain):
    """Descriptors of a ring, inherited by the child under the same numbers."""

    memory_fd: int
    data_fd: int  # eventfd: the writer says that there is something to read
    space_fd: int  # eventfd: the reader says that there is room again


class BroadcastHandle(Plain):
    """Descriptors of a one-writer, many-readers ring. `data_fds[i]` wakes reader i."""

    memory_fd: int
    data_fds: list[int]
    space_fd: int


class CacheGroup(Plain, frozen=True):
    """Layers that keep the same of the tokens before, so that one list of pages serves them all.

    A `full` layer keeps keys and values of every token, a `window` layer those of the last tokens, a `chunk`
    layer those since the last multiple of so many tokens, a `latent` one a short vector of every token, and a
    `state` layer one state, as large after any number of tokens.
    """

    kind: CacheKind
    layers: list[int]  # their numbers in the model
    window: int = 0  # tokens that a token sees at most, itself included; of `window` and `chunk`
    bytes_per_token: int = 0  # of all these layers, on one rank; 0 for a state
    bytes_per_sequence: int = 0  # of a state, the same
    in_order: bool = False  # tokens of an image see none behind them here, though they may elsewhere


class SimulatedSpec(Plain):
    """A model without a model: it has a speed, a size and a failure plan."""

    step_seconds: float = 0.0  # per step with decode in it
    prefill_tokens_per_second: float = 0.0  # 0: no time at all
    load_seconds: float = 0.0
    memory_bytes: int = 0  # booked in the ledger, per rank
    answer: list[int] = []  # the token ids that every answer repeats, in turn
    failure: FailurePlan | None = None
    caches: list[CacheGroup] = []  # empty: every layer is `full`
    states: int = 0  # of sequences, that there is room for; only where a layer keeps one


class WarmUp(Plain, tag="warm_up"):
    """Get ready for a transformer on that device: import what it takes, make the device's context."""

    device: str  # "cpu" or "cuda:N"


class WeightCache(Plain, frozen=True):
    """Where copies of quantised weights are kept, and how much of them."""

    folder: str
    max_bytes: int


class WorkerSpec(Plain, kw_only=True, tag="spec"):
    """All that one rank needs to know, given to a waiting process with the descriptors that it names."""

    model: str
    engine: Literal["transformer", "simulated"]
    epoch: int
    rank: int
    world_size: int
    parts: list[int] = []  # of the model, that each rank has; empty: all have as many
    device: str  # "cpu" or "cuda:N"
    threads: int  # CPU threads that this rank may use
    dtype: Dtype = "bfloat16"
    context_length: int
    max_sequences: int
    max_step_tokens: int
    kv_pages: int  # pages in the pool of each rank, at most
    memory_budget: int | None = None  # bytes that this rank may hold on its device; None: for all the pages
    exact: bool = False  # a token is computed to the same bits whatever else the engine does
    simulated: SimulatedSpec | None = None
    reports: RingHandle
    commands: RingHandle | None = None  # rank 0 only
    plans: BroadcastHandle | None = None  # groups of more than one rank
    heartbeat_fd: int
    card_fd: int | None = None  # of a transformer: its card and its adapters' (`workers.checkpoints`), sealed
    store_fd: int | None = None  # a listening socket for the rendezvous, rank 0 only
    store_port: int = 0
    log_level: str = "INFO"
    quantization: Quantization | None = None  # of weights that are stored plain
    weight_cache: WeightCache | None = None  # of what that makes; None: it is made with every load
    states: int | None = None  # where layers keep one, on each rank; None: enough for all sequences
    sum_fd: int | None = None  # `SUM_BYTES` of zeros that all ranks share; groups of more than one, on GPUs
    parking_fd: int | None = None  # memory for its weights (`ipc.parked`): whole to be read, or to be filled
    host_states: int = 0  # for which there is room in the host's memory, once they left the device
    kv_cache_dtype: KVCacheDtype | None = None  # of keys and values; None: `dtype`
    speculation: Speculation | None = None  # how tokens are guessed that a step then checks; None: not at all
    resizable: bool = False  # its pool shall be such as `ResizePool` can change, where the device has such


class Footprint(Plain):
    """Bytes that a process holds."""

    host: int  # of its own: what it shares with other processes does not count
    device: int = 0  # on its GPU; 0 on a CPU, where `host` is that


class Waiting(Plain, tag="waiting"):
    """A worker that is warm, or has freed what its last rank held, may be given a rank."""

    loads: int  # that it served
    held: Footprint
    baseline: Footprint  # before the first load, with everything imported and the device's context made


# --- supervisor to rank 0 -------------------------------------------------------------------------------


class SamplingParams(msgspec.Struct, array_like=True, frozen=True):
    """How the tokens of a sequence are chosen, with every value resolved. The defaults change nothing."""

    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 is off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    allowed_token_ids: list[int] = []  # empty: all
    bad_words: list[list[int]] = []  # token sequences of which the last token is not chosen after the others
    stop_ids: list[int] = []  # tokens that end the sequence, the end-of-text ids included
    min_tokens: int = 0  # of output, before a stop id may be chosen
    seed: int = 0  # unsigned 64 bits
    logprobs: int | None = None  # alternatives to report beside each token; None: no logprobs at all
    prompt_logprobs: int | None = None
    begin_suppress_ids: list[int] = []  # not chosen as the first token of the output
    no_repeat_ngram: int = 0  # so many tokens in a row stand in prompt and output once; 0 is off


class Constraint(msgspec.Struct, array_like=True, frozen=True):
    """A grammar that the output follows, in the thought's stead or after it; and how long that may be."""

    grammar: str  # Lark, as llguidance reads it, with `no_forcing`; empty: only the thought is of interest
    in_thought: bool = False  # the prompt has opened a thought: the grammar holds after its end
    think: list[int] = []  # tokens that may open a thought instead, as the first output
    end_think: list[int] = []  # tokens that end a thought
    budget: int | None = None  # tokens of the thought, after which nothing but its end may come


# What becomes of the hidden states of a text: one vector, or the model's score of a pair of texts.
Pooling = Literal["", "last", "mean", "cls", "max", "mean_sqrt_len", "score"]


class PlacedImage(msgspec.Struct, array_like=True, frozen=True):
    """An image in a prompt: a token for each square of its pixels, row by row.

    Where there is a gap, so many tokens of text stand behind each row. Tokens that are `together` see each
    other, those behind them too, so one step computes all of them.
    """

    digest: bytes  # of its pixels
    start: int  # of its first token
    rows: int  # of tokens
    columns: int
    gap: int = 0
    together: bool = False
    in_line: bool = False  # its tokens stand where text would: they have no positions of rows and columns
    cost: int = 0  # tokens of text that are as much work as a look at it, beside its own

    @property
    def across(self) -> int:
        """Tokens from the beginning of a row to that of the next."""
        return self.columns + self.gap

    @property
    def end(self) -> int:
        """The first token behind it."""
        return self.start + self.rows * self.across


class ImageData(msgspec.Struct, tag=9, array_like=True):
    """Pixels of an image, from byte number `start` on. All of them come in order, before its prompt."""

    digest: bytes
    start: int
    pixels: bytes  # uint8: row by row, of each pixel red, green and blue


class Submit(msgspec.Struct, tag=1, array_like=True):
    """Start a sequence."""

    request_id: int
    prompt: bytes  # token ids, uint32, little-endian
    max_tokens: int
    params: SamplingParams = SamplingParams()
    constraint: Constraint | None = None
    pooling: Pooling = ""  # not empty: no output, but one vector; max_tokens is 1
    priority: int = 0  # smaller is sooner
    account: str = ""  # accounts take turns
    cache_salt: str = ""  # only sequences with the same one share pages
    adapter: int = 0  # its number among those of the model, from 1; 0: none
    second: int = 0  # the first token of the second text of a pair, where the model tells them apart
    output: bytes = b""  # what it has written already, elsewhere; as `prompt`. `max_tokens` counts it, too
    marks: list[int] = []  # pages of the prompt whose hashes its first report is to tell, by number
    images: list[PlacedImage] = []  # in the prompt, in order


class Abort(msgspec.Struct, tag=2, array_like=True):
    """End a sequence before the next step; its `SequenceReport` says "aborted", if it was still open."""

    request_id: int


class Stop(msgspec.Struct, tag=3, array_like=True):
    """Serve no more: the model is unloaded. The process frees all that the model took, and waits."""


class LoadAdapter(msgspec.Struct, tag=4, array_like=True, frozen=True):
    """Read an adapter of the model, while steps go on. Each rank answers with an `AdapterReport`; when all
    have, sequences that use it may come."""

    number: int  # among those of the model, from 1


class DropAdapter(msgspec.Struct, tag=5, array_like=True, frozen=True):
    """Give the memory of an adapter back, which no open sequence uses. Each rank answers as before."""

    number: int


class ResizePool(msgspec.Struct, tag=6, array_like=True, frozen=True):
    """Change the pool of keys and values: each rank has memory for the first `kept` pages, and answers with a
    `PoolReport`; sequences get the first `usable` of them, and who has others is computed again.

    A pool that grows takes two of them: only when all ranks have the memory may sequences use it.
    """

    kept: int
    usable: int


Command = Submit | Abort | Stop | LoadAdapter | DropAdapter | ImageData | ResizePool


# --- a rank to its supervisor ---------------------------------------------------------------------------


class Loading(msgspec.Struct, tag=1, array_like=True):
    fraction: float
    message: str


class MemoryUse(msgspec.Struct, array_like=True, frozen=True):
    """Bytes that a rank holds on its device, by what for, as it measured them.

    A pool counts as a whole, though on a CPU it takes no memory before it is used.
    """

    weights: int = 0
    kv_pool: int = 0
    activations: int = 0  # the most that steps take, with what they leave (`KERNEL_BYTES`, `GRAPH_BYTES`)
    runtime: int = 0  # all else: the process, its libraries, the driver's context (`CONTEXT_BYTES`)

    @property
    def total(self) -> int:
        return self.weights + self.kv_pool + self.activations + self.runtime


class Ready(msgspec.Struct, tag=2, array_like=True):
    """This rank has its weights and its place in the group; `all_reduce` is the sum of ones over ranks."""

    all_reduce: int
    kv_pages: int  # in its pool, the same on every rank
    memory: MemoryUse
    load_seconds: float
    woken: bool = False  # its weights came from memory in which they had been parked
    resizable: bool = False  # its pool may shrink and grow (`ResizePool`)


class Logprobs(msgspec.Struct, array_like=True):
    """The log-probability of a token under the model, before penalties, temperature, filters and masks."""

    token: int
    logprob: float
    rank: int  # 1 is the most probable
    top: list[tuple[int, float]]  # the most probable tokens, in order


class Details(msgspec.Struct, array_like=True, frozen=True):
    """What most reports on a sequence do not say."""

    message: str = ""  # for "error"
    code: str = ""  # the same: of `ipc.errors.Code`
    cached_tokens: int = 0  # of its prompt, in its first report
    logprobs: list[Logprobs] = []  # of each of the report's `token_ids`
    # Of each prompt token but the first. Many come in parts, the last of them with the first token.
    prompt_logprobs: list[Logprobs] = []
    embedding: bytes = b""  # float32, little-endian
    marks: tuple[bytes, ...] = ()  # in its first report: the hashes of the pages that its `Submit` marks


NO_DETAILS = Details()


class SequenceReport(msgspec.Struct, array_like=True, gc=False):
    """What one step did for one sequence. The first one of each has no token, unless it came at once.

    There are many in each step, and nothing that they hold leads back to them: garbage has no need of a look.
    """

    request_id: int
    token_ids: list[int]  # new output; empty while its prompt is still being computed
    finish: Literal["", "stop", "length", "aborted", "error"] = ""
    more: Details | None = None  # where there is any

    @property
    def details(self) -> Details:
        """`more`, or one in which nothing is said."""
        return self.more or NO_DETAILS


class StepReport(msgspec.Struct, tag=3, array_like=True):
    """Rank 0, once a step: everything new. Counts run from the load."""

    step: int
    sequences: list[SequenceReport]
    running: int
    waiting: int
    pages_free: int  # cached ones included, which nobody uses
    pages_cached: int = 0
    prompt_tokens: int = 0  # in the prompts that began
    cached_tokens: int = 0  # part of these
    preemptions: int = 0
    out_of_memory: int = 0  # steps
    cached: list[bytes] = []  # hashes of pages that can be shared from now on
    evicted: list[bytes] = []  # and of those that no longer can
    drafted: int = 0  # tokens that were guessed, and checked
    accepted: int = 0  # of these, that were right


class Fatal(msgspec.Struct, tag=4, array_like=True):
    """The last words of a rank that cannot go on (code of `ipc.errors.Code`)."""

    code: str
    message: str


class AdapterReport(msgspec.Struct, tag=5, array_like=True):
    """This rank has done what a `LoadAdapter` or a `DropAdapter` said, or could not."""

    number: int
    nbytes: int = 0  # that it takes on this rank's device from now on
    code: str = ""  # of `ipc.errors.Code`, where it could not be read; nothing of it stays
    message: str = ""


class PoolReport(msgspec.Struct, tag=6, array_like=True):
    """This rank has done what a `ResizePool` said, or could not."""

    kept: int  # pages that it has memory for
    code: str = ""  # of `ipc.errors.Code`, where there was no memory; then nothing changed
    message: str = ""


Report = Loading | Ready | StepReport | Fatal | AdapterReport | PoolReport
