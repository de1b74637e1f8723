"""Requests whose bodies are dear to read, which another process answers, so that this one's loop goes on.

To decode a body keeps the interpreter to itself: 0.02 s for one text of 30 MB, 1.4 s for 300,000 tools. What
would hold up others for more than some milliseconds goes to a gateway process beside this one, which is
started for the first such body. It is the same application with the same configuration. Each request has a
pair of sockets: it goes one way, what the application sends comes back the other, and who hangs up ends it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable
from typing import Any, TypeVar

import falcon.asgi
import msgspec

from gateway.config import GatewayConfig
from gateway.http import errors
from gateway.http.aside_wire import ALIVE, Head, Sent, framed, receive
from gateway.refusals import Refusal
from gateway.telemetry import metrics_directory

# Of a body; to read less than this takes up to 0.02 s.
LARGE = 4 << 20  # bytes
MOST_QUOTES = 50_000  # but for those within texts, which are escaped
MOST_ENDS = 30_000  # of lists and objects, also of those within texts
MOST_COMMAS = 400_000  # also within texts: numbers are read fast

MEMORY = 8 << 30  # bytes of addresses that the other process may have
END_SECONDS = 10.0  # that it has to end
SILENCE = 60.0  # seconds without a sign of life, after which it is killed; busy machines start it in 20

T = TypeVar("T")

_TEXTS = ("type", "http_version", "method", "scheme", "path", "root_path", "server", "client")
_OURS = (b"x-request-id", b"content-length", b"transfer-encoding")

logger = logging.getLogger("gateway.http.aside")
_decode = msgspec.msgpack.Decoder(Sent).decode


class SentAside(Exception):
    """A body is for the other process."""

    def __init__(self, body: bytes | bytearray) -> None:
        self.body = body


def is_dear(body: bytes | bytearray) -> bool:
    """Whether a body holds up others while it is read, and while what is made of it goes on."""
    if len(body) > LARGE or body.count(b"]") + body.count(b"}") > MOST_ENDS:
        return True
    quotes = body.count(b'"')
    if quotes > MOST_QUOTES and quotes - body.count(b'\\"') > MOST_QUOTES:
        return True
    return body.count(b",") > MOST_COMMAS


class Aside:
    """The other process, as this one sees it.

    Args:
        settings: also its own.
    """

    def __init__(self, settings: GatewayConfig) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None  # which hands it the sockets of requests

    async def answer(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, sent: SentAside, params: dict[str, Any]
    ) -> None:
        """Answer as the other process does: Falcon's handler of `SentAside`."""
        req.context.principal = None  # what is left of its limits is said there
        try:
            ours = self._connect()
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            answer = _Answer(reader, writer, self._process)
            try:
                writer.writelines((framed(_head(req, len(sent.body))), sent.body))
                sent.body = b""
                await answer.hear(writer.drain())
                first = await answer.take()
            except BaseException:
                await answer.close()
                raise
        except (OSError, EOFError) as error:
            logger.error("request failed request_id=%s reason=aside: %r", req.context.request_id, error)
            message = "the process that reads large bodies has ended; another one takes the next"
            refusal = Refusal.of_http(503, message, req.context.request_id)
            errors.write(refusal._replace(retry_after=1), req, resp)
            return
        resp.status = first.status
        for name, value in first.headers:
            resp.set_header(name.decode("latin-1"), value.decode("latin-1"))
        resp.stream = answer

    async def stop(self) -> None:
        """End the process, and what it still does."""
        if self._process is None:
            return
        process, self._process = self._process, None
        self._control.close()
        await asyncio.to_thread(_end, process)

    def _connect(self) -> socket.socket:
        """Our end of a pair of sockets, of which the process has the other."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            self._start()
            socket.send_fds(self._control, [b"\0"], [theirs.fileno()])
        return ours

    def _start(self) -> None:
        """Have a process there."""
        if self._process is not None:
            if self._process.poll() is None:
                return
            code = self._process.returncode
            logger.error("the process for large bodies has ended pid=%d code=%d", self._process.pid, code)
            self._control.close()
            metrics_directory.forget(self._process.pid)
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)  # one that does not take them does not get them
        with theirs:
            command = [sys.executable, "-m", "gateway.http.aside_process"]
            command += [str(theirs.fileno()), str(os.getpid()), str(MEMORY)]
            self._process = subprocess.Popen(command, pass_fds=(theirs.fileno(),), stdin=subprocess.PIPE)
        with self._process.stdin as configuration:
            configuration.write(msgspec.json.encode(self._settings))


class _Answer:
    """The body of an answer, as it comes; Falcon closes it.

    Raises:
        EOFError: the process is gone, and with it the rest.
        TimeoutError: it stood still, and was killed.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, process: subprocess.Popen[bytes]
    ) -> None:
        self._reader, self._writer, self._process = reader, writer, process
        self._is_over = False

    async def take(self) -> Sent:
        """What the application sends next."""
        while (sent := _decode(await self.hear(receive(self._reader)))) == ALIVE:
            pass
        return sent

    async def hear(self, heard: Awaitable[T]) -> T:
        """What is there as soon as the process does anything."""
        try:
            async with asyncio.timeout(SILENCE):
                return await heard
        except TimeoutError:
            logger.error("the process for large bodies stands still, and is killed pid=%d", self._process.pid)
            self._process.kill()
            raise

    def __aiter__(self) -> _Answer:
        return self

    async def __anext__(self) -> bytes:
        if self._is_over:
            raise StopAsyncIteration
        sent = await self.take()
        self._is_over = sent.is_last
        return sent.body

    async def close(self) -> None:
        self._writer.close()


def _head(req: falcon.asgi.Request, length: int) -> Head:
    scope = req.scope
    headers = [(name, value) for name, value in scope["headers"] if name not in _OURS]
    headers += [(b"x-request-id", req.context.request_id.encode()), (b"content-length", b"%d" % length)]
    texts = {name: scope[name] for name in _TEXTS if name in scope}
    return Head(texts, headers, scope.get("raw_path", b""), scope["query_string"], length)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    metrics_directory.forget(process.pid)
