"""What a model needs from the neuron that it lives in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ipc.worker_messages import Ready
from neuron.config import NeuronConfig
from neuron.memory.fit import Fit

if TYPE_CHECKING:
    from neuron.models.managed import ManagedModel
    from neuron.processes.standby import Standby


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds to wait before a restart, doubling with each bad start."""

    first: float = 0.5
    longest: float = 30.0

    def seconds(self, bad_starts: int) -> float:
        return min(self.first * 2.0 ** min(bad_starts, 60), self.longest)


@dataclass(slots=True)
class House:
    """The neuron, as far as one model has to do with it."""

    config: NeuronConfig
    reserve: Callable[[ManagedModel], Awaitable[Fit]]  # may evict others; raises INSUFFICIENT_MEMORY
    correct: Callable[[ManagedModel, Sequence[Ready]], None]  # with what the ranks measured
    release: Callable[[ManagedModel], None]
    threads: Callable[[Fit], int]
    changed: Callable[[], None]  # some `ModelState` is not what it was
    backoff: Backoff = field(default_factory=Backoff)
    standby: Standby | None = None  # where transformers get their processes from, and leave them
