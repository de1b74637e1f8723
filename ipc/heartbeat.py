"""The heartbeat page: what each rank is doing, readable at any time without asking it.

Each rank has two copies of its beat and a counter in front of them. It writes the copy that nobody looks at,
then publishes it with one aligned store of the counter (copy = counter % 2). A reader that finds the counter
unchanged after its copy knows that the writer had not begun to write over it. Unlike a lock, this leaves the
last whole beat readable when a rank is stopped or killed halfway through the next.
"""

from __future__ import annotations

import os
import struct
import time
from typing import NamedTuple

from ipc.memory import LINE_WORDS, WORD, SharedMemory, make_fence

STATES = ("starting", "loading", "ready", "stepping", "collective", "stopping")
NUMBERS = {state: number for number, state in enumerate(STATES)}
BEAT = struct.Struct("=QQQQQQQd")  # the fields of `Beat`, the time in ns; it fills a line
SLOT_WORDS = 3 * LINE_WORDS  # the counter's line, then a line for each copy


class Beat(NamedTuple):
    """What a rank said last."""

    state: str  # one of STATES; "ready" is idle, waiting for work; "collective" waits for the other ranks
    epoch: int
    step: int
    time: float  # seconds of the monotonic clock, which all processes of a host share; 0.0: it never beat
    memory: int  # bytes held on its device
    pid: int
    collectives: int  # that it took part in
    collective_seconds: float  # in all of them: the rank with the fewest is the one the others wait for


class HeartbeatPage:
    """One slot for each rank of a group. A slot has one writer, the rank; anybody may read.

    Who forks attaches in the child: a beat has the process id of whoever made this object.
    """

    def __init__(self, memory: SharedMemory, ranks: int) -> None:
        self._memory = memory
        self._fence = make_fence()
        self._epoch = [0] * ranks
        self._held = [0] * ranks
        self._collectives = [(0, 0.0)] * ranks
        self._pid = os.getpid()

    @classmethod
    def create(cls, ranks: int) -> HeartbeatPage:
        """A new page for so many ranks, of which none has beaten yet."""
        return cls(SharedMemory.create("cortex-heartbeat", ranks * SLOT_WORDS * WORD), ranks)

    @classmethod
    def attach(cls, fd: int, ranks: int) -> HeartbeatPage:
        """The same page in another process, which now owns `fd`."""
        memory = SharedMemory(fd)
        if len(memory.words) < ranks * SLOT_WORDS:
            raise ValueError(f"descriptor {fd} holds no heartbeat page of {ranks} ranks")
        return cls(memory, ranks)

    @property
    def fd(self) -> int:
        """Its descriptor, for a child to inherit."""
        return self._memory.fd

    def beat(
        self,
        rank: int,
        *,
        state: str,
        step: int,
        memory: int | None = None,
        epoch: int | None = None,
        collectives: tuple[int, float] | None = None,
    ) -> None:
        """Say what `rank` does now. What may be left out stays as this object said it last.

        `collectives` are how many there were, and the seconds in them.
        """
        if memory is not None:
            self._held[rank] = memory
        if epoch is not None:
            self._epoch[rank] = epoch
        if collectives is not None:
            self._collectives[rank] = collectives
        slot = rank * SLOT_WORDS
        count = self._memory.words[slot] + 1
        BEAT.pack_into(
            self._memory.map,
            (slot + LINE_WORDS * (1 + count % 2)) * WORD,
            NUMBERS[state],
            self._epoch[rank],
            step,
            time.monotonic_ns(),
            self._held[rank],
            self._pid,
            *self._collectives[rank],
        )
        self._fence()  # the copy, then the counter that shows it
        self._memory.words[slot] = count
        self._fence()  # and that before the next beat writes over the other copy

    def read(self, rank: int) -> Beat:
        """The last whole beat of `rank`, without waiting for it.

        Another try is needed only where the rank published twice during one copy of 64 bytes, so a hundred
        failures mean that something else writes there: RuntimeError.
        """
        slot = rank * SLOT_WORDS
        for _ in range(100):
            count = self._memory.words[slot]
            self._fence()
            fields = BEAT.unpack_from(self._memory.map, (slot + LINE_WORDS * (1 + count % 2)) * WORD)
            self._fence()
            if self._memory.words[slot] == count:
                state, epoch, step, nanoseconds, *others = fields
                return Beat(STATES[state], epoch, step, nanoseconds / 1e9, *others)
        raise RuntimeError(f"the heartbeat of rank {rank} changes faster than it can be read")

    def close(self) -> None:
        """Give up memory and descriptor. Calling it again does nothing."""
        self._memory.close()
