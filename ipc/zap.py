"""Who may connect: the answering side of ZAP (ZeroMQ's RFC 27) for CURVE keys.

libzmq asks over an in-process socket for each connection; nobody gets in while nobody answers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import zmq
from zmq.utils import z85

from ipc.sockets import NOBLOCK, NOBLOCK_MORE, Pump

logger = logging.getLogger("ipc.zap")

TELL_SECONDS = 1.0  # between two lines: whoever is let in by nobody may come as often as he likes


class Gatekeeper:
    """Lets in exactly the holders of the `allowed` public keys (Z85), on all sockets of `context`.

    Attributes:
        refused: connections, so far.
    """

    def __init__(self, context: zmq.Context, allowed: Sequence[str]) -> None:
        self._allowed = frozenset(z85.decode(key) for key in allowed)
        self.refused = 0
        self._told, self._tell_at = 0, 0.0  # of these, and when the next one may be told (monotonic)
        self._socket = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind("inproc://zeromq.zap.01")
        self._pump = Pump(self._socket, self._answer)

    def _answer(self, frames: list[bytes]) -> None:
        version, request_id, _domain, address, _identity, mechanism, *credentials = frames
        allowed = mechanism == b"CURVE" and len(credentials) == 1 and credentials[0] in self._allowed
        if allowed:
            status, text, user = b"200", b"OK", z85.encode(credentials[0])
        else:
            status, text, user = b"400", b"unknown key", b""
            key = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" and credentials else "none"
            self._refuse(address.decode(), key)
        for frame in (version, request_id, status, text, user):
            self._socket.send(frame, NOBLOCK_MORE)
        self._socket.send(b"", NOBLOCK)
        self._pump.check_soon()

    def _refuse(self, address: str, key: str) -> None:
        self.refused += 1
        if (now := time.monotonic()) >= self._tell_at:
            others = self.refused - self._told - 1
            logger.warning("connection refused address=%s key=%s others=%d", address, key, others)
            self._told, self._tell_at = self.refused, now + TELL_SECONDS

    def close(self) -> None:
        self._pump.close()
