"""The end of a process that has imported much."""

from __future__ import annotations

import atexit
import gc


def leave_modules_alone() -> None:
    """Have Python end without looking for garbage in all that was imported, which goes with the process.

    That is a quarter of what a short command takes.
    """
    atexit.register(gc.freeze)
