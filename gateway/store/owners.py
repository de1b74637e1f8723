"""Which process works on a response, and whether it still lives.

A process is known by its id and by when it started, as the kernel counts it: ids are used again.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path


def ourselves() -> str:
    """The name of this process as an owner."""
    return _named(os.getpid())


def lives(owner: str) -> bool:
    """Whether that process is there."""
    pid, _, started = owner.partition(":")
    return _started(int(pid)) == started


@cache
def _named(pid: int) -> str:
    return f"{pid}:{_started(pid)}"


def _started(pid: int) -> str | None:
    """In ticks since the host's start; None where there is no such process, or only its exit status."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = text.rpartition(") ")[2].split()
    return None if state in "ZX" else fields[18]
