"""What neurons say, for those who may not know of every model."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import TypeVar

T = TypeVar("T")

ANOTHER = "another model"


def discreet(told: T, models: Collection[str], may_use: Callable[[str], bool]) -> T:
    """The same without the names of some models: text has other words in their place, a mapping no such key.

    A name within a longer one is that one's.

    Args:
        models: all of them.
        may_use: whether who asks may know of a model.
    """
    if not told:
        return told
    if isinstance(told, str):
        there = [name for name in models if name in told and not may_use(name)]
        there.sort(key=len, reverse=True)
        names = "|".join(map(re.escape, there))
        return re.sub(rf"(?<![\w/.@-])(?:{names})(?![\w/-]|[.:@]\w)", ANOTHER, told) if there else told
    if isinstance(told, dict):
        return {
            key: discreet(value, models, may_use)
            for key, value in told.items()
            if key not in models or may_use(key)
        }
    if isinstance(told, list):
        return [discreet(value, models, may_use) for value in told]
    return told
