"""Limits by key, exact over all processes of a gateway.

A file of fixed records beside the store of keys holds what each key used in this minute and on this day.
Whoever looks and counts holds the file's lock for some microseconds; the kernel opens the lock of a process
that dies. Minutes and days are UTC's. A clock that jumps, either way, begins new ones: nobody is ever locked
out by it.

The tokens of a request are known at its end. So a request begins while its key has not reached its limit, and
what is under way then may pass it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import time
from pathlib import Path

import msgspec

from gateway.store.key_store import Terms

logger = logging.getLogger("gateway.access")

MINUTE, DAY = 60, 86400  # seconds
MOST = 1 << 62  # that anybody uses of anything
LOOK_SECONDS = 1.0  # after which a file that was deleted is no longer counted in
LOCK_SECONDS = 0.05  # that the loop waits for others, who hold it for microseconds, unless they are stopped

# The numbers of this minute and this day, and requests and tokens of each.
_RECORD = struct.Struct("=6q")


class Limit(msgspec.Struct, frozen=True):
    """One limit of a key, as it stands now."""

    what: str  # "requests" or "tokens"
    period: str  # "minute" or "day"
    allowed: int
    left: int
    reset: float  # seconds until all of it is there again

    def after_one(self) -> Limit:
        """What is left of it when one request more is admitted, whose tokens nobody knows yet."""
        if self.what == "tokens":
            return self
        return Limit(self.what, self.period, self.allowed, self.left - 1, self.reset)


class Limits:
    """The file at `path`, which is made when it is first needed.

    What cannot be counted is not limited: a full disk takes nobody's models away. The log says so, once.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._looked_at = 0.0  # when (monotonic)
        self._broken = False

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def admit(self, number: int, terms: Terms) -> list[Limit]:
        """Count a request of the key `number`, unless a limit forbids it: one of which nothing is left.

        Returns:
            The limits as they stood before, the minute's first; nothing where they cannot be read.
        """
        now = time.time()
        try:
            file = self._lock()
            try:
                counts = self._read(file, number, now)
                limits = _limits(counts, terms, now)
                if 0 not in [limit.left for limit in limits]:
                    minute, day, per_minute, per_day, *tokens = counts
                    self._write(file, number, (minute, day, per_minute + 1, per_day + 1, *tokens))
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)
        except OSError as error:
            self._say(error)
            return []
        self._broken = False
        return limits

    def charge(self, number: int, tokens: int) -> None:
        """Count the tokens of a request of the key `number` that has ended."""
        try:
            file = self._lock()
            try:
                *counts, per_minute, per_day = self._read(file, number, time.time())
                self._write(file, number, (*counts, per_minute + tokens, per_day + tokens))
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)
        except OSError as error:
            self._say(error)

    def _open(self, now: float) -> int:
        if self._file is not None and not os.fstat(self._file).st_nlink:  # others make another
            self.close()
        if self._file is None:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._looked_at = now
        return self._file

    def _lock(self) -> int:
        """The file, locked: unless a process that holds the lock was stopped, which nobody waits for."""
        now = time.monotonic()
        file, deadline = self._file, now + LOCK_SECONDS
        if file is None or now - self._looked_at >= LOOK_SECONDS:
            file = self._open(now)
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return file
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.0001)

    def _read(self, file: int, number: int, now: float) -> tuple[int, ...]:
        data = os.pread(file, _RECORD.size, number * _RECORD.size)
        this_minute, this_day = int(now // MINUTE), int(now // DAY)
        if len(data) < _RECORD.size:
            return this_minute, this_day, 0, 0, 0, 0
        minute, day, *counts = _RECORD.unpack(data)
        if min(counts) < 0 or max(counts) > MOST:  # that was not written here
            counts = [0, 0, 0, 0]
        requests, daily_requests, tokens, daily_tokens = counts
        if minute != this_minute:
            requests = tokens = 0
        if day != this_day:
            daily_requests = daily_tokens = 0
        return this_minute, this_day, requests, daily_requests, tokens, daily_tokens

    def _write(self, file: int, number: int, counts: tuple[int, ...]) -> None:
        os.pwrite(file, _RECORD.pack(*counts), number * _RECORD.size)

    def _say(self, error: OSError) -> None:
        if not self._broken:
            why = error.strerror or error
            logger.error("limits of keys are not held: %s cannot be used: %s", self._path, why)
        self._broken = True


def _limits(counts: tuple[int, ...], terms: Terms, now: float) -> list[Limit]:
    _, _, requests, daily_requests, tokens, daily_tokens = counts
    of_minute, of_day = MINUTE - now % MINUTE, DAY - now % DAY
    limits = []
    if (allowed := terms.requests_per_minute) is not None:
        limits.append(Limit("requests", "minute", allowed, max(allowed - requests, 0), of_minute))
    if (allowed := terms.tokens_per_minute) is not None:
        limits.append(Limit("tokens", "minute", allowed, max(allowed - tokens, 0), of_minute))
    if (allowed := terms.requests_per_day) is not None:
        limits.append(Limit("requests", "day", allowed, max(allowed - daily_requests, 0), of_day))
    if (allowed := terms.tokens_per_day) is not None:
        limits.append(Limit("tokens", "day", allowed, max(allowed - daily_tokens, 0), of_day))
    return limits
