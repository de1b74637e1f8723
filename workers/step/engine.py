"""What a rank asks of an engine: the model, or its simulation, behind one small protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from ipc.worker_messages import (
    AdapterReport,
    CacheGroup,
    DropAdapter,
    LoadAdapter,
    Logprobs,
    MemoryUse,
    PoolReport,
    ResizePool,
)
from workers.step.gallery import Gallery
from workers.step.plan import StepPlan


class OutOfDeviceMemory(Exception):
    """A step did not get the memory it wanted. No page and no sequence changed; states that the step reads
    may have. The next step may be a smaller one."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load came to."""

    kv_pages: int  # in the pool, the same number on every rank
    memory: MemoryUse
    caches: list[CacheGroup] = field(default_factory=list)  # none: all layers keep everything
    states: int = 0  # that there is room for, where a group has one
    whole: bool = False  # each sequence is computed in one step, and nothing of it is kept
    woken: bool = False  # its weights had been parked (`workers.weights.parking`)
    gallery: Gallery | None = None  # for images, where the model sees
    in_flight: int = 0  # steps that may be, when the next is sent (`Engine.send`)
    host_states: int = 0  # of those that leave the device, for which there is room in the host's memory
    together: int = 0  # tokens of an image that see each other, where there are such (`PlacedImage`)
    resizable: bool = False  # whether the pool may shrink and grow (`Engine.resize`)


@dataclass(slots=True)
class Extra:
    """What a step brought for one sequence besides its token."""

    finish: Literal["", "stop", "error"] = ""  # "stop": its grammar is complete; "error": it has no token
    code: str = ""  # of `ipc.errors.Code`, for "error"
    message: str = ""
    logprobs: Logprobs | None = None
    prompt_logprobs: list[Logprobs] = field(default_factory=list)
    embedding: bytes = b""  # float32, little-endian; the sequence has no token and is done


@dataclass(slots=True)
class StepResult:
    """What a step brought for each sequence that has no pending token left, in the order of the plan: one
    token, or of drafts as many as `workers.step.plan.verified` keeps.

    Only rank 0 samples: on the others it is empty, and the tokens come with a later plan.
    """

    tokens: list[int]  # -1 where there is none
    extras: dict[int, Extra] = field(default_factory=dict)  # by index in `tokens`, where there is more
    looked: int = 0  # multiplications that it took to see images, for its own tokens or those of a later step
    seen: bool = False  # the image that it was to look at is seen
    drafts: list[int] = field(default_factory=list)  # that it made itself (`workers.step.plan.UNKNOWN`)


class Sent(Protocol):
    """A step on its way."""

    ahead: bool  # the next step can be sent before `result` is asked for

    def result(self) -> StepResult:
        """Wait for it, and for nothing that was sent later. Called once, in the order of the steps."""
        ...


class Engine(Protocol):
    """One rank's share of a model. Every method is called from one thread; all may raise `CortexError`."""

    def load(self, progress: Callable[[float, str], None]) -> Loaded:
        """Load the weights and make the KV pages; tell `progress` a fraction and what is done now."""
        ...

    def prove(self) -> int:
        """Sum a one over all ranks through the real collective: the group works if that is its size."""
        ...

    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step.

        Raises:
            OutOfDeviceMemory: slots and pages are as the plan says, and nothing of `scheduled` counts as
                computed, nor of plans that were sent after it. Only a rank that is alone in its group raises
                it: the others of a larger one wait in a collective that this rank will not come to, so there
                any other error is raised, and the group ends. It does not come to that as long as the most
                that a step takes was left free.
        """
        ...

    def send(self, plan: StepPlan) -> Sent:
        """Begin a step, and return when the device knows of it; asked where `Loaded.in_flight` is not 0.

        Raises:
            OutOfDeviceMemory: as `execute` does; of the steps before nothing is lost.
        """
        ...

    def adapt(self, order: LoadAdapter | DropAdapter, tell: Callable[[AdapterReport], None]) -> None:
        """Begin to read an adapter, while steps go on, or give its memory back.

        Args:
            tell: hears once, in whatever thread, how that ended. One that cannot be read is no error here.
        """
        ...

    def resize(self, order: ResizePool) -> PoolReport:
        """Have memory for the first `order.kept` pages; asked where the pool is `Loaded.resizable`."""
        ...

    def collectives(self) -> tuple[int, float]:
        """How many this rank took part in, and its seconds in all of them (`workers.parallel.RankGroup`)."""
        ...

    def close(self) -> None:
        """Leave the group and give the device back. Called once, even after a `load` that failed."""
        ...
