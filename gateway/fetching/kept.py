"""What was fetched and may be used again: agents send the same address with each turn of a conversation.

As a private cache of RFC 9111 has it, but for freshness that nobody spoke of, which is none: a file is used
as long as its host said that it may be, and then asked for again in a way that lets the host say that it is
the same still. Each account has its own: an address may be a secret that opens what is behind it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

DIRECTIVE = "cache-control"
LISTS = (DIRECTIVE, "vary")  # fields that may come several times, and then are one
VALIDATORS = {"etag": "If-None-Match", "last-modified": "If-Modified-Since"}
LONGEST = 86_400.0  # seconds that a file is used without a question, whatever its host says
OBJECT_BYTES = 1024  # about, of a file beside its text and data


@dataclass(frozen=True, slots=True)
class File:
    """What stands behind an address."""

    data: bytes
    kind: str  # the type that its host gives it; empty: none
    until: float = 0.0  # of the clock; before that nobody is asked
    validators: Mapping[str, str] | None = None  # fields of a request that asks whether it is the same still


class Kept:
    """The files used last, up to so many bytes together.

    Args:
        limit: bytes; 0: nothing is kept.
        clock: seconds that only grow.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._left, self._clock = limit, clock
        self._limit = limit
        self._files: OrderedDict[tuple[str, str], File] = OrderedDict()

    def find(self, account: str, url: str) -> File | None:
        """What an account had from there, fresh or not."""
        if (found := self._files.get((account, url))) is not None:
            self._files.move_to_end((account, url))
        return found

    def is_fresh(self, file: File) -> bool:
        """Whether nobody need be asked."""
        return self._clock() < file.until

    def keep(self, account: str, url: str, file: File, fields: Mapping[str, str]) -> None:
        """Take in a file that just came, as far as its host allows that, in place of what was there.

        Args:
            fields: of the answer, by their names in small letters.
        """
        self.forget(account, url)
        said = _directives(fields.get(DIRECTIVE, ""))
        validators = {asked: fields[name] for name, asked in VALIDATORS.items() if fields.get(name)}
        seconds = 0.0 if "no-cache" in said else _seconds(said.get("max-age")) - _seconds(fields.get("age"))
        file = replace(file, until=self._clock() + min(seconds, LONGEST), validators=validators)
        useless = seconds <= 0 and not validators
        varies = "*" in (each.strip() for each in fields.get("vary", "").split(","))
        if "no-store" in said or varies or useless or _size(url, file) > self._limit:
            return
        self._files[account, url] = file
        self._left -= _size(url, file)
        while self._left < 0:
            self.forget(*next(iter(self._files)))

    def forget(self, account: str, url: str) -> None:
        """Let go of what an account had from there."""
        if (gone := self._files.pop((account, url), None)) is not None:
            self._left += _size(url, gone)


def _size(url: str, file: File) -> int:
    """Bytes that are held; of what a host may make long, all."""
    said = sum(map(len, (file.validators or {}).values()))
    return OBJECT_BYTES + len(url) + len(file.data) + len(file.kind) + said


def _directives(field: str) -> dict[str, str]:
    """What `Cache-Control` says, by the names in small letters."""
    pairs = (each.partition("=") for each in field.lower().split(","))
    return {name.strip(): value.strip().strip('"') for name, _, value in pairs}


def _seconds(text: str | None) -> float:
    return float(text[:9]) if text and text.isascii() and text.isdigit() else 0.0
