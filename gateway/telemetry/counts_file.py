"""The file that one process keeps counts in: there is room for all of it before it is mapped.

prometheus-client maps files with holes, and where a disk has no room for what is written into a hole, that
ends the process (SIGBUS). Here, where there is none for a file, or for more of it, some counts stand in
memory from then on, where no other process sees them: metrics are missing or stand still, and no answer is
lost.
"""

from __future__ import annotations

import builtins
import io
import logging
import os
from contextlib import suppress
from functools import cache
from typing import IO, Any

from prometheus_client import mmap_dict

logger = logging.getLogger("gateway.telemetry.counts_file")


class CountsFile(io.FileIO):
    """As prometheus-client uses one: it asks for its size, gives it a larger one, and maps it."""

    def __init__(self, path: str) -> None:
        self._in_memory = False
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            _say(error.strerror)
            path, fd = os.devnull, os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._path = path
        super().__init__(fd, "r+")

    def fileno(self) -> int:
        """What is to be mapped; -1: memory."""
        return -1 if self._in_memory else super().fileno()

    def truncate(self, size: int | None = None) -> int:
        """Make it larger, or what is mapped from now on memory."""
        assert size is not None
        if self._in_memory or self._path == os.devnull:
            self._in_memory = True
            return size
        try:
            os.posix_fallocate(self.fileno(), 0, size)
        except OSError as error:
            if not any(os.pread(self.fileno(), 8, 0)):  # nobody can read one that has not begun
                with suppress(OSError):
                    os.unlink(self._path)
            self._in_memory = True
            _say(error.strerror)
        return size


def use() -> None:
    """Have prometheus-client keep its counts in such files, in this process."""
    mmap_dict.open = _open


def _open(path: str, mode: str) -> IO[Any] | CountsFile:
    return CountsFile(path) if mode == "a+b" else builtins.open(path, mode)


@cache  # one line of each reason
def _say(reason: str) -> None:
    logger.warning("no room for more counts of this process, which its metrics will lack reason=%s", reason)
