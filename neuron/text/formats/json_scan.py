"""Reads a JSON value as it is being written: where it ends, and what can only have been meant."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from neuron.text.tags import SPACE, TOKEN

_IN_STRING = re.compile(rf'["\\\x00-\x1f{TOKEN}]')
_OUTSIDE = re.compile(r'["{}\[\]]|[^\s\w:,.+\-]')  # what opens and closes, and what no JSON has here
_SCALAR = re.compile(r"[\w.+\-]*")
_CLOSES = {"{": "}", "[": "]"}


class JsonScan:
    """Scans one value, however its text was cut, in time that is linear in its length.

    Line breaks and tabs that stand in a string as they are become the escapes that JSON wants there.

    Args:
        opened: brackets that are open already.

    Attributes:
        whole: the value is complete.
        stuck: what follows is no JSON, so the value is over without being complete.
    """

    __slots__ = ("_closers", "_escaped", "_in_string", "_started", "stuck", "whole")

    def __init__(self, opened: str = "") -> None:
        self.whole = self.stuck = False
        self._closers = [_CLOSES[bracket] for bracket in opened]
        self._started = bool(opened)
        self._in_string = self._escaped = False

    def read(self, text: str, at: int, ended: bool = False) -> tuple[str, int]:
        """Read on in `text` from `at`, as far as the value goes.

        Args:
            ended: nothing follows `text`.

        Returns:
            What was read, mended, and where in `text` the scan stands.
        """
        if not self._started:
            if at == len(text):
                return "", at
            self._started = True
            if text[at] not in '"{[':
                return self._read_scalar(text, at, ended)
        elif not self._closers and not self._in_string:
            return self._read_scalar(text, at, ended)
        pieces: list[str] = []
        start = at
        while not self.whole:
            if self._escaped and at < len(text):
                at, self._escaped = at + 1, False
            found = (_IN_STRING if self._in_string else _OUTSIDE).search(text, at)
            if found is None:
                at = len(text)
                break
            at, mark = found.end(), found[0]
            if mark == '"':
                self._in_string = not self._in_string
                self.whole = not self._in_string and not self._closers
            elif mark == "\\" and self._in_string:
                self._escaped = True
            elif self._in_string:
                pieces += (text[start : at - 1], "" if mark == TOKEN else escaped(mark))
                start = at
            elif mark in _CLOSES:
                self._closers.append(_CLOSES[mark])
            elif mark in "}]":
                self._closers.pop()
                self.whole = not self._closers
            else:
                at, self.stuck = at - 1, True
                break
        return "".join([*pieces, text[start:at]]), at

    def skip(self) -> None:
        """Go on behind the next character, which is no JSON."""
        self.stuck, self._escaped = False, True

    def _read_scalar(self, text: str, at: int, ended: bool) -> tuple[str, int]:
        """A number, true, false or null: it ends where something else begins."""
        end = end_of(_SCALAR, text, at)
        self.whole = end < len(text) or ended
        return text[at:end], end

    def ending(self, said: str) -> str | None:
        """What is missing at the end of the value, of which `said` is all that was read; None where it could
        be one thing or another."""
        if self._in_string or not is_json(missing := said + "".join(reversed(self._closers))):
            return None
        return missing[len(said) :]


def is_json(text: str) -> bool:
    """Whether it is one JSON value."""
    try:
        msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError):
        return False
    return True


def escaped(character: str) -> str:
    """It, as it stands in a string of JSON."""
    return msgspec.json.encode(character)[1:-1].decode()


def mended(text: str) -> str:
    """One JSON value, with what can only have been meant."""
    scan = JsonScan()
    said, at = scan.read(text.strip(SPACE), 0, ended=True)
    return said + (scan.ending(said) or "") + text.strip(SPACE)[at:]


def object_in(text: str) -> str | None:
    """The object in JSON that may hold it as an object, as text, or not at all; None where it is none."""
    try:
        value: Any = msgspec.json.decode(text or "null")
        if isinstance(value, str):
            text = mended(value)
            value = msgspec.json.decode(text or "null")
    except (msgspec.MsgspecError, RecursionError):
        return None
    return "{}" if value is None else text if isinstance(value, dict) else None


def end_of(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where that ends which `pattern` matches from `at` on: there, where it does not."""
    found = pattern.match(text, at)
    return at if found is None else found.end()
