"""One text process for each model with a large tokenizer: it has read it, and prepares small requests."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable

from neuron.preparation.jobs import Job
from neuron.preparation.pool import IDLE_MEMORY, JOB_SECONDS, ProcessPool
from neuron.preparation.process import TextProcess

IDLE_SECONDS = 3600.0  # a model that was not asked for so long takes a second the next time
MOST_WAITING = 1 << 14  # small requests: what is too much for a model, its own queue says


class Readers:
    """Has small requests prepared, a millisecond each, by the process that knows their model: one after the
    other, and never behind those of another model, or behind large ones.

    A process ends once it has nothing to do and nobody keeps its `ModelText`.

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
        # by `ModelText`; who was asked last is last
        self._pools: OrderedDict[bytes, ProcessPool] = OrderedDict()
        self._kept: Counter[bytes] = Counter()  # by `ModelText`: models that have it
        self._closing: set[asyncio.Task[None]] = set()

    def keep(self, text: bytes) -> None:
        """A model has this `ModelText`, until `forget`: a process that has read it stays."""
        self._kept[text] += 1

    def forget(self, text: bytes) -> None:
        """That model has it no more."""
        self._kept[text] -= 1
        if not self._kept[text]:
            del self._kept[text]
        self._make_room()

    async def run(self, account: str, job: Job, body: bytes | memoryview) -> bytes:
        """The result of `job`; see `ProcessPool.run`."""
        if job.text not in self._pools:
            self._pools[job.text] = ProcessPool(
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

    @property
    def spare_memory(self) -> int:
        """Bytes of those that have nothing to do."""
        return sum(pool.spare_memory for pool in self._pools.values())

    async def end_idle(self, size: int) -> int:
        """End idle ones, those of models that were asked for the longest ago first, until `size` bytes come
        free; how many do."""
        freed = 0
        for pool in list(self._pools.values()):
            freed += await pool.end_idle(size - freed)
        return freed

    async def close(self) -> None:
        """End all processes."""
        await asyncio.gather(*(pool.close() for pool in self._pools.values()), *self._closing)

    def _make_room(self) -> None:
        for text, pool in list(self._pools.items()):
            newest = text == next(reversed(self._pools))
            wanted = self._kept[text] and (newest or (pool.memory and self.memory <= self._most))
            if not wanted and not pool.is_busy:
                del self._pools[text]
                task = asyncio.create_task(pool.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
