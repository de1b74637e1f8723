"""What a copy of this process finds out while it goes on itself: for commands, of which nothing else runs."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable


class Beside:
    """Begins `work` in a copy of this process; where that has threads, whose locks a copy would find held, it
    is done once somebody asks."""

    def __init__(self, work: Callable[[], bytes]) -> None:
        self._work, self._copy = work, 0
        if len(os.listdir("/proc/self/task")) > 1:
            return
        self._answer, into = os.pipe()
        self._copy = os.fork()
        if not self._copy:
            gc.disable()  # a look for garbage would copy all that is shared
            try:
                with open(into, "wb") as answer:
                    answer.write(work())
            finally:  # whatever it was: this is no place for it to be heard
                os._exit(0)
        os.close(into)

    def result(self) -> bytes:
        """What `work` has found, once it is at its end; nothing where it failed."""
        if not self._copy:
            return self._work()
        with open(self._answer, "rb") as answer:
            found = answer.read()
        os.waitpid(self._copy, 0)
        return found
