"""The log of every process: lines of text, or one JSON object a line, as the daemon's configuration says.

A daemon's children have it from the environment, so that all of them write alike.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import asyncio

Style = Literal["text", "json"]

VARIABLE = "CORTEX_LOG_FORMAT"  # of the environment: what children write
GATHER_SECONDS = 0.1
AT_ONCE = select.PIPE_BUF  # bytes: a pipe takes them whole, whoever else writes to it
ESCAPED = 10  # bytes that may stand for a character that stderr cannot write (`\U0001f600`)

_SECRET = "sk-cortex-"  # begins API keys, and clients send these for addresses and for ids, too
_KEY = re.compile(rf"({_SECRET})[\w-]+")
_NAMED = re.compile(r"(\w+)=%[-#0+]*\d*(?:\.\d+)?[sdrgfxei](?=\s|$)")


class Event(logging.LogRecord):
    """What is written of one, without its file, line and thread: to find these out is most of its cost."""

    # What nobody found out is there for whoever formats what was not written by us.
    _EMPTY = dict.fromkeys(("pathname", "filename", "module"), "") | {"lineno": 0, "relativeCreated": 0.0}
    _EMPTY |= dict.fromkeys(("funcName", "thread", "threadName", "processName", "taskName", "exc_text"))
    _EMPTY |= dict.fromkeys(("name", "levelno", "levelname", "msg", "args", "exc_info", "stack_info"))
    _EMPTY |= dict.fromkeys(("created", "msecs", "process"))

    def __init__(
        self,
        name: str,
        level: int,
        pathname: str,
        lineno: int,
        msg: object,
        args: Any,
        exc_info: Any,
        func: str | None = None,
        sinfo: str | None = None,
    ) -> None:
        if args and len(args) == 1 and args[0] and isinstance(args[0], Mapping):
            (args,) = args  # by name
        known = self.__dict__ = self._EMPTY.copy()
        known["name"], known["levelno"], known["levelname"] = name, level, logging.getLevelName(level)
        known["msg"], known["args"] = msg, args
        known["exc_info"], known["stack_info"] = exc_info, sinfo
        known["created"] = created = time.time()
        known["msecs"] = int(created % 1 * 1000) + 0.0
        known["process"] = _pid()

    def saying(self, message: str, args: tuple[Any, ...]) -> Event:
        """Another one of the same moment, for a fifth of what it would take anew."""
        other = Event.__new__(Event)
        other.__dict__ = self.__dict__ | {"msg": message, "args": args}
        return other


def _without_keys(text: str) -> str:
    return _KEY.sub(r"\1***", text) if _SECRET in text else text


def hide_keys(record: logging.LogRecord) -> bool:
    """A filter for what others write: nobody's API key is in it."""
    if _SECRET in (text := record.getMessage()):
        record.msg, record.args = _without_keys(text), ()
    return True


class Lines(logging.StreamHandler):
    """Writes each event at once, and those that come `together` with few writes. Nobody's API key is in them.

    What cannot be written is `handleError`'s, whenever that turns out.
    """

    def emit(self, record: logging.LogRecord) -> None:
        self._emit((record,))

    def together(self, records: Iterable[logging.LogRecord]) -> None:
        """As `handle` of each of them, with few writes, which other threads wait for."""
        with self.lock:
            self._emit(filter(self.filter, records))

    def _emit(self, records: Iterable[logging.LogRecord]) -> None:
        held, size = "", 0
        last: logging.LogRecord | None = None
        try:
            for record in records:
                try:
                    text = _without_keys(self.format(record) + self.terminator)
                except Exception:
                    self.handleError(record)
                    continue
                its_size = _most_bytes(text)
                if held and size + its_size > AT_ONCE:
                    self._write(held, last)
                    held, size = "", 0
                held, size, last = held + text, size + its_size, record
        finally:  # a filter may raise
            if last is not None:
                self._write(held, last)

    def _write(self, text: str, last: logging.LogRecord) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except Exception:
            self.handleError(last)


class Gathered:
    """Lines about what happens often and is no news: those of a moment are written together, in their order.

    A line by itself takes several times as long, most of it because the processor has forgotten the code for
    it since the last one.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._unwritten: list[tuple[str, tuple[Any, ...]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def info(self, message: str, *args: Any) -> None:
        """As of a logger, in the running loop."""
        self._unwritten.append((message, args))
        if self._closed:
            self.write()
        elif self._timer is None:
            import asyncio  # where a loop runs: workers have none, and it is a third of their start

            self._timer = asyncio.get_running_loop().call_later(GATHER_SECONDS, self.write)

    def close(self) -> None:
        """Write what there is, and from now on each line at once: the loop may end."""
        self._closed = True
        self.write()

    def write(self) -> None:
        """Write what there is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        unwritten, self._unwritten = self._unwritten, []
        if not unwritten or not self._logger.isEnabledFor(logging.INFO):
            return
        handlers = [handler for handler in _handlers(self._logger) if handler.level <= logging.INFO]
        first = Event(self._logger.name, logging.INFO, "", 0, "", (), None)
        events = [first.saying(message, args) for message, args in unwritten]
        for handler in handlers:
            if isinstance(handler, Lines):
                handler.together(events)
            else:
                for event in events:
                    handler.handle(event)


def _handlers(logger: logging.Logger | None) -> Iterator[logging.Handler]:
    """Those that have what a logger is told."""
    while logger is not None:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None


class TextLines(logging.Formatter):
    """Writes lines of text. What is the same for all lines of one second is made once."""

    _second, _begins = -1, ""  # the last one that was written, and how

    def format(self, record: logging.LogRecord) -> str:
        """As `logging.Formatter`."""
        if record.exc_info or record.stack_info:
            return super().format(record)
        record.asctime, record.message = self.formatTime(record), record.getMessage()
        return self._fmt % record.__dict__

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """As `logging.Formatter` without a format of its own for dates."""
        if (second := int(record.created)) != self._second:
            self._begins = time.strftime(self.default_time_format, self.converter(second))
            self._second = second
        return self.default_msec_format % (self._begins, record.msecs)


class JSONLines(logging.Formatter):
    """Writes `time` (UTC), `level`, `logger`, `event`, and each `name=value` of a line as a member.

    Args:
        members: further ones, of every line.
    """

    def __init__(self, **members: Any) -> None:
        super().__init__()
        self._members = members

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": at.replace("+00:00", "Z"), "level": record.levelname, "logger": record.name}
        line |= {"pid": record.process} | self._members
        event, names, args = None, (), record.args
        if isinstance(record.msg, str) and isinstance(args, tuple):
            event, names = _read(record.msg)
        if event is None or len(args) < len(names):
            line["event"] = record.getMessage()
        else:
            unnamed = len(args) - len(names)
            line["event"] = event % args[:unnamed] if args else event
            line |= dict(zip(names, args[unnamed:], strict=True))
        if trace := getattr(record, "trace", "").strip().removeprefix("trace="):
            line["trace"] = trace
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to_stderr(
    level: str,
    text: str,
    style: Style | None = None,
    filter: Callable[[logging.LogRecord], bool] | None = None,
    **members: Any,
) -> None:
    """Have this process write its log, and its children theirs.

    Args:
        level: of which lines are written, at least.
        text: the format of lines of text.
        style: None: as the process that started this one.
        filter: sees each line first.
        members: of JSON, of every line.
    """
    if style is not None:
        os.environ[VARIABLE] = style
    handler = Lines(sys.stderr)
    as_json = os.environ.get(VARIABLE) == "json"
    handler.setFormatter(JSONLines(**members) if as_json else TextLines(text))
    if filter is not None:
        handler.addFilter(filter)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.setLogRecordFactory(Event)
    logging._srcfile = None  # nobody looks for the caller, as logging's manual has it


def _most_bytes(text: str) -> int:
    return len(text) if text.isascii() else ESCAPED * len(text)


_pid = cache(os.getpid)  # the kernel is asked once a process
os.register_at_fork(after_in_child=_pid.cache_clear)


@lru_cache(1024)
def _read(message: str) -> tuple[str | None, tuple[str, ...]]:
    """What a message says before its named values, and their names; (None, ()) of one that is not made so."""
    first = _NAMED.search(message)
    event, rest = (message[: first.start()], message[first.start() :]) if first else (message, "")
    names = tuple(_NAMED.findall(rest))
    if _NAMED.sub("", rest).strip() or len(set(names)) != len(names):
        return None, ()
    return event.strip(), names
