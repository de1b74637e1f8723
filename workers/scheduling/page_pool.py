"""Pages of memory: who uses each, what it holds, and which to give away next. No tensor is here.

A full page has a hash that stands for its tokens and for all the tokens before them, so sequences that have
the same hash can read the same page. Such a page outlives its sequences: when nobody uses it any longer it
counts as free, and keeps what it holds until its place is needed and no other was left longer ago. Each group
of layers has pages of its own for the same tokens, so a page is looked up by its group and its hash.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b

from ipc.worker_messages import PAGE_SIZE, PlacedImage

HASH_BYTES = 16


def extend_hashes(
    hashes: list[bytes],
    token_ids: array[int],
    salt: str,
    adapter: int = 0,
    images: Sequence[PlacedImage] = (),
) -> None:
    """Add the hashes of those full pages of `token_ids` (uint32) that `hashes` does not have yet.

    A hash is BLAKE2b, 16 bytes, of the one before it and the page's token ids as little-endian uint32. The
    one before the first page is that of the salt, with the number of the adapter as BLAKE2b's "person", so
    sequences with different salts or adapters have no page in common. Of an image all tokens are the same:
    in a page with one, its digest follows the ids.
    """
    begun = len(hashes) * PAGE_SIZE
    if len(token_ids) < begun + PAGE_SIZE:
        return
    if hashes:
        parent = hashes[-1]
    else:
        person = adapter.to_bytes(4, "little")
        parent = blake2b(salt.encode(), digest_size=HASH_BYTES, person=person).digest()
    data, size = token_ids[begun:].tobytes(), PAGE_SIZE * token_ids.itemsize
    for place, start in enumerate(range(begun, len(token_ids) - PAGE_SIZE + 1, PAGE_SIZE)):
        tokens = data[place * size : (place + 1) * size]
        for image in images:
            if image.start < start + PAGE_SIZE and start < image.end:
                tokens += image.digest
        parent = blake2b(parent + tokens, digest_size=HASH_BYTES).digest()
        hashes.append(parent)


class PagePool:
    """Page numbers `0..total-1`. Each is empty, in use by one or more, or idle: cached, and used by none.

    Args:
        total: pages.
        groups: of layers, that share them.
        leaving: told of each page that loses what it holds to somebody else: page, group and hash.
    """

    def __init__(
        self, total: int, groups: int = 1, leaving: Callable[[int, int, bytes], None] | None = None
    ) -> None:
        self.total = total
        self._leaving = leaving
        self._empty = list(range(total - 1, -1, -1))  # a stack: the page freed last is the warmest in cache
        self._idle: OrderedDict[int, None] = OrderedDict()  # the one left longest ago comes first
        self._users = [0] * total
        self._cached: dict[int, tuple[int, bytes, bytes]] = {}  # group, hash, hash of the page before
        self._page_of: list[dict[bytes, int]] = [{} for _ in range(groups)]  # the same, looked up by hash
        self._news: dict[bytes, bool] = {}  # hashes that came (True) and went since the last `take_news`

    @property
    def num_free(self) -> int:
        """Pages that `allocate` can give; the idle ones are among them."""
        return len(self._empty) + len(self._idle)

    @property
    def num_cached(self) -> int:
        """Pages that can be shared, in use or idle."""
        return len(self._cached)

    def allocate(self, count: int) -> list[int]:
        """Hand out `count` pages to one user; idle ones lose what they hold, those left longest ago first.

        Raises:
            ValueError: fewer are free. None is taken.
        """
        if count > self.num_free:
            raise ValueError(f"asked for {count} pages, {self.num_free} of {self.total} are free")
        pages = []
        for _ in range(count):
            if not self._empty:
                page, _ = self._idle.popitem(last=False)
                if self._leaving is not None:
                    self._leaving(page, *self._cached[page][:2])
                self._forget(page)
            else:
                page = self._empty.pop()
            self._users[page] = 1
            pages.append(page)
        return pages

    def find(self, hashes: list[bytes], limit: int, group: int = 0) -> list[int]:
        """The pages of the first hashes, at most `limit`, as far as they are cached without a gap."""
        pages, page_of = [], self._page_of[group]
        for digest in hashes[:limit]:
            if (page := page_of.get(digest)) is None:
                break
            pages.append(page)
        return pages

    def cached(self, group: int) -> Mapping[bytes, int]:
        """The pages of a group that can be shared, by their hashes."""
        return self._page_of[group]

    def count_idle(self, pages: Iterable[int]) -> int:
        """How many of these pages `share` takes from the free ones."""
        return sum(not self._users[page] for page in pages)

    def share(self, pages: Iterable[int]) -> None:
        """Add a user to each of these cached pages. Nobody may write into them."""
        for page in pages:
            if not self._users[page]:
                del self._idle[page]
            self._users[page] += 1

    def cache(self, pages: Iterable[int], hashes: Iterable[bytes], parent: bytes, group: int = 0) -> None:
        """Say that pages in use are full and computed. One that holds what another does stays private.

        Args:
            pages: that follow each other in a sequence. A negative number is none.
            hashes: theirs.
            parent: the hash of the page before them.
        """
        page_of = self._page_of[group]
        for page, digest in zip(pages, hashes, strict=True):
            if page >= 0 and digest not in page_of:
                page_of[digest] = page
                self._cached[page] = (group, digest, parent)
                if group == 0:
                    self._tell(digest, True)
            parent = digest

    def free(self, pages: Iterable[int]) -> None:
        """Take one user from each page. Of the idle ones, the first of these are evicted first."""
        for page in pages:
            self._users[page] -= 1
            if not self._users[page]:
                if page in self._cached:
                    self._idle[page] = None
                else:
                    self._empty.append(page)

    def discard(self, digest: bytes, group: int) -> None:
        """Forget what an idle page holds that is not worth keeping."""
        page = self._page_of[group].get(digest)
        if page in self._idle:
            del self._idle[page]
            self._forget(page)
            self._empty.append(page)

    def clear(self) -> None:
        """Forget all that idle pages hold."""
        for page in self._idle:
            self._forget(page)
            self._empty.append(page)
        self._idle.clear()

    def resize(self, total: int) -> None:
        """Hand out the first `total` pages from now on. Nobody may use one behind them."""
        if total < self.total:
            if any(self._users[total:]):
                raise ValueError(f"pages behind the first {total} are in use")
            for page in [page for page in self._cached if page >= total]:
                del self._idle[page]
                self._forget(page)
            self._empty = [page for page in self._empty if page < total]
            del self._users[total:]
        else:
            self._users += [0] * (total - self.total)
            self._empty[:0] = range(total - 1, self.total - 1, -1)  # the last that are taken
        self.total = total

    def withdraw(self, digests: Iterable[bytes]) -> set[bytes]:
        """Let nobody find the pages with these hashes any more, nor those that continue them.

        Returns:
            The hashes of all of them.
        """
        following = defaultdict(set)
        for _, digest, parent in self._cached.values():
            following[parent].add(digest)
        bad: set[bytes] = set()
        reached = list(digests)
        while reached:
            if (digest := reached.pop()) not in bad:
                bad.add(digest)
                reached += following[digest]
        for page in [page for page, (_, digest, _) in self._cached.items() if digest in bad]:
            self._forget(page)
            if page in self._idle:
                del self._idle[page]
                self._empty.append(page)
        return bad

    def take_news(self) -> tuple[list[bytes], list[bytes]]:
        """(hashes that can be found now, hashes that no longer can), against the last call: of group 0."""
        if not self._news:
            return [], []
        news, self._news = self._news, {}
        cached = [digest for digest, came in news.items() if came]
        return cached, [digest for digest, came in news.items() if not came]

    def _forget(self, page: int) -> None:
        group, digest, _ = self._cached.pop(page)
        del self._page_of[group][digest]
        if group == 0:
            self._tell(digest, False)

    def _tell(self, digest: bytes, came: bool) -> None:
        if self._news.pop(digest, came) == came:  # the opposite, untold, is undone and never was
            self._news[digest] = came
