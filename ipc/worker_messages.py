"""The vocabulary between a supervisor and the ranks that it started; it travels in shared-memory rings.

The supervisor writes `Command`s into rank 0's command ring; every rank writes `Report`s into its own token
ring; rank 0 writes plans for the others into the plan ring (`workers/plan.py` holds those: no other process
reads them). All are msgpack, array-like where they are sent each step.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ipc.messages import Plain

PAGE_SIZE = 32  # tokens in one page of a KV pool


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


class FailurePlan(Plain):
    """What a simulated engine does wrong, and when. Steps count from 1; None is never."""

    rank: int = 0
    fail_load: str | None = None  # refuse to load, with this message
    die_at_step: int | None = None  # SIGKILL itself
    hang_at_step: int | None = None  # never come back from that step
    error_at_step: int | None = None  # raise in that step
    epochs: int | None = None  # only in the first so many epochs; None: in all


class SimulatedSpec(Plain):
    """A model without a model: it has a speed, a size and a failure plan."""

    step_seconds: float = 0.0  # per step with decode in it
    prefill_tokens_per_second: float = 0.0  # 0: no time at all
    load_seconds: float = 0.0
    memory_bytes: int = 0  # booked in the ledger, per rank
    answer: list[int] = []  # the token ids that every answer repeats, in turn
    failure: FailurePlan | None = None


class WorkerSpec(Plain, kw_only=True):
    """All that one rank needs to know, given to it once, as JSON in an inherited memfd."""

    model: str
    engine: Literal["transformer", "simulated"]
    epoch: int
    rank: int
    world_size: int
    device: str  # "cpu" or "cuda:N"
    threads: int  # CPU threads that this rank may use
    folder: str = ""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    context_length: int
    max_sequences: int
    max_step_tokens: int
    kv_pages: int  # pages in the pool of each rank
    simulated: SimulatedSpec | None = None
    supervisor_pid: int
    reports: RingHandle
    commands: RingHandle | None = None  # rank 0 only
    plans: BroadcastHandle | None = None  # groups of more than one rank
    heartbeat_fd: int
    store_fd: int | None = None  # a listening socket for the rendezvous, rank 0 only
    store_port: int = 0
    log_level: str = "INFO"


# --- supervisor to rank 0 -------------------------------------------------------------------------------


class Submit(msgspec.Struct, tag=1, array_like=True):
    """Start a sequence. Every sampling value is resolved; `stop_ids` holds the end-of-text ids too."""

    request_id: int
    prompt: bytes  # token ids, uint32, little-endian
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int  # unsigned 64 bits
    stop_ids: list[int]


class Abort(msgspec.Struct, tag=2, array_like=True):
    """End a sequence before the next step; its `SequenceReport` says "aborted", if it was still open."""

    request_id: int


class Stop(msgspec.Struct, tag=3, array_like=True):
    """End the process: the model is unloaded."""


Command = Submit | Abort | Stop


# --- a rank to its supervisor ---------------------------------------------------------------------------


class Loading(msgspec.Struct, tag=1, array_like=True):
    fraction: float
    message: str


class Ready(msgspec.Struct, tag=2, array_like=True):
    """This rank has its weights and its place in the group; `all_reduce` is the sum of ones over ranks."""

    all_reduce: int
    memory_bytes: int  # held on the device
    load_seconds: float


class SequenceReport(msgspec.Struct, array_like=True):
    """What one step did for one sequence."""

    request_id: int
    token_ids: list[int]  # new output; empty while its prompt is still being computed
    finish: Literal["", "stop", "length", "aborted", "error"]
    message: str = ""  # for "error"


class StepReport(msgspec.Struct, tag=3, array_like=True):
    """Rank 0, once a step: everything new."""

    step: int
    sequences: list[SequenceReport]
    running: int
    waiting: int
    pages_free: int


class Fatal(msgspec.Struct, tag=4, array_like=True):
    """The last words of a rank that cannot go on (code of `ipc.errors.Code`)."""

    code: str
    message: str


Report = Loading | Ready | StepReport | Fatal
