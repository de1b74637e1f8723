"""What the turns of an event loop take of CPU time: whoever comes meanwhile waits so long."""

from __future__ import annotations

import asyncio
import mmap
import os
import time
from pathlib import Path


class Held:
    """CPU time that the turns of an event loop take, in its own process or in another: the most since `take`.

    Args:
        file: that both processes know.
    """

    def __init__(self, file: Path) -> None:
        file.touch()
        os.truncate(file, 8)
        with file.open("r+b") as both:
            self._most = memoryview(mmap.mmap(both.fileno(), 8)).cast("d")

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """In the running loop: look each millisecond at what the thread had in between."""
        spent = time.thread_time()

        def look() -> None:
            nonlocal spent
            before, spent = spent, time.thread_time()
            self._most[0] = max(self._most[0], spent - before)
            loop.call_later(0.001, look)

        look()

    def take(self) -> float:
        """In seconds; a millisecond of that may be others'."""
        most, self._most[0] = self._most[0], 0.0
        return most
