"""Stop strings: they end an answer and never appear in it, not even in part."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache


class StopStrings:
    """Watches text as it streams for the first of several strings that is complete.

    Where two are complete at the same character, the longer one counts. What may yet become a stop string is
    held back. An automaton for each string (Knuth, Morris and Pratt's) makes the outcome independent of how
    the text was cut, and the time linear.

    Args:
        stops: the strings, none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._borders = [_borders(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)  # characters of each that the text ends with
        self._first = re.compile("|".join(sorted({re.escape(stop[0]) for stop in self._stops})))
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Take more text.

        Returns:
            Text that no stop string can reach any more, and the stop string that was hit, which ends it.
        """
        if not self._held and not self._first.search(text):
            return text, None
        text, start = self._held + text, len(self._held)
        for i in range(start, len(text)):
            for n, stop in enumerate(self._stops):
                if self._advance(n, text[i]) == len(stop):
                    self._held = ""
                    return text[: i + 1 - len(stop)], stop
        safe = len(text) - max(self._matched)
        self._held = text[safe:]
        return text[:safe], None

    def finish(self) -> str:
        """What was held back, once it is known that nothing follows it directly; what comes is a new text."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return held

    def _advance(self, n: int, character: str) -> int:
        stop, borders, matched = self._stops[n], self._borders[n], self._matched[n]
        while matched and stop[matched] != character:
            matched = borders[matched - 1]
        self._matched[n] = matched + (stop[matched] == character)
        return self._matched[n]


@lru_cache(1024)  # each of many choices watches for the same ones
def _borders(stop: str) -> list[int]:
    """For each prefix of `stop`, the length of its longest proper prefix that also ends it."""
    borders, matched = [0], 0
    for character in stop[1:]:
        while matched and stop[matched] != character:
            matched = borders[matched - 1]
        matched += stop[matched] == character
        borders.append(matched)
    return borders
