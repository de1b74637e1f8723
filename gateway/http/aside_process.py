"""A gateway process for requests whose bodies are dear to read: see `gateway.http.aside`.

    python -m gateway.http.aside_process FD PARENT_PID MEMORY

FD is a socket that hands over one socket a request; once its other end is closed, this process ends. Its
configuration comes as JSON on standard input.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
import uvloop

from gateway.config import LOG_FORMAT, GatewayConfig
from gateway.http.aside_wire import ALIVE, Head, Sent, framed, receive
from gateway.telemetry import metrics_directory
from ipc import logs
from ipc.lifeline import die_with_parent
from ipc.responsive import stay_responsive
from ipc.structs import learn_structs

CHUNK = 1 << 18  # bytes of a body, which Falcon takes apart
BEAT = 5.0  # seconds between signs of life

App = Callable[..., Any]

logger = logging.getLogger("gateway.http.aside_process")


def main() -> None:
    """Serve until the other process hangs up."""
    fd, parent, memory = map(int, sys.argv[1:])
    die_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # meant for a whole group: our parent says when it is over
    bound = resource.getrlimit(resource.RLIMIT_AS)[1]  # which an operator may have set lower
    memory = memory if bound == resource.RLIM_INFINITY else min(memory, bound)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    settings = msgspec.json.decode(sys.stdin.buffer.read(), type=GatewayConfig)
    logs.log_to_stderr(settings.gateway.log_level, LOG_FORMAT, settings.gateway.log_format)
    metrics_directory.ensure()
    from gateway.http.application import Gateway  # it counts, so it must know where

    learn_structs()
    stay_responsive()
    with socket.socket(fileno=fd) as control:
        uvloop.run(_serve(Gateway(settings, sends_aside=False), control))


async def _serve(app: App, control: socket.socket) -> None:
    tasks: set[asyncio.Task[None]] = set()
    over = asyncio.Event()

    def take() -> None:
        data, fds, _, _ = socket.recv_fds(control, 1, 1)
        if not data:
            over.set()
            return
        task = asyncio.create_task(_answer(app, socket.socket(fileno=fds[0])))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    loop, lifespan = asyncio.get_running_loop(), _Lifespan(app)
    await lifespan.pass_on("startup")
    loop.add_reader(control, take)
    await over.wait()
    loop.remove_reader(control)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await lifespan.pass_on("shutdown")


class _Lifespan:
    """The application's, as ASGI has it."""

    def __init__(self, app: App) -> None:
        self._asked: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}}
        self._task = asyncio.create_task(app(scope, self._asked.get, self._said.put))

    async def pass_on(self, event: str) -> None:
        """Tell the application of `event`; RuntimeError where it failed."""
        await self._asked.put({"type": f"lifespan.{event}"})
        said = await self._said.get()
        if said["type"] != f"lifespan.{event}.complete":
            raise RuntimeError(f"{event}: {said.get('message')}")


async def _answer(app: App, connection: socket.socket) -> None:
    """Have one request answered, unless whoever sent it hangs up."""
    connection.setblocking(False)
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    try:
        head = msgspec.msgpack.decode(await receive(reader), type=Head)
        body = _Body(reader, head.length)
        scope = head.scope | {"headers": head.headers, "query_string": head.query, "raw_path": head.raw_path}
        scope["asgi"] = {"version": "3.0", "spec_version": "2.3"}
        handler = asyncio.create_task(app(scope, body.receive, partial(_send, writer)))
        gone = asyncio.create_task(body.until_gone())
        beat = asyncio.create_task(_beat(writer))
        try:
            await asyncio.wait((handler, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (handler, gone, beat):
                task.cancel()
            await asyncio.gather(handler, gone, beat, return_exceptions=True)
        if not handler.cancelled() and (error := handler.exception()) is not None:
            logger.error("request failed", exc_info=error)
    except (OSError, EOFError):
        return  # whoever sent it is gone
    finally:
        writer.close()


class _Body:
    """The body of a request, as the application takes it.

    Args:
        length: bytes.
    """

    def __init__(self, reader: asyncio.StreamReader, length: int) -> None:
        self._reader, self._left = reader, length
        self._is_read = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        """As ASGI has it."""
        if self._is_read.is_set():
            await asyncio.Event().wait()  # where the sender is gone, the application is cancelled
        body = await self._reader.read(min(self._left, CHUNK))
        self._left -= len(body)
        if not self._left or not body:
            self._is_read.set()
        if not body:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": body, "more_body": self._left > 0}

    async def until_gone(self) -> None:
        """Until the sender hangs up, once it has sent all."""
        await self._is_read.wait()
        await self._reader.read(1)


async def _beat(writer: asyncio.StreamWriter) -> None:
    """Say now and then that this process has not come to a stand."""
    while True:
        await asyncio.sleep(BEAT)
        writer.write(framed(ALIVE))


async def _send(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    if message["type"] == "http.response.start":
        sent = Sent(message["status"], [tuple(each) for each in message["headers"]])
    else:
        sent = Sent(body=message.get("body", b""), is_last=not message.get("more_body", False))
    with suppress(OSError):  # the sender is gone, which ends the application
        writer.write(framed(sent))
        await writer.drain()


if __name__ == "__main__":
    main()
