"""A ring between two processes: one writes records, the other reads them, in order, each exactly once.

    parent                                       child
    ring = Ring.create()
    Popen(..., pass_fds=ring.fds)  ── handle ──▶ ring = Ring.attach(handle)
    ring.write(record, timeout)                  ring.read(timeout)

In an event loop, the reader registers `fileno()`, and its callback is

    while True:
        for record in ring.read_all(): ...
        if not ring.arm():
            break

(call it once at the start, too: an unarmed ring wakes nobody). A writer there registers `room_fileno()` in
the same way, and arms it, with `arm_room`, when a record had no room.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from ipc.memory import SharedMemory
from ipc.records import WRITTEN, Reader, RingBroken, RingFull, Writer, attach_memory, create_memory, read_word
from ipc.worker_messages import RingHandle

__all__ = ["Ring", "RingBroken", "RingFull"]


class Ring:
    """Both ends of a one-writer, one-reader ring; a process uses one of them, and each end has one user.

    An end starts at the first record, so a process attaches once, and nobody can take its place later.
    """

    def __init__(self, memory: SharedMemory, data_fd: int, space_fd: int) -> None:
        self._memory = memory
        self._data_fd, self._space_fd = data_fd, space_fd
        self._writer = Writer(memory, [data_fd], space_fd)
        self._reader = Reader(memory, 0, 1, data_fd, space_fd)
        self.handle = RingHandle(memory_fd=memory.fd, data_fd=data_fd, space_fd=space_fd)
        # The ends' own methods, documented there: `Writer`, `Reader`.
        self.write, self.try_write, self.ring = self._writer.write, self._writer.try_write, self._writer.ring
        self.arm_room, self.drain_room = self._writer.arm_room, self._writer.drain_room
        self.read, self.try_read = self._reader.read, self._reader.try_read
        self.read_all, self.arm = self._reader.read_all, self._reader.arm
        self.largest = self._writer.largest  # bytes of a record

    @classmethod
    def create(cls, capacity: int = 1 << 20) -> Ring:
        """A new ring of `capacity` bytes (a power of two; a record takes its length plus 8 to 15 bytes).

        Raises:
            OSError: a descriptor cannot be had; none stays behind.
        """
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        with ExitStack() as undo:
            memory = create_memory("cortex-ring", capacity, 1)
            undo.callback(memory.close)
            data_fd = os.eventfd(0, flags)
            undo.callback(os.close, data_fd)
            space_fd = os.eventfd(0, flags)
            undo.pop_all()
        return cls(memory, data_fd, space_fd)

    @classmethod
    def attach(cls, handle: RingHandle) -> Ring:
        """The same ring in another process, which now owns these descriptors."""
        return cls(attach_memory(handle.memory_fd, 1), handle.data_fd, handle.space_fd)

    @property
    def fds(self) -> tuple[int, ...]:
        """Descriptors that the other process must inherit."""
        return (self.handle.memory_fd, self._data_fd, self._space_fd)

    def fileno(self) -> int:
        """The eventfd that becomes readable after `arm`, when a record comes."""
        return self._data_fd

    def room_fileno(self) -> int:
        """The eventfd that becomes readable after `arm_room`, when there is room again."""
        return self._space_fd

    @property
    def unread(self) -> int:
        """Bytes written and not read yet, headers included; either side may ask."""
        return self._memory.words[WRITTEN] - self._memory.words[read_word(0)]

    def close(self) -> None:
        """Give up memory and descriptors. Calling it again does nothing."""
        if self._memory.fd >= 0:
            self._memory.close()
            os.close(self._data_fd)
            os.close(self._space_fd)
