"""What a rank reports, from whatever thread: its ring takes one writer at a time."""

from __future__ import annotations

from threading import Lock

import msgspec

from ipc.ring import Ring
from ipc.worker_messages import AdapterReport, PoolReport

WRITE_TIMEOUT = 60.0  # seconds of back-pressure after which the reader of a ring counts as lost

encode = msgspec.msgpack.Encoder().encode


class Outbox:
    """The ring of a rank's reports."""

    def __init__(self, ring: Ring) -> None:
        self._ring, self._lock = ring, Lock()

    def write(self, record: bytes, timeout: float) -> None:
        with self._lock:
            self._ring.write(record, timeout)

    def say(self, report: AdapterReport | PoolReport) -> None:
        """Report, from the thread that read an adapter or any other."""
        self.write(encode(report), WRITE_TIMEOUT)
