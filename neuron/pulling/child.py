"""A process that asks the hub for its neuron, which never waits for a network or a disk itself.

    python -m neuron.pulling.child FD PARENT_PID LOG_LEVEL TASK

FD takes what it says, a line of JSON each; TASK is a `HubTask` in JSON.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from ipc.errors import Code, CortexError
from ipc.farewell import leave_modules_alone
from ipc.lifeline import die_with_parent
from neuron.pulling import hub
from neuron.trace import log_to_stderr

TELL_SECONDS = 1.0  # between two words on how much has come
WEIGHTS = (".safetensors", ".gguf")


class HubTask(Struct, kw_only=True):
    """What shall be done.

    Attributes:
        fetch: bring the files; else only see what would have to come.
        source: `ORG/NAME`, or `ORG/NAME:Q4_K_M`.
        promised: bytes of the disk that other downloads will take.
        most_weights: bytes that weights as they are stored may have; None: any number.
    """

    source: str
    cache: str
    fetch: bool
    promised: int = 0
    most_weights: int | None = None


class Found(Struct, tag=True):
    """What the hub has, and how much of it is to come, in bytes."""

    size: int
    to_come: int


class Came(Struct, tag=True):
    """How much is here by now of what was to come, in bytes, and of which file how much was compared."""

    size: int
    checking: str = ""
    checked: int = 0


class Complete(Struct, tag=True):
    """All of the task."""


class Refused(Struct, tag=True):
    """It cannot be had."""

    code: str
    message: str


News = Found | Came | Complete | Refused


def main() -> None:
    """Do the one task, and say how it goes."""
    fd, parent, level, text = sys.argv[1:]
    die_with_parent(int(parent))
    leave_modules_alone()
    hub.silence_library(bars=False)
    log_to_stderr(level)
    for library in ("httpx", "httpx2"):
        logging.getLogger(library).setLevel(logging.WARNING)  # each of its requests would be a line
    with open(int(fd), "wb", buffering=0) as out:
        try:
            _perform(msgspec.json.decode(text, type=HubTask), out)
        except CortexError as error:
            _tell(out, Refused(error.code, error.message))


def _perform(task: HubTask, out: BinaryIO) -> None:
    cache = Path(task.cache)
    chosen = hub.look(task.source, cache)
    weights = sum(file.size for name, file in chosen.files.items() if name.endswith(WEIGHTS))
    if task.most_weights is not None and weights > task.most_weights:
        raise CortexError(
            Code.MODEL_TOO_LARGE,
            f"{chosen.repository} has {weights >> 20:,} MiB of weights, and the devices that it may use here "
            f"have {task.most_weights >> 20:,} in all",
        )
    to_come = hub.check_room(chosen, cache, task.promised)
    _tell(out, Found(chosen.size, to_come))
    if task.fetch:
        now = Came(0)
        with _telling(out, now, hub.storage(chosen.repository, cache) / "blobs", to_come):
            hub.fetch(chosen, cache, lambda name, size: _note(now, name, size))
    _tell(out, Complete())


def _note(now: Came, name: str, size: int) -> None:
    now.checking, now.checked = name, size


@contextmanager
def _telling(out: BinaryIO, now: Came, blobs: Path, to_come: int) -> Iterator[None]:
    """Say meanwhile how much has come, by the sizes of the files."""
    done = threading.Event()
    before = _bytes_in(blobs)

    def tell() -> None:
        while not done.wait(TELL_SECONDS):
            now.size = max(0, min(_bytes_in(blobs) - before, to_come))
            _tell(out, now)

    telling = threading.Thread(target=tell, daemon=True)
    telling.start()
    try:
        yield
    finally:
        done.set()
        telling.join()


def _bytes_in(folder: Path) -> int:
    try:
        with os.scandir(folder) as entries:
            return sum(_size(entry) for entry in entries)
    except FileNotFoundError:
        return 0


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:  # it has its last name by now
        return 0


def _tell(out: BinaryIO, news: News) -> None:
    out.write(msgspec.json.encode(news) + b"\n")


if __name__ == "__main__":
    main()
