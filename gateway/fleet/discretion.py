"""What neurons say, for those who may not know of every model."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TypeVar

T = TypeVar("T")

ANOTHER = "another model"


def discreet(told: T, hidden: Collection[str]) -> T:
    """The same without the names of some models: text has other words in their place, a mapping no such key.

    A name within a longer one is that one's.
    """
    if isinstance(told, str):
        there = sorted((name for name in hidden if name in told), key=len, reverse=True)
        names = "|".join(map(re.escape, there))
        return re.sub(rf"(?<![\w/.@-])(?:{names})(?![\w/-]|[.:@]\w)", ANOTHER, told) if there else told
    if isinstance(told, dict):
        return {key: discreet(value, hidden) for key, value in told.items() if key not in hidden}
    if isinstance(told, list):
        return [discreet(value, hidden) for value in told]
    return told
