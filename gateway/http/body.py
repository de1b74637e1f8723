"""Reading the bodies of requests: no larger, no slower and no more at once than they may be."""

from __future__ import annotations

import asyncio
from typing import Any

import falcon
import falcon.asgi

from gateway.refusals import shown

DISCARD_SECONDS = 10.0
CHUNK = 1 << 16  # bytes

HELD = "cortex.body"  # in a request's ASGI scope: bytes of its body that are held


class Bodies:
    """All bodies of one process.

    Args:
        limit: bytes of one.
        seconds: that one may take to arrive.
        memory: bytes of all that are held at once, each until its request is over.
    """

    def __init__(self, limit: int, seconds: float, memory: int) -> None:
        self._limit, self._seconds, self._memory = limit, seconds, memory
        self._held = 0

    async def read(self, req: falcon.asgi.Request) -> bytearray:
        """The whole body of `req`. Whoever serves it calls `release` in the end.

        Raises:
            HTTPUnsupportedMediaType: it is compressed, or does not say that it is JSON.
            HTTPContentTooLarge: it is longer than may be, whether or not it said so.
            HTTPServiceUnavailable: too much is held already.
            HTTPError: 408, it took too long.
        """
        try:
            _check_headers(req)
            async with asyncio.timeout(self._seconds):
                return await self._read(req)
        except TimeoutError:
            text = f"the body took longer than {self._seconds:g} seconds"
            raise falcon.HTTPError(falcon.HTTP_408, description=text) from None
        except falcon.HTTPError:
            self.release(req.scope)
            await _discard(req, self._limit)
            raise

    def release(self, scope: dict[str, Any]) -> None:
        """The request is over, and nothing of its body is held any more."""
        self._held -= scope.pop(HELD, 0)

    async def _read(self, req: falcon.asgi.Request) -> bytearray:
        body = bytearray()
        length = req.content_length
        try:
            while length is None or length <= self._limit:
                chunk = await req.stream.read(CHUNK)
                if not chunk:
                    if length is not None and len(body) < length:  # gunicorn has its own time for each part
                        raise TimeoutError
                    return body
                self._hold(req.scope, len(chunk))
                body += chunk
                if len(body) > self._limit:
                    break
            raise falcon.HTTPContentTooLarge(description=f"the body is larger than {self._limit} bytes")
        except falcon.HTTPError:
            body.clear()  # the error holds this frame
            raise

    def _hold(self, scope: dict[str, Any], size: int) -> None:
        if self._held + size > self._memory:
            raise falcon.HTTPServiceUnavailable(
                description=f"requests in progress fill the {self._memory} bytes that there are for bodies",
                retry_after=1,
            )
        self._held += size
        scope[HELD] = scope.get(HELD, 0) + size


def _check_headers(req: falcon.asgi.Request) -> None:
    if not _is_json(req.content_type):
        given = "nothing" if req.content_type is None else shown(req.content_type)
        raise falcon.HTTPUnsupportedMediaType(
            description=f"content-type: a body is sent as application/json here, and this one as {given}"
        )
    encoding = req.get_header("content-encoding") or "identity"
    if encoding.strip().lower() != "identity":
        raise falcon.HTTPUnsupportedMediaType(
            description=f"content-encoding: {shown(encoding)} is not supported; send the body as it is"
        )


def _is_json(content_type: str | None) -> bool:
    """Whether a browser asks before it sends such a body for a page of somebody else's."""
    if content_type == "application/json":
        return True
    kind = (content_type or "").partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


async def _discard(req: falcon.asgi.Request, most: int) -> None:
    """Take some of what still comes: a client that is busy sending would not see the answer."""
    try:
        async with asyncio.timeout(DISCARD_SECONDS):
            while most > 0 and (chunk := await req.stream.read(CHUNK)):
                most -= len(chunk)
    except TimeoutError:
        return
