"""What a rank asks of an engine: the model, or its simulation, behind one small protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ipc.heartbeat import HeartbeatPage
from ipc.worker_messages import WorkerSpec
from workers.plan import StepPlan


class Engine(Protocol):
    """One rank's share of a model. Every method is called from one thread; all may raise `CortexError`."""

    def load(self, progress: Callable[[float, str], None]) -> int:
        """Load the weights and make the KV pages; tell `progress` a fraction (0 to 1) and what is done now.

        Returns:
            Bytes held on the device.
        """
        ...

    def prove(self) -> int:
        """Sum a one over all ranks through the real collective: the group works if that is its size."""
        ...

    def execute(self, plan: StepPlan) -> list[int]:
        """Run one step.

        Returns:
            The sampled token of each scheduled sequence that has no pending token left, in plan order.
        """
        ...

    def close(self) -> None:
        """Leave the group and give the device back. Called once, even after a `load` that failed."""
        ...


def make_engine(spec: WorkerSpec, heartbeat: HeartbeatPage) -> Engine:
    """The engine that `spec` names. Imports are lazy: a simulated worker starts without torch."""
    if spec.engine == "simulated":
        from workers.simulated import SimulatedEngine

        return SimulatedEngine(spec, heartbeat)
    from workers.runner import Runner

    return Runner(spec)
