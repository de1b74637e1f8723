"""How a neuron and its text processes speak: two byte strings at a time, each behind its length."""

from __future__ import annotations

import socket
import struct

LENGTHS = struct.Struct("<QQ")


def lengths(first: bytes, second: bytes | memoryview) -> bytes:
    """What is sent before the two."""
    return LENGTHS.pack(len(first), len(second))


def receive(connection: socket.socket) -> tuple[bytearray, bytearray] | None:
    """The next two, once they are there; None: the other end is gone."""
    sizes = _exactly(connection, LENGTHS.size)
    if sizes is None:
        return None
    first, second = (_exactly(connection, size) for size in LENGTHS.unpack(sizes))
    return None if first is None or second is None else (first, second)


def send(connection: socket.socket, first: bytes, second: bytes) -> None:
    """Send two; OSError when the other end is gone."""
    connection.sendall(lengths(first, second) + first)
    connection.sendall(second)


def _exactly(connection: socket.socket, size: int) -> bytearray | None:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        if not (count := connection.recv_into(view)):
            return None
        view = view[count:]
    return data
