"""A body comes whole, or is refused; what was held of it is given back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import falcon
import falcon.asgi
import pytest

from gateway.access.principal import Principal
from gateway.http.body import CHUNK, HELD, Bodies


def request(*parts: bytes, length: int | None = None, account: str = "a") -> falcon.asgi.Request:
    events = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    events.append({"type": "http.request", "body": b"", "more_body": False})
    headers = [(b"content-type", b"application/json")]
    if length is not None:
        headers.append((b"content-length", b"%d" % length))

    async def receive() -> dict[str, object]:
        return events.pop(0)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/",
        "query_string": b"",
        "headers": headers,
    }
    req = falcon.asgi.Request(scope, receive)
    req.context.principal = Principal(account)
    return req


def read(bodies: Bodies, *parts: bytes, framed: bool) -> bytes:
    """What is read of a body in `parts`; afterwards nothing of it is held."""
    req = request(*parts, length=sum(map(len, parts)) if framed else None)
    try:
        return bytes(asyncio.run(bodies.read(req)))
    finally:
        bodies.release(req.scope)
        assert bodies.held == 0


SIZES = [(), (1,), (10, 20), (CHUNK - 1,), (CHUNK,), (CHUNK, 1), (CHUNK + 1,), (3, CHUNK, 3 * CHUNK)]


@pytest.mark.parametrize("framed", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_a_body_is_what_was_sent_up_to_the_limit(sizes: Sequence[int], framed: bool) -> None:
    parts = [bytes((i + 1,)) * size for i, size in enumerate(sizes)]
    size = sum(sizes)
    assert read(Bodies(size, size), *parts, framed=framed) == b"".join(parts)
    if size:
        with pytest.raises(falcon.HTTPContentTooLarge):
            read(Bodies(size - 1, size), *parts, framed=framed)
        with pytest.raises(falcon.HTTPServiceUnavailable):
            read(Bodies(size, size - 1), *parts, framed=framed)


def test_a_body_is_held_until_its_request_is_over() -> None:
    bodies = Bodies(100, 150)
    first, second = request(b"x" * 100), request(b"x" * 100, account="b")
    asyncio.run(bodies.read(first))
    assert bodies.held == 100
    with pytest.raises(falcon.HTTPServiceUnavailable) as refused:
        asyncio.run(bodies.read(second))
    assert int(refused.value.headers["Retry-After"]) >= 1
    bodies.release(second.scope)
    assert bodies.held == 100
    bodies.release(first.scope)
    bodies.release(first.scope)
    assert bodies.held == 0


def test_there_is_always_room_for_the_body_of_another_account() -> None:
    bodies, taken = Bodies(40, 160), []

    def take(account: str, size: int) -> bool:
        req = request(b"x" * size, account=account)
        try:
            asyncio.run(bodies.read(req))
        except falcon.HTTPServiceUnavailable:
            assert HELD not in req.scope
            return False
        taken.append(req)
        return True

    assert [take("many", 20) for _ in range(5)] == [True] * 4 + [False]  # as much as is left then
    assert take("few", 40)
    assert not take("few", 1)
    assert take("other", 40)  # one body may have all that is left
    assert not take("last", 1)
    for req in taken[:2]:
        bodies.release(req.scope)
    assert take("last", 40)
    for req in taken:
        bodies.release(req.scope)
    assert bodies.held == 0
    assert [take("many", 20) for _ in range(4)] == [True] * 4


@pytest.mark.parametrize("size", [5, 5 << 20])
def test_of_a_body_whose_sender_left_nothing_is_read_or_sent_aside(size: int) -> None:
    bodies, req = Bodies(10 << 20, 20 << 20, sends_aside=True), request(bytes(size), length=size + 1)
    with pytest.raises(falcon.HTTPError, match="408"):
        asyncio.run(bodies.read(req))
    assert bodies.held == 0
