"""One text process for each model with a large tokenizer: it has read it, and prepares small requests."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from neuron.preparation.jobs import Job
from neuron.preparation.pool import IDLE_MEMORY, JOB_SECONDS, Pool
from neuron.preparation.process import TextProcess

IDLE_SECONDS = 3600.0  # a model that was not asked for so long takes a second the next time
MOST_WAITING = 1 << 14  # small requests: what is too much for a model, its own queue says


class Readers:
    """Has small requests prepared, a millisecond each, by the process that knows their model: one after the
    other, and never behind those of another model, or behind large ones.

    Args:
        start: makes a process.
        seconds: that a job may take; the first one reads the tokenizer.
        memory: bytes that the processes may hold together; those of the models that were asked for the
            longest ago make way.
    """

    def __init__(
        self, start: Callable[[], TextProcess], seconds: float = JOB_SECONDS, *, memory: int = IDLE_MEMORY
    ) -> None:
        self._start = start
        self._seconds = seconds
        self._most = memory
        self._pools: OrderedDict[bytes, Pool] = OrderedDict()  # by `ModelText`; who was asked last is last
        self._closing: set[asyncio.Task[None]] = set()

    async def run(self, account: str, job: Job, body: bytes | memoryview) -> bytes:
        """The result of `job`; see `Pool.run`."""
        if job.text not in self._pools:
            self._pools[job.text] = Pool(
                self._start, 1, self._seconds, most=MOST_WAITING, idle_seconds=IDLE_SECONDS
            )
        self._pools.move_to_end(job.text)
        try:
            return await self._pools[job.text].run(account, job, body)
        finally:
            self._make_room()

    @property
    def memory(self) -> int:
        """Bytes that the processes hold now."""
        return sum(pool.memory for pool in self._pools.values())

    async def close(self) -> None:
        """End all processes."""
        await asyncio.gather(*(pool.close() for pool in self._pools.values()), *self._closing)

    def _make_room(self) -> None:
        for text, pool in list(self._pools.items())[:-1]:
            if not pool.is_busy and (not pool.memory or self.memory > self._most):
                del self._pools[text]
                task = asyncio.create_task(pool.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
