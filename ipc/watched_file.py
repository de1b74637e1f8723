"""A configuration file that is read again when it changes, and whose last good state stays in force."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from ipc.settings import ConfigError

logger = logging.getLogger("ipc.watched_file")

LOOK_SECONDS = 1.0  # between two looks

T = TypeVar("T")
State = (
    tuple[int, ...] | None
)  # of a file: which one it is, its size, when it was written; None: none is there


class WatchedFile(Generic[T]):
    """What a file says, as long as it can be read, and else what it said last.

    A file that is being written is not whole: it is read once two looks find it in the same state.

    Args:
        path: the file.
        read: makes a value of it, or raises a `ConfigError`.
        value: what it said when it was read first.

    Attributes:
        value: what counts.
        error: why that is not what the file says now; None where it is.
    """

    def __init__(self, path: str | Path, read: Callable[[Path], T], value: T) -> None:
        self.path = Path(path)
        self.value = value
        self.error: ConfigError | None = None
        self._read = read
        self._seen = self._state()  # by the last look
        self._known: State = ()  # when it was read last; it may have changed since `value` was

    @property
    def is_current(self) -> bool:
        """Whether it is as it was when it was read last."""
        return self._state() == self._known

    def look(self) -> bool:
        """Read it if it changed and is not being written any more; whether it says something else now."""
        before, self._seen = self._seen, self._state()
        if self._seen == self._known or self._seen != before:
            return False
        return self.read()

    def read(self) -> bool:
        """Read it, whether it changed or not; whether it says something else now."""
        state = self._state()
        try:
            value = self._read(self.path)
        except ConfigError as error:
            if str(error) != str(self.error):
                logger.error("what the file said before stays in force reason=%s", error)
            self._known, self.error = state, error
            return False
        if self._state() != state:  # it was written meanwhile: a later look reads it
            return False
        if self.error is not None:
            logger.info("the file can be read again path=%s", self.path)
        self._known, self.error = state, None
        changed, self.value = value != self.value, value
        return changed

    def _state(self) -> State:
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns
