"""Responses that are made in the background: they go on when the client has left.

What comes of one is written to the store as it comes, where every process finds it, and may end it: for a
client that cancels or deletes it.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic

from gateway.dialects import Services
from gateway.dialects.openai.responses.request import Creation
from gateway.dialects.openai.responses.run import Run
from gateway.fleet.exchange import Exchange
from gateway.store import owners, responses
from ipc.errors import CortexError

logger = logging.getLogger("gateway.dialects.openai.responses")

WRITE_SECONDS = 0.1  # between two writes of what came
RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)  # before an end is written again that could not be


class Background:
    """Those that this process works on."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self, creation: Creation, request_id: str) -> None:
        """Keep a response as queued, and begin to work on it. CortexError when it cannot be kept."""
        store = self._services.store
        creation.response["status"] = "queued"
        owner = owners.ourselves()
        await store.write(responses.put, store.limits, creation.account, creation.stored(), owner=owner)
        name = f"response {creation.id}"
        task = asyncio.create_task(self._work(creation, request_id), name=name)
        self._tasks[creation.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(creation.id, None))

    def stop(self, response_id: str) -> None:
        """Work on it no longer; its end has been written."""
        if (task := self._tasks.get(response_id)) is not None:
            task.cancel()

    async def _work(self, creation: Creation, request_id: str) -> None:
        exchange = Exchange(self._services.fleet, request_id, creation.account)
        try:
            events = await self._record(Run(self._services.fleet, exchange, creation), creation)
        except asyncio.CancelledError:
            exchange.leave()
            raise
        except Exception:
            logger.exception("response failed id=%s request_id=%s", creation.id, request_id)
            error = {"code": "server_error", "message": "the gateway failed; its log says more"}
            creation.response.update(status="failed", error=error)
            events = []
        finally:
            exchange.close()
        if events is not None:
            await self._finish(creation, events)

    async def _record(self, run: Run, creation: Creation) -> list[tuple[int, bytes]] | None:
        """Write what comes. Gives the last events, which go with the end; None where it is wanted no more."""
        recorded: list[tuple[int, bytes]] = []
        number, written = 0, 0.0
        async for data in run.events():
            for event in data.split(b"\n\n"):
                if event and not event.startswith(b":"):
                    recorded.append((number, event))
                    number += 1
            if run.is_over or monotonic() - written < WRITE_SECONDS:
                continue
            events = recorded if creation.fields.stream else []
            store = self._services.store
            if not await store.write(responses.advance, creation.response, events):
                return None
            recorded, written = [], monotonic()
        return recorded if creation.fields.stream else []

    async def _finish(self, creation: Creation, events: list[tuple[int, bytes]]) -> None:
        """Write the end: while it cannot be, as on a full disk, again and again, within a bound."""
        store, conversation = self._services.store, creation.fields.conversation_id
        for pause in (*RETRY_SECONDS, None):
            try:
                await store.write(
                    responses.finish, store.limits, creation.account, creation.stored(), events, conversation
                )
                return
            except CortexError as error:
                logger.error("response not written id=%s reason=%s", creation.id, error.message)
                if pause is not None:
                    await asyncio.sleep(pause)
