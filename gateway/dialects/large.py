"""JSON of megabytes, written and sent in pieces.

Whoever copies all of it in one call keeps the interpreter to itself for some hundredths of a second, in
whatever thread that is, and the event loop waits. So nothing large is ever joined. Each piece goes when the
client has taken those before, and is gone then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from itertools import islice

import falcon.asgi
from msgspec import Raw

from gateway.dialects.writing import encode

Body = bytes | list[bytes]  # of an answer: where it is large, its pieces

PIECE = 64 << 10  # bytes: less is joined
MOST = 4 * PIECE  # bytes that are sent at once
BATCH = 1000  # values
_HOLE = Raw(b"\0")  # which is nowhere in JSON


class Large:
    """A list whose entries are JSON already."""

    __slots__ = ("pieces",)

    def __init__(self, entries: Iterable[bytes]) -> None:
        self.pieces = list(_gathered(_separated(entries)))

    def whole(self) -> Raw:
        """It as JSON, for whoever keeps it."""
        return Raw(b"".join(self.pieces))


def batches(values: Iterable[object]) -> Iterator[bytes]:
    """What `Large` makes a list of them of: many are one entry there."""
    values = iter(values)
    while batch := list(islice(values, BATCH)):
        yield encode(batch)[1:-1]


def pieces(value: object, around: Callable[[bytes], bytes] | None = None) -> list[bytes]:
    """`value` as JSON. Wherever a `Large` stands in it, it may be long.

    Args:
        around: is applied to the JSON around those.
    """
    found: list[Large] = []

    def leave_out(each: Large) -> Raw:
        found.append(each)
        return _HOLE

    whole = encode(value, enc_hook=leave_out)
    if around is not None:
        whole = around(whole)
    return list(_gathered(_filled(whole.split(_HOLE), found))) if found else [whole]


def written(value: object) -> Body:
    """The same, of an answer."""
    whole = pieces(value)
    return whole[0] if len(whole) == 1 else whole


def put(resp: falcon.asgi.Response, body: Body) -> None:
    """Answer with JSON. What is large leaves piece by piece, and lets others have their turn between two."""
    if isinstance(body, bytes):
        if len(body) <= MOST:
            resp.data = body
            return
        body = [body]
    length = sum(map(len, body))
    if length <= MOST:
        resp.data = b"".join(body)
        return
    resp.content_length = length
    resp.stream = _leaving(body)


async def leaving(bodies: AsyncIterable[Body]) -> AsyncIterator[bytes]:
    """A stream of what may be large, in the same way."""
    async for body in bodies:
        if isinstance(body, bytes):
            yield body
            continue
        async for piece in _leaving(list(_gathered(body))):
            yield piece


async def _leaving(body: list[bytes]) -> AsyncIterator[bytes]:
    body.reverse()
    while body:
        piece = body.pop()
        for start in range(0, len(piece), MOST):
            yield piece[start : start + MOST]
            await asyncio.sleep(0)


def _separated(entries: Iterable[bytes]) -> Iterator[bytes]:
    separator = b"["
    for entry in entries:
        yield separator
        yield entry
        separator = b","
    yield b"]" if separator == b"," else b"[]"


def _filled(around: list[bytes], found: list[Large]) -> Iterator[bytes]:
    yield around[0]
    for each, after in zip(found, around[1:], strict=True):
        yield from each.pieces
        yield after


def _gathered(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The same, where neighbours that are small are one."""
    small: list[bytes] = []
    size = 0
    for part in parts:
        if size and size + len(part) > PIECE:
            yield b"".join(small)
            small, size = [], 0
        small.append(part)
        size += len(part)
    if size:
        yield b"".join(small)
