"""The pages of a KV pool: who uses each, what it holds, and which to give away next. No tensor is here.

A full page has a hash that stands for its tokens and for all the tokens before them, so sequences that have
the same hash can read the same page. Such a page outlives its sequences: when nobody uses it any longer it
counts as free, and keeps what it holds until its place is needed and no other was left longer ago.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from hashlib import blake2b

from ipc.worker_messages import PAGE_SIZE

HASH_BYTES = 16


def extend_hashes(hashes: list[bytes], token_ids: array[int], salt: str) -> None:
    """Add the hashes of those full pages of `token_ids` (uint32) that `hashes` does not have yet.

    A hash is BLAKE2b, 16 bytes, of the one before it and the page's token ids as little-endian uint32. The
    one before the first page is that of the salt, so sequences with different salts have no page in common.
    """
    parent = hashes[-1] if hashes else blake2b(salt.encode(), digest_size=HASH_BYTES).digest()
    for start in range(len(hashes) * PAGE_SIZE, len(token_ids) - PAGE_SIZE + 1, PAGE_SIZE):
        tokens = token_ids[start : start + PAGE_SIZE].tobytes()
        parent = blake2b(parent + tokens, digest_size=HASH_BYTES).digest()
        hashes.append(parent)


class PagePool:
    """Page numbers `0..total-1`. Each is empty, in use by one or more, or idle: cached, and used by none."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._empty = list(range(total - 1, -1, -1))  # a stack: the page freed last is the warmest in cache
        self._idle: OrderedDict[int, None] = OrderedDict()  # the one left longest ago comes first
        self._users = [0] * total
        self._hash_of: dict[int, bytes] = {}  # of the cached pages
        self._page_of: dict[bytes, int] = {}  # the same, looked up the other way
        self._news: dict[bytes, bool] = {}  # hashes that came (True) and went since the last `take_news`

    @property
    def num_free(self) -> int:
        """Pages that `allocate` can give; the idle ones are among them."""
        return len(self._empty) + len(self._idle)

    @property
    def num_cached(self) -> int:
        """Pages that can be shared, in use or idle."""
        return len(self._page_of)

    def allocate(self, count: int) -> list[int]:
        """Hand out `count` pages to one user; idle ones lose what they hold, those left longest ago first.

        Raises:
            ValueError: fewer are free. None is taken.
        """
        if count > self.num_free:
            raise ValueError(f"asked for {count} pages, {self.num_free} of {self.total} are free")
        pages = []
        for _ in range(count):
            page = self._empty.pop() if self._empty else self._forget_oldest()
            self._users[page] = 1
            pages.append(page)
        return pages

    def find(self, hashes: list[bytes], limit: int) -> list[int]:
        """The pages of the first hashes, at most `limit`, as far as they are cached without a gap."""
        pages = []
        for digest in hashes[:limit]:
            if (page := self._page_of.get(digest)) is None:
                break
            pages.append(page)
        return pages

    def count_idle(self, pages: list[int]) -> int:
        """How many of these pages `share` takes from the free ones."""
        return sum(not self._users[page] for page in pages)

    def share(self, pages: list[int]) -> None:
        """Add a user to each of these cached pages, which `find` named. Nobody may write into them."""
        for page in pages:
            if not self._users[page]:
                del self._idle[page]
            self._users[page] += 1

    def cache(self, page: int, digest: bytes) -> None:
        """Say that a page in use is full and computed. One that holds what another does stays private."""
        if digest not in self._page_of:
            self._page_of[digest] = page
            self._hash_of[page] = digest
            self._tell(digest, True)

    def free(self, pages: list[int]) -> None:
        """Take one user from each page. The last page of a sequence is evicted before those it continues."""
        for page in reversed(pages):
            self._users[page] -= 1
            if not self._users[page]:
                if page in self._hash_of:
                    self._idle[page] = None
                else:
                    self._empty.append(page)

    def clear(self) -> None:
        """Forget all that idle pages hold."""
        while self._idle:
            self._empty.append(self._forget_oldest())

    def take_news(self) -> tuple[list[bytes], list[bytes]]:
        """(hashes that can be found now, hashes that no longer can), against the last call."""
        news, self._news = self._news, {}
        cached = [digest for digest, came in news.items() if came]
        return cached, [digest for digest, came in news.items() if not came]

    def _forget_oldest(self) -> int:
        page, _ = self._idle.popitem(last=False)
        digest = self._hash_of.pop(page)
        del self._page_of[digest]
        self._tell(digest, False)
        return page

    def _tell(self, digest: bytes, came: bool) -> None:
        if self._news.pop(digest, came) == came:  # the opposite, untold, is undone and never was
            self._news[digest] = came
