"""A text process, as its neuron sees it: started, asked, ended, reaped."""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from neuron.preparation.jobs import Job, Outcome
from neuron.preparation.wire import LENGTHS, lengths
from neuron.processes.child import Child

WIRE_BUFFER = 1 << 20  # bytes that are read ahead
FAREWELL_SECONDS = 1.0  # for a process that has hung up to say why in the log


class ProcessDied(Exception):
    """It ended before it answered; says how.

    Attributes:
        killed: by a signal, from outside: what it may not have it does without.
    """

    def __init__(self, words: str, killed: bool) -> None:
        super().__init__(words)
        self.killed = killed


class TextProcess:
    """One process. It does one job at a time. Made in the running loop, on the main thread: it dies with its
    thread.

    Args:
        memory: bytes that it may have.
        log_level: of what it writes to the neuron's own log.

    Attributes:
        on_gone: told when it has ended.

    Raises:
        OSError: it cannot be had.
    """

    def __init__(self, memory: int, log_level: str) -> None:
        self.on_gone: Callable[[TextProcess], None] | None = None
        self._socket, theirs = socket.socketpair()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            with theirs:
                fd = theirs.fileno()
                self._child = Child(
                    ("-m", "neuron.preparation.child", str(fd), str(os.getpid()), str(memory), log_level),
                    fd,
                    {"TOKENIZERS_PARALLELISM": "false"},
                    self._on_gone,
                )
        except OSError:
            self._socket.close()
            raise

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def is_there(self) -> bool:
        """Whether it has not ended."""
        return self._child.is_there

    @property
    def memory(self) -> int:
        """Bytes that it holds, with what it has started to try a grammar; 0: it has ended."""
        if self._child.gone.is_set():  # its number may be another's by now
            return 0
        return memory_of(self.pid)

    def _on_gone(self) -> None:
        if self.on_gone is not None:
            self.on_gone(self)

    async def ask(self, job: Job, body: bytes | memoryview) -> tuple[Outcome, bytes]:
        """What becomes of `job`, and its result.

        Raises:
            ProcessDied: nothing.
        """
        header = msgspec.msgpack.encode(job)
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(sock=self._socket, limit=WIRE_BUFFER)
            reader, writer = self._streams
            writer.write(lengths(header, body) + header)
            writer.write(body)
            await writer.drain()
            sizes = LENGTHS.unpack(await reader.readexactly(LENGTHS.size))
            outcome, result = [await reader.readexactly(size) for size in sizes]
        except (OSError, EOFError) as error:
            raise await self._death() from error
        return msgspec.msgpack.decode(outcome, type=Outcome), result

    async def _death(self) -> ProcessDied:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._child.gone.wait(), FAREWELL_SECONDS)
        code = await self.end()
        if code < 0:
            return ProcessDied(f"was killed by {signal.Signals(-code).name}", killed=True)
        return ProcessDied(f"ended with exit code {code}", killed=False)

    async def end(self) -> int:
        """End it, if it has not ended, and give its exit code. Gigabytes of memory take a while to go."""
        self._child.kill()
        await self._child.gone.wait()
        if self._streams is not None:
            self._streams[1].transport.abort()
        else:
            self._socket.close()
        return self._child.exit_code


def memory_of(pid: int) -> int:
    """Bytes that a process and those that its main thread has started hold and share with no file; 0 where
    it is gone, or is not ours to ask."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
        held = (int(resident) - int(shared)) * mmap.PAGESIZE
    except (OSError, ValueError):
        return 0
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has just ended, or this kernel does not tell
        return held
    return held + sum(map(memory_of, map(int, children)))
