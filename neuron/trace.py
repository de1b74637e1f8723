"""Which request a line of the log is about, where the code that writes it knows nothing of requests."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

from ipc import logs

T = TypeVar("T")

_trace: ContextVar[str] = ContextVar("trace", default="")


def word(text: str) -> str:
    """A client's text as one word of a line of the log."""
    return text if text.isascii() and text.isprintable() and " " not in text else ascii(text)


def traced(trace: str, function: Callable[..., T], *args: object) -> T:
    """What `function` returns; lines that it writes to the log end with the client's id of the request."""
    token = _trace.set(trace)
    try:
        return function(*args)
    finally:
        _trace.reset(token)


class Traces(logging.Filter):
    """Gives every line of the log a `trace`: empty, or what it ends with."""

    def filter(self, record: logging.LogRecord) -> bool:
        trace = _trace.get()
        record.trace = f" trace={word(trace)}" if trace else ""
        return True


def log_to_stderr(level: str, style: logs.Style | None = None) -> None:
    """Have this process write its log as every process of a neuron does; `style` as in `ipc.logs`."""
    logs.log_to_stderr(
        level, "%(asctime)s %(levelname)s %(name)s %(message)s%(trace)s", style, Traces().filter
    )
