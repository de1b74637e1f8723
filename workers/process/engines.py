"""Which engine a rank runs."""

from __future__ import annotations

import msgspec

from ipc.heartbeat import HeartbeatPage
from ipc.sealed import unseal
from ipc.worker_messages import WorkerSpec
from workers.step.engine import Engine


def make_engine(spec: WorkerSpec, heartbeat: HeartbeatPage) -> Engine:
    """The engine that `spec` names. Imports are lazy: a simulated one starts without torch and families."""
    if spec.engine == "simulated":
        from workers.process.simulated import SimulatedEngine

        return SimulatedEngine(spec, heartbeat)
    from workers.checkpoints.adapter import AdapterCard
    from workers.checkpoints.card import ModelCard
    from workers.execution.encoder_runner import EncoderRunner
    from workers.execution.model_runner import ModelRunner

    card, adapters = msgspec.msgpack.decode(unseal(spec.card_fd), type=tuple[ModelCard, list[AdapterCard]])
    return EncoderRunner(spec, card) if card.config.bidirectional else ModelRunner(spec, card, adapters)
