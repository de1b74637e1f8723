"""Server-sent events: a streamed answer as bytes, never silent for longer than a second."""

from __future__ import annotations

import logging
from functools import partial
from time import monotonic

from gateway.dialects import Renderer
from gateway.dialects.event_streams import KEEP_ALIVE_SECONDS
from gateway.dialects.rendering import rendered
from gateway.fleet.exchange import Exchange
from gateway.refusals import BUG
from ipc.errors import Code, CortexError
from ipc.messages.replies import Delta, Finished, Progress, Reply, Started

logger = logging.getLogger("gateway.http.sse")


class EventStream:
    """An asynchronous iterator of bytes. All that came since the last write is one write.

    While there is nothing else it has the dialect tell the client that we live, and what it waits for.

    Args:
        early: replies that have been taken already.
        dear: some may be dear to write, for it tells of each token.
    """

    def __init__(
        self, exchange: Exchange, answer: Renderer, early: list[Reply], *, dear: bool = False
    ) -> None:
        self._exchange, self._answer = exchange, answer
        self._waiting = early  # replies to be written first
        self._silent_since = 0.0  # 0: nothing was written yet
        self._over = False
        self._dear = dear

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> bytes:
        if self._over:
            raise StopAsyncIteration
        while True:
            data = await self._next()
            if data:
                self._silent_since = monotonic()
                if self._over:
                    self._exchange.receipt.on_ready()
                return data

    async def _next(self) -> bytes:
        """What is to be written, after waiting as long as silence is allowed; b"" for tokens without text."""
        replies, self._waiting = self._waiting, []
        try:
            if not replies and self._silent_since:
                left = self._silent_since + KEEP_ALIVE_SECONDS - monotonic()
                replies = await self._exchange.take(max(left, 0.0))
            if not replies:
                return self._answer.waiting(None)
            write = partial(self._write_all, replies)
            account = self._exchange.receipt.principal.account
            written = await rendered(write, replies, account) if self._dear else write()
        except Exception as error:
            if not isinstance(error, CortexError):
                logger.exception("request failed request_id=%s", self._exchange.request_id)
                error = CortexError(Code.INTERNAL, BUG)
            self._over = True
            return self._answer.failed(error)
        return written or (b"" if self._silent_since else self._answer.waiting(None))

    def _write_all(self, replies: list[Reply]) -> bytes:
        return b"".join(map(self._write, replies))

    def _write(self, reply: Reply) -> bytes:
        kind = type(reply)
        if kind is Delta:
            return self._answer.delta(reply)
        if kind is Started:
            return self._answer.started(reply)
        if kind is Finished:
            self._over = True
            return self._answer.finished(reply)
        return self._answer.waiting(reply) if kind is Progress else b""
