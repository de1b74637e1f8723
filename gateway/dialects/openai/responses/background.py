"""Responses that are made in the background: they go on when the client has left.

What comes of one is written to the store as it comes, where every process finds it, and may end it: for a
client that cancels or deletes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic

from gateway.dialects import Services
from gateway.dialects.openai.responses import response
from gateway.dialects.openai.responses.replay import Changes
from gateway.dialects.openai.responses.request import Creation
from gateway.dialects.openai.responses.run import Run
from gateway.dialects.writing import encode
from gateway.fleet.exchange import Exchange
from gateway.refusals import BUG, status_of
from gateway.store import owners, responses
from gateway.store.response_store import ResponseStore
from ipc.errors import Code, CortexError

logger = logging.getLogger("gateway.dialects.openai.responses")

WRITE_SECONDS = 0.1  # between two writes of what came
GIVEN_UP = {"code": "server_error", "message": BUG}
RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)  # before an end is written again that could not be


class Background:
    """Those that this process works on.

    Attributes:
        changes: what is told of them to those who read them.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.changes = Changes()

    async def start(self, creation: Creation, exchange: Exchange) -> bytes:
        """Keep a response as queued, and begin to work on it.

        Args:
            exchange: that of the HTTP request, which it outlives from here on.

        Returns:
            The response as it is then.

        Raises:
            CortexError: it cannot be kept.
        """
        creation.response["status"] = "queued"
        run = Run(self._services.fleet, exchange, creation)
        recorder = _Recorder(self._services.store, creation, self.changes)
        recorder.note(run.begin())
        queued = encode(creation.response)
        kept = asyncio.get_running_loop().create_future()
        exchange.goes_on = True
        work = self._work(creation, exchange, run, recorder, kept)
        task = asyncio.create_task(work, name=f"response {creation.id}")
        self._tasks[creation.id] = task
        task.add_done_callback(lambda _: self._forget(creation.id))
        # Also where the client leaves now: what is kept as queued must have somebody who works on it.
        if (error := await asyncio.shield(kept)) is not None:
            raise error
        return queued

    def _forget(self, response_id: str) -> None:
        self._tasks.pop(response_id, None)
        self.changes.end(response_id)

    def stop(self, response_id: str) -> None:
        """Work on it no longer; its end has been written."""
        if (task := self._tasks.get(response_id)) is not None:
            task.cancel()

    async def _work(
        self,
        creation: Creation,
        exchange: Exchange,
        run: Run,
        recorder: _Recorder,
        kept: asyncio.Future[CortexError | None],
    ) -> None:
        """Make it, and write its end, whatever happens on the way to that."""
        try:
            await self._make(creation, exchange, run, recorder, kept)
            if recorder.is_wanted:
                stored, conversation = creation.stored(), creation.fields.conversation_id
                args = self._services.store.limits, creation.account, stored, recorder.events, conversation
                await self._write(creation.id, responses.finish, *args)
        except Exception:  # what there is of it, or of its error, is none that can be written
            logger.exception("response given up id=%s request_id=%s", creation.id, exchange.request_id)
            await self._write(creation.id, responses.fail, creation.id, GIVEN_UP)

    async def _make(
        self,
        creation: Creation,
        exchange: Exchange,
        run: Run,
        recorder: _Recorder,
        kept: asyncio.Future[CortexError | None],
    ) -> None:
        try:
            await recorder.keep()
            kept.set_result(None)
            await recorder.record(run)
            if not recorder.is_wanted:
                exchange.receipt.on_left()
        except asyncio.CancelledError:
            exchange.receipt.on_left()
            raise
        except Exception as error:
            if not isinstance(error, CortexError):  # else it is of the store
                logger.exception("response failed id=%s request_id=%s", creation.id, exchange.request_id)
                error = CortexError(Code.INTERNAL, BUG)
            exchange.receipt.status = status_of(error)
            exchange.receipt.on_refused(f"{error.code}: {error.message}")
            if not kept.done():
                kept.set_result(error)
                recorder.is_wanted = False
            else:
                recorder.fail(error)
        finally:
            exchange.close()
            if not kept.done():
                kept.cancel()

    async def _write(self, response_id: str, end: Callable[..., object], *args: object) -> None:
        """Write the end: while it cannot be, as on a full disk, again and again, within a bound."""
        for pause in (*RETRY_SECONDS, None):
            try:
                await self._services.store.write(end, *args)
                return
            except CortexError as error:
                logger.error("response not written id=%s reason=%s", response_id, error.message)
                if pause is not None:
                    await asyncio.sleep(pause)


class _Recorder:
    """Writes what comes of a response.

    Attributes:
        events: those that are not written yet, each with its number; none where nobody asked for a stream.
        is_wanted: whether it is still to be made.
    """

    def __init__(self, store: ResponseStore, creation: Creation, changes: Changes) -> None:
        self._store, self._creation, self._changes = store, creation, changes
        self._count = 0  # events so far
        self.events: list[tuple[int, bytes]] = []
        self.is_wanted = True

    async def keep(self) -> None:
        """Write that it is queued. CortexError when it cannot be."""
        store, creation = self._store, self._creation
        await store.write(
            responses.put,
            store.limits,
            creation.account,
            creation.stored(),
            owner=owners.ourselves(),
            events=self.events,
        )
        self.events = []
        self._changes.tell(creation.id)

    async def record(self, run: Run) -> None:
        """Write until the end, whose events go with the response."""
        written = 0.0
        async for data in run.events():
            self.note(data if isinstance(data, bytes) else b"".join(data))
            if run.is_over or monotonic() - written < WRITE_SECONDS:
                continue
            self.is_wanted = await self._store.write(responses.advance, self._creation.response, self.events)
            if not self.is_wanted:
                return
            self._changes.tell(self._creation.id)
            self.events, written = [], monotonic()

    def fail(self, error: CortexError) -> None:
        """Note an end that no neuron told."""
        creation = self._creation
        response.failed(creation.response, creation.output.items, error)
        creation.output.events.count = self._count
        self.note(creation.output.events.write("response.failed", response=creation.response))

    def note(self, data: bytes) -> None:
        """Take events that are to be written."""
        for event in data.split(b"\n\n"):
            if event and not event.startswith(b":"):
                if self._creation.fields.stream:
                    self.events.append((self._count, event))
                self._count += 1
