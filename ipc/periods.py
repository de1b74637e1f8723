"""Lengths of time as people and clients write them: seconds, or text such as `5m`."""

from __future__ import annotations

import re
from math import inf, isfinite

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PERIOD = re.compile(r"([+-]?)((?:\d+(?:\.\d+)?\s*(?:ns|us|µs|ms|s|m|h|d))+|\d+(?:\.\d+)?)", re.A | re.I)
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zµ]+)", re.A | re.I)


def parse_period(given: str | float) -> float:
    """Seconds meant by `given`: a number of them, or text such as `90`, `5m` or `1h30m`, as Go writes
    durations and clients of Ollama its `keep_alive`. Below 0 is for ever, and comes back as -1.

    Raises:
        ValueError: when it is none, with a sentence for people.
    """
    if isinstance(given, str):
        match = _PERIOD.fullmatch(given.strip())
        if match is None:
            raise ValueError("Expected a time such as 90s, 15m, 1h30m or a number of seconds")
        sign, text = match.groups()
        parts = _PART.findall(text)
        seconds = (
            sum(float(number) * _UNITS[unit.lower()] for number, unit in parts) if parts else float(text)
        )
        given = -seconds if sign == "-" else seconds
    if not isfinite(given) and given != -inf:
        raise ValueError("Expected a finite number of seconds")
    return -1.0 if given < 0 else float(given)
