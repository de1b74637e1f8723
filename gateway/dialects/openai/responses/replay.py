"""Streams of responses that are made in the background, read from what is kept: by whoever comes, from any
process, from any event on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from time import monotonic

from gateway.dialects.event_streams import KEEP_ALIVE_SECONDS, comment
from gateway.dialects.openai.responses.output import Events
from gateway.refusals import NOT_FOUND
from gateway.store import responses
from gateway.store.database import Database
from ipc.errors import CortexError

POLL_SECONDS = 0.1


async def follow(store: Database, account: str, response_id: str, after: int = -1) -> AsyncIterator[bytes]:
    """The events behind number `after`, until the last one. Where that can no longer come, since the response
    is deleted or the store fails, the stream ends in an event `error`."""
    written = monotonic()
    try:
        while True:
            news = await store.read(responses.follow, account, response_id, after)
            if news is None:
                raise CortexError(NOT_FOUND, f"the response {response_id!r} has been deleted")
            if news.events:
                after = news.events[-1][0]
                yield b"".join(data + b"\n\n" for _, data in news.events)
                written = monotonic()
            if news.over:
                return
            if news.orphaned:
                await store.write(responses.bury)
            elif not news.events:
                if monotonic() - written >= KEEP_ALIVE_SECONDS:
                    yield comment(None)
                    written = monotonic()
                await asyncio.sleep(POLL_SECONDS)
    except CortexError as error:
        events = Events()
        events.count = after + 1
        yield events.write("error", code=error.code, message=error.message, param=None)
