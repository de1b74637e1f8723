"""Streams of responses that are made in the background, read from what is kept: by whoever comes, from any
process, from any event on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from time import monotonic

from gateway.dialects.event_streams import KEEP_ALIVE_SECONDS, comment
from gateway.dialects.openai.responses.output import Events
from gateway.refusals import NOT_FOUND
from gateway.store import responses
from gateway.store.response_store import ResponseStore
from ipc.errors import CortexError

# Between two looks at what another process works on: longer and longer while nothing comes.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 1.0


class Changes:
    """What this process writes of responses, told to those in it who read them: one event for each, which is
    set when something was written, and then replaced."""

    def __init__(self) -> None:
        self._next: dict[str, asyncio.Event] = {}

    def next(self, response_id: str) -> asyncio.Event | None:
        """Set at the next change; None where another process works on it, or nobody. Ask before you read."""
        return self._next.get(response_id)

    def tell(self, response_id: str) -> None:
        """Something of it was written."""
        if (event := self._next.get(response_id)) is not None:
            event.set()
        self._next[response_id] = asyncio.Event()

    def end(self, response_id: str) -> None:
        """This process works on it no longer."""
        if (event := self._next.pop(response_id, None)) is not None:
            event.set()


async def follow(
    store: ResponseStore, changes: Changes, account: str, response_id: str, after: int = -1
) -> AsyncIterator[bytes]:
    """The events behind number `after`, until the last one. Where that can no longer come, since the response
    is deleted or the store fails, the stream ends in an event `error`."""
    written, pause = monotonic(), FIRST_PAUSE
    try:
        while True:
            change = changes.next(response_id)
            news = await store.read(responses.follow, account, response_id, after)
            if news is None:
                raise CortexError(NOT_FOUND, f"the response {response_id!r} has been deleted")
            if news.events:
                after = news.events[-1][0]
                yield b"".join(data + b"\n\n" for _, data in news.events)
                written, pause = monotonic(), FIRST_PAUSE
            if news.over:
                return
            if news.orphaned:
                await store.write(responses.bury)
            elif not news.events:
                if monotonic() - written >= KEEP_ALIVE_SECONDS:
                    yield comment(None)
                    written = monotonic()
                if change is None:
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
                else:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(change.wait(), KEEP_ALIVE_SECONDS)
    except CortexError as error:
        events = Events()
        events.count = after + 1
        yield events.write("error", code=error.code, message=error.message, param=None)
