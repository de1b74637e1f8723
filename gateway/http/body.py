"""Reading bodies: no larger, and no more at once, than they may be. `connections` keeps the time, and takes
what still comes of one that is refused.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import falcon
import falcon.asgi

from gateway.http.aside import SentAside, is_dear
from gateway.http.connections import CUT
from gateway.refusals import Refusal, shown

CHUNK = 1 << 16  # bytes

HELD = "cortex.body"  # in a request's ASGI scope: whose it is, and bytes of its body that are held


class Bodies:
    """All bodies of one process. There is always room for another account's: none holds more than is left,
    but for one body.

    Args:
        limit: bytes of one.
        memory: bytes of all that are held at once, each until its request is over.
        sends_aside: those that are dear to read are for another process.

    Attributes:
        held: bytes that are now.
    """

    def __init__(self, limit: int, memory: int, sends_aside: bool = False) -> None:
        self._limit, self._memory, self._sends_aside = limit, memory, sends_aside
        self.held = 0
        self._of: Counter[str] = Counter()  # bytes that are held, by account

    async def read(self, req: falcon.asgi.Request) -> bytes | bytearray:
        """The whole body of `req`. Whoever serves it calls `release` in the end.

        Raises:
            HTTPUnsupportedMediaType: it is compressed, or does not say that it is JSON.
            HTTPContentTooLarge: it is longer than may be, whether or not it said so.
            HTTPServiceUnavailable: too much is held already.
            HTTPError: 408: a part of it did not come.
            SentAside: it is dear to read.
        """
        req.scope[HELD] = req.context.principal.account, 0
        try:
            _check_headers(req)
            length = req.content_length
            if length is not None and length > self._limit:
                raise self._too_large()
            chunk = await req.stream.read(CHUNK)
            self.hold(req.scope, len(chunk))
            if len(chunk) < CHUNK and len(chunk) <= self._limit:
                _check_whole(req, len(chunk))
                return chunk
            return await self._read_on(req, chunk)
        except falcon.HTTPError:
            self.release(req.scope)
            raise

    async def _read_on(self, req: falcon.asgi.Request, chunk: bytes) -> bytearray:
        """The whole of a body that begins with `chunk`."""
        body = bytearray()
        try:
            while chunk:
                body += chunk
                if len(body) > self._limit:
                    raise self._too_large()
                chunk = await req.stream.read(CHUNK)
                self.hold(req.scope, len(chunk))
            _check_whole(req, len(body))
        except falcon.HTTPError:
            body.clear()  # the error refers to this frame
            raise
        if self._sends_aside and is_dear(body):
            raise SentAside(body)
        return body

    def _too_large(self) -> falcon.HTTPContentTooLarge:
        return falcon.HTTPContentTooLarge(description=f"the body is larger than {self._limit} bytes")

    def release(self, scope: dict[str, Any]) -> None:
        """The request is over, and nothing of its body is held any more."""
        if HELD not in scope:
            return
        account, size = scope.pop(HELD)
        self.held -= size
        self._of[account] -= size
        if not self._of[account]:
            del self._of[account]

    def hold(self, scope: dict[str, Any], size: int) -> None:
        """So many bytes more are held for a request; HTTPServiceUnavailable where there is no room."""
        account, own = scope[HELD]
        left = self._memory - self.held - size
        others = self._of[account] - own  # of the same account's requests
        if left < 0 or (others and others + own + size > left):
            there = f"of the {self._memory} bytes that there are for bodies"
            raise falcon.HTTPServiceUnavailable(
                description=f"requests in progress hold {self.held} {there}, those of this account {others}",
                retry_after=1,
            )
        self.held += size
        self._of[account] += size
        scope[HELD] = account, own + size


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


def _check_whole(req: falcon.asgi.Request, length: int) -> None:
    """See that a body is all there."""
    announced = req.content_length or 0
    if CUT in req.scope or length < announced:
        of = f" of {announced}" if announced else ""
        ended = f"the body ended after {length}{of} bytes or paused"
        refusal = req.scope.get(CUT) or Refusal.of_http(408, ended)
        raise falcon.HTTPError(falcon.code_to_http_status(refusal.status), description=refusal.message)
