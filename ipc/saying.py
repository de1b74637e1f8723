"""What a command says, where its terminal has not all letters, or its disk no room."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def saying(program: str) -> Iterator[None]:
    """Run a command of `program`: letters that cannot be shown are escaped, and that something cannot be
    written is one line, and exit code 1. Whoever reads no further is told nothing.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest when it ends
        if not isinstance(error, BrokenPipeError):
            print(f"{program}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
