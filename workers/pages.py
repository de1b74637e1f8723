"""The pool of KV pages: which page numbers are free. No tensor is here; the engine owns the memory."""

from __future__ import annotations

from ipc.worker_messages import PAGE_SIZE


def pages_for(num_tokens: int) -> int:
    """The number of pages that hold the keys and values of `num_tokens` tokens."""
    return -(-num_tokens // PAGE_SIZE)


class PagePool:
    """Page numbers `0..total-1`; each belongs to at most one sequence at a time."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total - 1, -1, -1))  # a stack: the page freed last is the warmest in cache

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Hand out `count` pages. The caller has looked at `num_free`: fewer free pages is a ValueError."""
        if count > len(self._free):
            raise ValueError(f"asked for {count} pages, {len(self._free)} of {self.total} are free")
        return [self._free.pop() for _ in range(count)]

    def free(self, pages: list[int]) -> None:
        """Take pages back; the caller forgets them."""
        self._free.extend(reversed(pages))
