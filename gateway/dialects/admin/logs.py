"""What neurons write to their logs, for an administrator who is on none of their hosts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import falcon.asgi
from msgspec.structs import replace

from gateway.dialects.admin import progress
from gateway.dialects.admin.fields import LogsFields
from gateway.dialects.admin.resources import AdminResource
from gateway.dialects.event_streams import KEEP_ALIVE_SECONDS
from gateway.fleet.neuron import Neuron
from ipc.errors import Code, CortexError
from ipc.messages.replies import Failed, LogLines
from ipc.messages.requests import Logs

BEHIND = 1000  # lines that wait for a client that reads slowly, before what comes waits at its neuron's call
UNREAD_SECONDS = 60.0  # after which a client that reads nothing is read for no further: that has no bound

Told = asyncio.Queue[dict[str, Any] | None]


class LogsResource(AdminResource):
    """`POST /admin/logs`: lines of JSON, each with its neuron; where one fails, why; and that it is all."""

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        fields = await self._read(req, LogsFields)
        neurons = self._fleet.neurons if fields.neuron is None else [self._neuron(fields.neuron)]
        asked = Logs(id=0, lines=fields.lines, request=fields.request or "", follow=fields.follow)
        progress.send_lines(resp, _lines(neurons, asked))


async def _lines(neurons: list[Neuron], asked: Logs) -> AsyncIterator[bytes]:
    told: Told = asyncio.Queue(BEHIND)
    readers = [asyncio.create_task(_read(neuron, asked, told)) for neuron in neurons]
    left = len(readers)
    try:
        while left:
            try:
                line = await asyncio.wait_for(told.get(), KEEP_ALIVE_SECONDS)
            except TimeoutError:
                yield b"\n"  # we live
                continue
            if line is not None:
                yield progress.line(line)
            else:
                left -= 1
        yield progress.line({"done": True})
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def _read(neuron: Neuron, asked: Logs, told: Told) -> None:
    """What one neuron says, until that is all."""
    call = neuron.client.open(replace(asked))  # each client numbers its own copy
    try:
        async for reply in call:
            if isinstance(reply, LogLines):
                for line in reply.lines:
                    async with asyncio.timeout(UNREAD_SECONDS):
                        await told.put({"neuron": neuron.name, "line": line})
            elif isinstance(reply, Failed):
                await told.put({"neuron": neuron.name, "error": progress.error(reply.error())})
    except TimeoutError:
        call.cancel()
        error = CortexError(Code.INTERNAL, f"lines were not read for {UNREAD_SECONDS:g} s; ask again")
        await told.put({"neuron": neuron.name, "error": progress.error(error)})
    finally:
        call.cancel()
    await told.put(None)
