"""Temporary folders of processes that may be killed: who makes the next one removes what those left.

A folder is locked as long as its process lives, or one that it forked. Nobody removes one that is.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

_held: list[int] = []  # descriptors with the locks, closed by the end of the last process that has them


def make(kind: str) -> Path:
    """Make a folder `cortex-KIND-of-...` where temporary files go. Who ends in order removes it."""
    remove_left(kind)
    new = Path(tempfile.mkdtemp(prefix=f"cortex-{kind}-"))  # no name that is looked for, until it is locked
    _held.append(os.open(new, os.O_RDONLY | os.O_DIRECTORY))
    fcntl.flock(_held[-1], fcntl.LOCK_EX)
    return new.rename(new.with_name(new.name.replace(f"cortex-{kind}-", f"cortex-{kind}-of-{os.getpid()}-")))


def remove_left(kind: str) -> None:
    """Remove those folders of a kind whose processes are gone."""
    for path in Path(tempfile.gettempdir()).glob(f"cortex-{kind}-of-*"):
        with suppress(OSError):  # another user's, locked, or gone by now
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(folder).st_uid == os.geteuid():
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
            finally:
                os.close(folder)
