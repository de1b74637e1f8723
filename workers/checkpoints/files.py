"""The files of a checkpoint, which anybody may have written: opened and read within bounds.

What is no regular file (a pipe, a device) is refused before anything waits for it.
"""

from __future__ import annotations

import json
import os
import stat
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

import msgspec

from ipc.errors import Code, CortexError

T = TypeVar("T")

FILE_LIMIT = 100_000_000  # bytes of any file that is read whole
SEARCHED = 16 << 20  # bytes of one in which is looked for what is wrong
MAX_PLACE = 200  # characters of where that stands


def refuse(path: Path, why: str) -> NoReturn:
    """Raise the one error of a checkpoint that cannot be loaded, which names the file."""
    raise CortexError(Code.MODEL_LOAD_FAILED, f"{path}: {why}", details={"file": str(path)})


def open_file(path: Path) -> BinaryIO:
    """Open a regular file to be read; never waits for anybody.

    Raises:
        CortexError: MODEL_LOAD_FAILED naming the file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        refuse(path, "is missing")
    except (OSError, ValueError) as error:
        refuse(path, f"cannot be read: {getattr(error, 'strerror', error)}")
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        refuse(path, "is no regular file")
    return os.fdopen(fd, "rb")


def read_bytes(path: Path, limit: int = FILE_LIMIT) -> bytes:
    """All of a file.

    Raises:
        CortexError: MODEL_LOAD_FAILED, also when it is longer than `limit`.
    """
    with open_file(path) as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            refuse(path, f"cannot be read: {error.strerror}")
    if len(data) > limit:
        refuse(path, f"is larger than {limit:,} bytes")
    return data


def read_text(path: Path) -> str:
    """All of a file of text.

    Raises:
        CortexError: MODEL_LOAD_FAILED.
    """
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        refuse(path, f"is not UTF-8: {error.reason} at byte {error.start:,}")


def read_json(path: Path, kind: type[T]) -> T:
    """The JSON file at `path` as a `kind`.

    Raises:
        CortexError: MODEL_LOAD_FAILED, also for JSON with NaN or Infinity in it, which JSON does not have.
    """
    return decode_json(path, read_bytes(path), kind)


def decode_json(path: Path, text: Any, kind: type[T], where: str = "") -> T:
    """JSON that stands in `path`, at `where` in it, as a `kind`; raises as `read_json` does."""
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        why = _no_number(bytes(text)) or error
        refuse(path, f"has bad JSON{' in ' + repr(where) if where else ''}: {why}")


def _no_number(text: bytes) -> str:
    """Which field is NaN or infinite, as Python writes such numbers and reads them; "" where none is."""
    if len(text) > SEARCHED:
        return ""
    try:
        waiting = [("", json.loads(text))]
    except (ValueError, RecursionError):
        return ""
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{place}.{name}".lstrip("."), each) for name, each in reversed(value.items())]
        elif isinstance(value, list):
            waiting += [(f"{place}[{i}]", each) for i, each in reversed(list(enumerate(value)))]
        elif isinstance(value, float) and not isfinite(value):
            return f"{place[:MAX_PLACE]} is {json.dumps(value)}, and JSON has no such number"
    return ""
