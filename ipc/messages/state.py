"""What a neuron knows of itself: its devices, its models, and their ranks."""

from __future__ import annotations

from typing import Literal, get_args

from ipc.messages.values import Finite, Plain, take_word

# Waiting is for memory that others hold; draining: it takes nothing new, for others wait for its memory.
ModelStatus = Literal[
    "unloaded", "waiting", "loading", "ready", "draining", "restarting", "unloading", "failed"
]
_STATUSES = frozenset(get_args(ModelStatus))


class Device(Plain):
    """A GPU, or the CPU as a device of its own. Bytes."""

    id: str  # "cuda:0", "cpu"
    kind: str  # "cuda", "cpu"
    name: str
    memory_total: int
    memory_free: int  # as the driver or the kernel says now
    memory_reserved: int = 0  # by the neuron's ledger
    memory_rate: int | None = None  # bytes a second that it reads at most; None: nobody says
    compute_capability: str | None = None
    driver: str | None = None
    cores: int | None = None
    utilization: Finite | None = None  # 0 to 1
    temperature: Finite | None = None  # degrees Celsius


class RankState(Plain):
    """One rank, from its heartbeat page."""

    rank: int
    pid: int
    device: str
    state: str
    step: int
    age: Finite  # seconds since it last wrote
    memory: int  # bytes it holds on its device
    collectives: int = 0  # that it took part in
    # In all of them. The others wait for the rank with the fewest seconds; the difference is the skew.
    collective_seconds: Finite = 0.0


class ModelState(Plain):
    """What a neuron knows of one model: enough for routing, `/v1/models`, `status` and metrics."""

    id: str
    status: str  # a `ModelStatus`; one that we do not know is nothing that could be asked: "unloaded"
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
    progress: Finite | None = None  # of a load, 0 to 1
    seconds_left: Finite | None = None  # of it, at the rate so far
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
    # By rank, in all of them: the others wait for the one with the least.
    collective_seconds: list[Finite] = []
    steps: int = 0
    created: int = 0  # Unix time of the checkpoint
    load_seconds: Finite | None = None  # that its last load took, from the start of its processes
    adapters: list[str] = []  # names; each is asked for as `ID:NAME`
    completion: bool = True  # it writes text
    embedding: bool = False  # it turns texts into vectors
    rerank: bool = False  # it scores documents for a query
    max_sequences: int = 0  # that it computes at once
    request_seconds: Finite = 0.0  # that a request takes from its beginning, smoothed; 0: not measured yet
    prefill_rate: Finite = 0.0  # tokens of prompts a second, lately at best; 0: not measured yet
    evictions: int = 0  # times that it left for another model
    bytes_parked: int = 0  # of its weights, in the host's memory, from where a load brings them back
    wakes: int = 0  # loads from there
    wake_seconds: Finite | None = None  # that the last one took
    keep_alive: Finite | None = None  # seconds without a request after which it is unloaded; None: never
    drained: bool = False  # it takes nothing new here until a `Resume`
    max_output: int = 0  # tokens of one answer, whatever a request wants; 0: what the context leaves
    adapters_loaded: list[str] = []  # names of those that are in memory now
    bytes_to_pull: int | None = None  # its files are not here: so much is to come; 0: nobody knows yet
    drafted: int = 0  # tokens that were guessed, since the load
    accepted: int = 0  # of these, that were right
    retired: bool = False  # it is no longer served here: what it has begun ends, then it is gone

    def __post_init__(self) -> None:
        take_word(self, "status", _STATUSES, "unloaded")
