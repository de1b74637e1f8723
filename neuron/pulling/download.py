"""The process that asks the hub, as its neuron sees it: started, listened to, ended, reaped."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import suppress

import msgspec

from ipc.errors import Code, CortexError
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
                self._process = subprocess.Popen(
                    [
                        *(sys.executable, "-m", "neuron.pulling.child"),
                        *(str(theirs), str(os.getpid()), log_level, msgspec.json.encode(task).decode()),
                    ],
                    pass_fds=[theirs],
                    process_group=0,  # Ctrl-C reaches the neuron alone, which ends it
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # whatever a library prints is a log line
                )
            finally:
                os.close(theirs)
            try:
                self._pidfd = os.pidfd_open(self._process.pid)
            except OSError:
                self._process.kill()
                self._process.wait()
                raise
        except OSError:
            os.close(ours)
            raise
        self._pipe = open(ours, "rb", buffering=0)  # noqa: SIM115 - the transport closes it
        self._gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.wait()
        self._gone.set()

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
                raise _failed(f"its download ended with exit code {self._process.returncode}, see the log")
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
        if not self._gone.is_set():
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        await self._ended()

    async def _ended(self) -> None:
        """Wait until it is gone, but not for a disk that hangs: whenever it ends, it is reaped."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._gone.wait(), END_SECONDS)


def _failed(message: str) -> CortexError:
    return CortexError(Code.MODEL_LOAD_FAILED, message)
