"""A ring with one writer and several readers: every reader gets every record, in order.

The writer's room is what the slowest reader is done with, so a reader that stops holds everybody up; whoever
owns the processes watches for that (`RingFull`, the step deadline).
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from ipc.memory import SharedMemory
from ipc.records import Reader, Writer, attach_memory, create_memory
from ipc.worker_messages import BroadcastHandle


class BroadcastRing:
    """Made by the supervisor, which uses no end of it; attached by the writer and by each reader.

    An end starts at the first record, so a process attaches once, and nobody can take its place later.
    """

    def __init__(
        self, memory: SharedMemory, handle: BroadcastHandle, end: Writer | Reader | None = None
    ) -> None:
        self._memory = memory
        self._end = end
        self.handle = handle

    @classmethod
    def create(cls, readers: int, capacity: int = 1 << 20) -> BroadcastRing:
        """A new ring of `capacity` bytes (a power of two) for `readers` readers.

        Raises:
            OSError: a descriptor cannot be had; none stays behind.
        """
        with ExitStack() as undo:
            memory = create_memory("cortex-broadcast", capacity, readers)
            undo.callback(memory.close)
            fds = []
            for _ in range(readers + 1):
                fds.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
                undo.callback(os.close, fds[-1])
            undo.pop_all()
        return cls(memory, BroadcastHandle(memory_fd=memory.fd, data_fds=fds[:-1], space_fd=fds[-1]))

    @classmethod
    def attach_writer(cls, handle: BroadcastHandle) -> BroadcastRing:
        """The writing end, in a process that now owns these descriptors."""
        memory = attach_memory(handle.memory_fd, len(handle.data_fds))
        return cls(memory, handle, Writer(memory, handle.data_fds, handle.space_fd))

    @classmethod
    def attach_reader(cls, handle: BroadcastHandle, index: int) -> BroadcastRing:
        """The end of reader `index`, in a process that now owns these descriptors."""
        readers = len(handle.data_fds)
        memory = attach_memory(handle.memory_fd, readers)
        return cls(memory, handle, Reader(memory, index, readers, handle.data_fds[index], handle.space_fd))

    @property
    def fds(self) -> tuple[int, ...]:
        """Descriptors that every other process must inherit."""
        return (self.handle.memory_fd, *self.handle.data_fds, self.handle.space_fd)

    def write(self, record: bytes, timeout: float) -> None:
        """Publish a record to every reader, waiting up to `timeout` seconds for room; then `RingFull`."""
        if not isinstance(self._end, Writer):
            raise TypeError("this end of the broadcast ring does not write")
        self._end.write(record, timeout)

    def read(self, timeout: float | None) -> bytes | None:
        """The next record, waiting up to `timeout` seconds (None: for ever); None when there was none."""
        if not isinstance(self._end, Reader):
            raise TypeError("this end of the broadcast ring does not read")
        return self._end.read(timeout)

    def close(self) -> None:
        """Give up memory and descriptors. Calling it again does nothing."""
        if self._memory.fd >= 0:
            self._memory.close()
            for fd in (*self.handle.data_fds, self.handle.space_fd):
                os.close(fd)
