"""What this neuron has written to its log lately, for those who cannot read it where it is written.

It is the stream that the log goes to, so each line is made once. Where less than `INFO` goes there, it is a
second one, which has that as well: what became of a request is known under `cortex up`, too. Workers write to
the same log by themselves: their lines are not here.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import TextIO

from ipc.logs import Lines

LINES = 5000  # that are kept
LONGEST = 4000  # characters of one of them
TELL_SECONDS = 0.1  # between two looks at what is new, for those who follow

Tell = Callable[[list[str]], None]


class RecentLog:
    """Passes lines on, and keeps the last ones. Lines may come from any thread.

    Args:
        stream: where they go; None: nowhere else.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._lines: deque[str] = deque(maxlen=LINES)
        self._lock = threading.Lock()  # of these two
        self._count = 0  # of all lines that ever came
        self._followers: dict[Hashable, tuple[re.Pattern[str] | None, Tell]] = {}
        self._told = 0  # of these, that followers have had
        self._telling: asyncio.TimerHandle | None = None

    @classmethod
    def of_this_process(cls) -> RecentLog:
        """Has what this process logs from now on; `log_to_stderr` was called."""
        root = logging.getLogger()
        [written] = root.handlers
        if root.level <= logging.INFO:
            recent = cls(sys.stderr)
            written.setStream(recent)
            return recent
        recent = cls(None)
        kept = Lines(recent)
        kept.setFormatter(written.formatter)
        for each in written.filters:
            kept.addFilter(each)
        written.setLevel(root.level)
        root.setLevel(logging.INFO)
        root.addHandler(kept)
        return recent

    def write(self, text: str) -> None:
        """As `logging` writes: an event, of one line or more, and its end."""
        if self._stream is not None:
            self._stream.write(text)
        lines = [line[:LONGEST] for line in text.splitlines()]
        with self._lock:
            self._lines += lines
            self._count += len(lines)

    def flush(self) -> None:
        if self._stream is not None:
            self._stream.flush()

    def last(self, count: int, request: str = "") -> list[str]:
        """The last so many lines, or of those about a request."""
        about = _about(request)
        with self._lock:
            lines = list(self._lines)
        found = lines if about is None else [line for line in lines if about.search(line)]
        return found[max(len(found) - count, 0) :]

    def follow(self, who: Hashable, request: str, tell: Tell) -> None:
        """Tell `who` of each new line, or of those about a request, until `leave`; called in the loop."""
        if not self._followers:
            self._told = self._count
            self._tell_later()
        self._followers[who] = _about(request), tell

    def leave(self, who: Hashable) -> bool:
        """Tell `who` no more; whether it followed."""
        followed = self._followers.pop(who, None) is not None
        if not self._followers and self._telling is not None:
            self._telling.cancel()
            self._telling = None
        return followed

    @property
    def followers(self) -> list[Hashable]:
        return list(self._followers)

    def _tell_later(self) -> None:
        self._telling = asyncio.get_running_loop().call_later(TELL_SECONDS, self._tell)

    def _tell(self) -> None:
        self._tell_later()
        with self._lock:
            count, lines = self._count, list(self._lines)
        new = min(count - self._told, len(lines))
        self._told = count
        if not new:
            return
        lines = lines[len(lines) - new :]
        for about, tell in list(self._followers.values()):
            if found := lines if about is None else [line for line in lines if about.search(line)]:
                tell(found)


def _about(request: str) -> re.Pattern[str] | None:
    """What lines about a request have in them; None: any line will do."""
    return re.compile(rf'(?<![^\s="]){re.escape(request)}(?![^\s",])') if request else None
