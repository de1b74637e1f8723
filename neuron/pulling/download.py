"""The process that asks the hub, as its neuron sees it: started, listened to, ended, reaped."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import suppress

import msgspec

from ipc.errors import Code, CortexError
from neuron.processes.child import Child
from neuron.pulling.child import Came, Complete, Found, HubTask, News, Refused

SILENT_SECONDS = 60.0  # without a word: one that downloads says something each second
STALLED_SECONDS = 120.0  # without another byte that comes or is compared

END_SECONDS = 5.0  # that a process which was killed, or has no more to say, is waited for

_decoder = msgspec.json.Decoder(News)


class Download:
    """One process. Made in the running loop, on the main thread: it dies with its thread.

    Raises:
        OSError: it cannot be had.
    """

    def __init__(self, task: HubTask, log_level: str) -> None:
        ours, theirs = os.pipe()
        try:
            try:
                self._child = Child(
                    [
                        *("-m", "neuron.pulling.child"),
                        *(str(theirs), str(os.getpid()), log_level, msgspec.json.encode(task).decode()),
                    ],
                    theirs,
                )
            finally:
                os.close(theirs)
        except OSError:
            os.close(ours)
            raise
        self._pipe = open(ours, "rb", buffering=0)  # noqa: SIM115 - the transport closes it

    async def news(self) -> AsyncGenerator[Found | Came, None]:
        """What it says, until it is done.

        Raises:
            CortexError: it cannot be had, in the hub's words; or the process died, or came no further.
        """
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), self._pipe)
        last, moved = None, loop.time()
        while True:
            try:
                line = await asyncio.wait_for(reader.readline(), SILENT_SECONDS)
            except TimeoutError:
                raise _failed(f"the hub did not answer within {SILENT_SECONDS:g} s") from None
            if not line:
                await self._ended()
                raise _failed(f"its download ended with exit code {self._child.exit_code}, see the log")
            news = _decoder.decode(line)
            if isinstance(news, Refused):
                raise CortexError(news.code, news.message)
            if isinstance(news, Complete):
                return
            if news != last:
                last, moved = news, loop.time()
            elif loop.time() - moved > STALLED_SECONDS:
                raise _failed(f"nothing has come for {STALLED_SECONDS:g} s")
            yield news

    async def end(self) -> None:
        """End it, if it has not ended."""
        self._child.kill()
        await self._ended()

    async def _ended(self) -> None:
        """Wait until it is gone, but not for a disk that hangs: whenever it ends, it is reaped."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._child.gone.wait(), END_SECONDS)


def _failed(message: str) -> CortexError:
    return CortexError(Code.MODEL_LOAD_FAILED, message)
