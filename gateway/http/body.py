"""Reading a request's body without letting it grow past its limit."""

from __future__ import annotations

import asyncio

import falcon
import falcon.asgi

from gateway.http.errors import shown

DISCARD_SECONDS = 10.0


async def read(req: falcon.asgi.Request, limit: int) -> bytes:
    """The whole body.

    Args:
        limit: bytes.

    Raises:
        HTTPContentTooLarge: it is longer, whether or not it said so.
        HTTPUnsupportedMediaType: it is compressed, or does not say that it is JSON.
    """
    if not _is_json(req.content_type):
        await _discard(req, limit)
        given = "nothing" if req.content_type is None else shown(req.content_type)
        raise falcon.HTTPUnsupportedMediaType(
            description=f"content-type: a body is sent as application/json here, and this one as {given}"
        )
    encoding = req.get_header("content-encoding") or "identity"
    if encoding.strip().lower() != "identity":
        await _discard(req, limit)
        raise falcon.HTTPUnsupportedMediaType(
            description=f"content-encoding: {shown(encoding)} is not supported; send the body as it is"
        )
    length = req.content_length
    if length is None or length <= limit:
        body = await req.stream.read(limit + 1)
        if len(body) <= limit:
            return body
    await _discard(req, limit)
    raise falcon.HTTPContentTooLarge(description=f"the body is larger than {limit} bytes")


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
            while most > 0 and (chunk := await req.stream.read(65536)):
                most -= len(chunk)
    except TimeoutError:
        return
