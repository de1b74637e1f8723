"""What an event loop is held for: CPU time of its turns, and of threads that keep it from the next one."""

from __future__ import annotations

import asyncio
import mmap
import os
import time
from pathlib import Path
from typing import NamedTuple


class Most(NamedTuple):
    """CPU time between two looks, at most; a millisecond of it may be others'.

    Attributes:
        loop: of the loop's thread.
        process: of all threads: those that keep the interpreter to themselves, and those that do not.
    """

    loop: float
    process: float


class Held:
    """What an event loop was held for, in this process or in another, at most since `take`.

    Args:
        file: that both processes know.
    """

    def __init__(self, file: Path) -> None:
        file.touch()
        os.truncate(file, 16)
        with file.open("r+b") as both:
            self._most = memoryview(mmap.mmap(both.fileno(), 16)).cast("d")

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """In the running loop: look each millisecond at what was spent in between."""
        spent = time.thread_time(), time.process_time()

        def look() -> None:
            nonlocal spent
            before, spent = spent, (time.thread_time(), time.process_time())
            for i in range(2):
                self._most[i] = max(self._most[i], spent[i] - before[i])
            loop.call_later(0.001, look)

        look()

    def take(self) -> Most:
        """In seconds."""
        most = Most(*self._most)
        self._most[0] = self._most[1] = 0.0
        return most
