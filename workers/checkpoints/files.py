"""The files of a checkpoint, which anybody may have written: opened and read within bounds.

What is no regular file (a pipe, a device) is refused before anything waits for it.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Collection
from contextlib import suppress
from difflib import get_close_matches
from math import inf, isfinite
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

import msgspec

from ipc.errors import Code, CortexError

T = TypeVar("T")

FILE_LIMIT = 100_000_000  # bytes of any file that is read whole
CACHED = "models--"  # how a folder of the hub's cache begins, before its organisation and its name
HALF = ".aria2"  # at the end of a name beside a file: that one has its full size, and holes
POINTER, POINTER_LIMIT = b"version https://git-lfs.github.com/spec/", 1024  # how one begins, and its bytes
SEARCHED = 16 << 20  # bytes of one in which is looked for what is wrong
STEM = re.compile(r"(For[A-Z]\w+|Model)$")  # at the end of names of architectures
MAX_PLACE = 200  # characters of where that stands
MAX_NAME = 100  # characters of a name that a file gives something, in a line
# Where Python's Infinity stands in published files, and says that there is no limit: of the steps of Mamba-2.
UNLIMITED = frozenset(("time_step_limit[1]", "mamba_dt_limit[1]"))


def refuse(path: Path, why: str) -> NoReturn:
    """Raise the one error of a checkpoint that cannot be loaded, which names the file."""
    raise CortexError(Code.MODEL_LOAD_FAILED, f"{path}: {why}", details={"file": str(path)})


def shown(name: str) -> str:
    """A name that a file gives something, as a line can have it."""
    name = name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}…"
    return name if name.isprintable() else ascii(name)


def those_known(known: Collection[str], unknown: str) -> str:
    """What is said of architectures that are known, where another stands: how many, and which are near."""
    by_stem = {STEM.sub("", name): name for name in [*known][::-1]}
    stem = STEM.sub("", unknown) if len(unknown) <= MAX_NAME else ""
    near = [by_stem[each] for each in get_close_matches(stem, by_stem)]
    called = f"; near by name are {', '.join(near)}" if near else ""
    return f"docs/configuration.md has the {len(known)} that are{called}"


def refuse_absent(path: Path, why: str = "is missing") -> NoReturn:
    """Refuse a file that is not there, or to which only a link is."""
    if path.is_symlink():
        why = "is a link to a file that is not there"
        if repository := repository_of(path):
            why += f": `neuron pull {repository}` fetches it"
    refuse(path, why)


def repository_of(path: Path) -> str:
    """The hub's name of the repository in whose cached copy `path` is; empty: it is in none."""
    found = (folder.name.split("--") for folder in path.parents if folder.name.startswith(CACHED))
    return next(("/".join(names[1:]) for names in found), "")


def open_file(path: Path) -> BinaryIO:
    """Open a regular file to be read; never waits for anybody.

    Raises:
        CortexError: MODEL_LOAD_FAILED naming the file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        refuse_absent(path)
    except (OSError, ValueError) as error:
        refuse(path, f"cannot be read: {getattr(error, 'strerror', error)}")
    found = os.fstat(fd)
    why = None
    if not stat.S_ISREG(found.st_mode):
        why = "is no regular file"
    elif found.st_size < POINTER_LIMIT and _begins(fd) == POINTER:
        why = "is a pointer of git-lfs, and not the file that it stands for, which `git lfs pull` fetches"
    elif os.path.exists(f"{path}{HALF}"):
        why = f"is a download that is not finished, as {path.name}{HALF} beside it says"
    if why is not None:
        os.close(fd)
        refuse(path, why)
    return os.fdopen(fd, "rb")


def _begins(fd: int) -> bytes:
    try:
        return os.pread(fd, len(POINTER), 0)
    except OSError:  # whoever reads it says so
        return b""


def read_bytes(path: Path) -> bytes:
    """All of a file.

    Raises:
        CortexError: MODEL_LOAD_FAILED, also when it is longer than FILE_LIMIT.
    """
    with open_file(path) as file:
        try:
            data = file.read(FILE_LIMIT + 1)
        except OSError as error:
            refuse(path, f"cannot be read: {error.strerror}")
    if len(data) > FILE_LIMIT:
        refuse(path, f"is larger than {FILE_LIMIT:,} bytes")
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
        CortexError: MODEL_LOAD_FAILED, also for JSON with NaN or Infinity in it, which JSON does not have;
            but for `UNLIMITED`.
    """
    return decode_json(path, read_bytes(path), kind)


def decode_json(path: Path, text: Any, kind: type[T], where: str = "") -> T:
    """JSON that stands in `path`, at `where` in it, as a `kind`; raises as `read_json` does."""
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        value, numbers = _as_python(bytes(text))
        if numbers and {*numbers.items()} <= {(place, inf) for place in UNLIMITED}:
            with suppress(msgspec.ValidationError):
                return msgspec.convert(value, kind)
        others = (each for each in numbers.items() if each[0] not in UNLIMITED or each[1] != inf)
        place, number = next(others, ("", 0.0))
        why = f"{place[:MAX_PLACE]} is {json.dumps(number)}, and JSON has no such number" if place else error
        refuse(path, f"has bad JSON{' in ' + repr(where) if where else ''}: {why}")


def _as_python(text: bytes) -> tuple[Any, dict[str, float]]:
    """JSON as Python reads it, which has more numbers; and those that are NaN or infinite, by where they are.
    None are found in what Python cannot read either, or what is too long to be looked through."""
    found: dict[str, float] = {}
    if len(text) > SEARCHED:
        return None, found
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return None, found
    waiting = [("", whole)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{place}.{name}".lstrip("."), each) for name, each in reversed(value.items())]
        elif isinstance(value, list):
            waiting += [(f"{place}[{i}]", each) for i, each in reversed(list(enumerate(value)))]
        elif isinstance(value, float) and not isfinite(value):
            found[place] = value
    return whole, found
