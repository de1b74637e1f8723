"""The file of a Unix socket that somebody listens on: one listener's at a time, and gone with it.

libzmq and gunicorn remove whatever socket lies at a path before they listen there, also that of a process
which lives on and is reached by nobody from then on. libzmq leaves its own there afterwards.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress


class SocketFile:
    """That of a ZeroMQ `endpoint`; of one that has no file, nothing here does anything."""

    def __init__(self, endpoint: str) -> None:
        scheme, _, path = endpoint.partition("://")
        has_file = scheme == "ipc" and path[:1] not in ("@", "*")  # without a file; of a name that is free
        self._path = path if has_file else None
        self._mine: tuple[int, int] | None = None

    def check_free(self) -> None:
        """See that nobody has it. The exceptions are those of `check_free` below."""
        if self._path is not None:
            check_free(self._path)

    def own(self) -> None:
        """It is there now, and ours."""
        if self._path is not None:
            self._mine = _identity(self._path)

    def remove(self) -> None:
        """Remove it where it is still ours; while its socket is open, for then nobody else makes it anew."""
        if self._path is not None:
            with suppress(OSError):
                if _identity(self._path) == self._mine:
                    os.unlink(self._path)


def check_free(path: str) -> None:
    """See that nobody listens at `path`; a file that was left there by a process which is gone is no harm.

    Raises:
        OSError: EADDRINUSE where somebody does, EEXIST where something lies that is no socket, or whatever
            keeps this process from finding out.
    """
    if path.startswith("\0"):  # a name without a file, which nobody can take from who has it
        return
    with suppress(FileNotFoundError, ConnectionRefusedError), socket.socket(socket.AF_UNIX) as probe:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise OSError(errno.EEXIST, "there is a file that is no socket")
        probe.setblocking(False)
        with suppress(BlockingIOError):  # more have asked than it has taken: it is there
            probe.connect(path)
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino
