"""Shared memory without a name: a sealed memfd, mapped, seen as bytes and as aligned 8-byte words.

Nothing here appears in /dev/shm: the memory is gone when the last process that holds it is gone.

Words are read and written with one aligned 8-byte load or store (CPython's memoryview of format "Q" copies
exactly eight bytes with one move), so no process ever sees half of one. On order:

* x86-64 keeps stores in order and loads in order; only a load may overtake an earlier store.
* Other machines may reorder more.

`make_fence` makes both questions go away. CPython offers no fence, but releasing and then taking an
uncontended lock is an atomic release followed by an atomic acquire: locked instructions on x86-64, and on Arm
a pair that no access may cross (a release is ordered before every later acquire). It costs about 70 ns.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from collections.abc import Callable

WORD = 8  # bytes
LINE_WORDS = 16  # 128 bytes: what one process writes shares no pair of cache lines with what another writes


def make_fence() -> Callable[[], None]:
    """A function that orders every access before its call ahead of every access after it; for one thread."""
    lock = threading.Lock()
    lock.acquire()
    release, acquire = lock.release, lock.acquire

    def fence() -> None:
        release()
        acquire()

    return fence


class SharedMemory:
    """A memfd and its mapping.

    Attributes:
        fd: the descriptor, owned by this object.
        map: the mapping; slices of it are bytes.
        words: the same memory as unsigned 8-byte words.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.map = mmap.mmap(fd, os.fstat(fd).st_size)
        self.words = memoryview(self.map).cast("Q")

    @classmethod
    def create(cls, name: str, size: int) -> SharedMemory:
        """Allocate `size` bytes of zeros (a multiple of 8). `name` only shows in /proc/PID/maps.

        The size is sealed: a peer that shrank the file would kill us with SIGBUS. So would memory that is not
        there once it is written: OSError where the kernel has not so much.
        """
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
            return cls(fd)
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Unmap and close. Calling it again does nothing."""
        if self.fd >= 0:
            self.words.release()
            self.map.close()
            os.close(self.fd)
            self.fd = -1
