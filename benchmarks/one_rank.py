"""A worker of one rank, whose rings are not there: what is measured calls its engine itself."""

from __future__ import annotations

from ipc.worker_messages import RingHandle, WorkerSpec


def spec_of(**given: object) -> WorkerSpec:
    """What it is started with: `given`, and what is the same in every measurement."""
    nowhere = RingHandle(memory_fd=-1, data_fd=-1, space_fd=-1)
    return WorkerSpec(
        model="benchmark",
        engine="transformer",
        epoch=1,
        rank=0,
        world_size=1,
        reports=nowhere,
        heartbeat_fd=-1,
        **given,
    )
