"""Libraries that an install compiles and puts beside their sources, where it can."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

logger = logging.getLogger("workers.weights.built")


def find(folder: Path, stem: str) -> Path | None:
    """The library of that name; None: it was not built."""
    return next(filter(Path.exists, (folder / (stem + suffix) for suffix in EXTENSION_SUFFIXES)), None)


def load(path: Path, sources: Iterable[Path]) -> ctypes.CDLL | None:
    """The library at `path`; None, with a line in the log, where it is none or has other sources."""
    try:
        found = ctypes.CDLL(str(path))  # with the same libgomp as torch, and so with its threads
    except OSError as error:
        logger.warning("a compiled library cannot be loaded: %s", error)
        return None
    if (other := other_source(found, sources)) is not None:
        logger.warning(
            "%s was built from another %s than the one beside it, and is not used: what it does takes longer "
            "until it is built again (pip install -e . does that)",
            path,
            other,
        )
        return None
    return found


def other_source(found: ctypes.CDLL, sources: Iterable[Path]) -> str | None:
    """The first source that the library was not built from as it is here; None: there is no such."""
    for file in filter(Path.exists, sources):  # an installed package has none
        text = getattr(found, f"{file.stem}_source", None)
        if text is None:
            return file.name
        text.restype = ctypes.c_char_p
        if text() not in (b"", file.read_bytes()):  # empty: its compiler could not keep it
            return file.name
    return None
