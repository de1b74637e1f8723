"""What two gateway processes say to each other of a request that one of them answers for the other."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

LENGTH_BYTES = 4  # before each message


class Head(msgspec.Struct):
    """A request, whose body follows.

    Attributes:
        scope: of ASGI, but for what is no text.
        length: bytes of the body.
    """

    scope: dict[str, Any]
    headers: list[tuple[bytes, bytes]]
    raw_path: bytes
    query: bytes
    length: int


class Sent(msgspec.Struct, omit_defaults=True):
    """What the application sends: the beginning of an answer, or some of its body."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = []
    body: bytes = b""
    is_last: bool = False


ALIVE = Sent()  # says nothing else: something takes long


def framed(message: Head | Sent) -> bytes:
    """A message as it travels."""
    data = msgspec.msgpack.encode(message)
    return len(data).to_bytes(LENGTH_BYTES) + data


async def receive(reader: asyncio.StreamReader) -> bytes:
    """The next message, encoded; EOFError where the other side is gone."""
    length = int.from_bytes(await reader.readexactly(LENGTH_BYTES))
    return await reader.readexactly(length)
