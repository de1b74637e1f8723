"""Which prompts a worker holds the pages of, by what clients call them.

A client that has no tokenizer cannot tell which pages its prompt has. So it gives the prompt a name (`Mark`),
the worker says which page the marked part ends with, and clients are told for as long as that page is cached.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

LIMIT = 8192  # marks that are remembered; of more the oldest are forgotten


class Prefixes:
    """The marks of one epoch.

    Args:
        limit: of them.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._held: OrderedDict[bytes, tuple[int, bytes]] = OrderedDict()  # tokens and last page of each mark
        self._at: dict[bytes, set[bytes]] = {}  # the same by page
        self._news: dict[bytes, int] = {}

    def note(self, mark: bytes, tokens: int, page: bytes) -> None:
        """So many tokens, of which the last page has that hash, are computed, or will be in a moment."""
        if (known := self._held.get(mark)) is not None:
            if known == (tokens, page):
                self._held.move_to_end(mark)
                return
            self._drop(mark)
        self._held[mark] = tokens, page
        self._at.setdefault(page, set()).add(mark)
        self._news[mark] = tokens
        if len(self._held) > self._limit:
            self._drop(next(iter(self._held)))

    def forget(self, pages: Iterable[bytes]) -> None:
        """Those pages are no longer there, or never came."""
        if self._at:
            for page in pages:
                for mark in list(self._at.get(page, ())):
                    self._drop(mark)

    def tokens(self, mark: bytes) -> int:
        """That are held up to there."""
        known = self._held.get(mark)
        return known[0] if known is not None else 0

    def whole(self) -> dict[bytes, int]:
        """Tokens by mark."""
        return {mark: tokens for mark, (tokens, _) in self._held.items()}

    def take_news(self) -> dict[bytes, int]:
        """What is not as it was at the last call; 0: it is no longer held."""
        news, self._news = self._news, {}
        return news

    def _drop(self, mark: bytes) -> None:
        _, page = self._held.pop(mark)
        marks = self._at[page]
        marks.discard(mark)
        if not marks:
            del self._at[page]
        self._news[mark] = 0
