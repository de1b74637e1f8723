"""What neurons say, for those who may not know of every model."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import TypeVar

T = TypeVar("T")

ANOTHER = "another model"
HELD = "held"  # in details: the one mapping whose keys are models

# How neurons speak of models that hold memory or leave. A name that is a word, too, is one only there and in
# quotes: all else is what the text says.
_BEFORE = "(?:^|" + "|".join(f"(?<={each})" for each in (r"[;:,] ", r"\(", "that ", "parked ")) + ")"
_AFTER = r"(?=[,)]| (?:holds?|had|would|needs|does not)\b| \d[\d.]* GiB)"
_QUOTES = "['\"`]"


def discreet(told: T, models: Collection[str], may_use: Callable[[str], bool]) -> T:
    """The same without the names of some models: text has other words in their place, and of who holds memory
    they are left out.

    A name within a longer one is that one's.

    Args:
        models: all of them.
        may_use: whether who asks may know of a model.
    """
    if not told:
        return told
    if isinstance(told, str):
        there = [name for name in models if name in told and not may_use(name)]
        return _pattern(there).sub(ANOTHER, told) if there else told
    if isinstance(told, dict):
        found = {key: discreet(value, models, may_use) for key, value in told.items()}
        if isinstance(held := found.get(HELD), dict):
            found[HELD] = {who: sizes for who, sizes in held.items() if _may_know(who, models, may_use)}
        return found
    if isinstance(told, list):
        return [discreet(value, models, may_use) for value in told]
    return told


def _may_know(who: str, models: Collection[str], may_use: Callable[[str], bool]) -> bool:
    """Whether one may know of who holds memory: a model, or what is said with a model's name."""
    return may_use(who) if who in models else discreet(f"{who}, ", models, may_use) == f"{who}, "


def _pattern(names: list[str]) -> re.Pattern[str]:
    names = sorted(names, key=len, reverse=True)
    words = "|".join(name for name in names if name.isalpha())
    others = "|".join(re.escape(name) for name in names if not name.isalpha())
    found = []
    if others:
        found.append(rf"(?<![\w/.@-])(?:{others})(?![\w/-]|[.:@]\w)")
    if words:
        found += [rf"{_BEFORE}(?:{words}){_AFTER}", rf"(?<={_QUOTES})(?:{words})(?={_QUOTES})"]
    return re.compile("|".join(found))
