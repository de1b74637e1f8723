"""What torch's allocator for GPUs reserves, as tensors come and go: its sizes alone, without any memory.

It takes segments from the driver and cuts pieces off them. Pieces that are free again join their neighbours,
but never those of another segment; so tensors of unlike sizes, one after the other, take more than ever live
at once (c10/cuda/CUDACachingAllocator.cpp of torch 2.11).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

MIB = 1 << 20
GRAIN = 512  # bytes, of which every piece has a multiple
SMALL = MIB  # pieces up to that are cut off segments of their own
SMALL_SEGMENT = 2 * MIB
MIDDLE = 10 * MIB  # below it a piece is cut off a segment of one size; from it on a segment is made for it
MIDDLE_SEGMENT = 20 * MIB


@dataclass(slots=True, eq=False)
class Block:
    """A piece of a segment, in use or free."""

    size: int
    used: int = 0  # bytes that were asked for
    before: Block | None = None  # its neighbours in the segment
    after: Block | None = None
    free: bool = False


class Allocator:
    """All sizes are bytes.

    Attributes:
        reserved: of all segments.
        alive: of the pieces in use.
        most: of these at once, so far.
    """

    def __init__(self) -> None:
        self.reserved = self.alive = self.most = 0
        self._free: dict[bool, list[Block]] = {
            True: [],
            False: [],
        }  # by size; of the small ones, and the others

    def allocate(self, size: int) -> Block:
        """A piece: of the smallest free one that is large enough, or of a new segment."""
        size = max(1, -(-size // GRAIN)) * GRAIN
        small = size <= SMALL
        free = self._free[small]
        place = bisect_left(free, size, key=_size)
        if place < len(free):
            block = free.pop(place)
            block.free = False
        else:
            block = Block(_segment(size))
            self.reserved += block.size
        left = block.size - size
        if left >= GRAIN if small else left > SMALL:
            rest = Block(left, before=block, after=block.after)
            if rest.after is not None:
                rest.after.before = rest
            block.size, block.after = size, rest
            self._give(rest, small)
        block.used = size
        self.alive += size
        self.most = max(self.most, self.alive)
        return block

    def release(self, *blocks: Block) -> None:
        """These are not in use any more."""
        for block in blocks:
            small = block.used <= SMALL
            self.alive -= block.used
            if (other := block.before) is not None and other.free:
                self._free[small].remove(other)
                other.size += block.size
                other.after = block.after
                block = other
            if (other := block.after) is not None and other.free:
                self._free[small].remove(other)
                block.size += other.size
                block.after = other.after
            if block.after is not None:
                block.after.before = block
            self._give(block, small)

    def empty(self) -> None:
        """Give back the segments of which nothing is in use."""
        for small, free in self._free.items():
            whole = [block for block in free if block.before is None and block.after is None]
            self.reserved -= sum(block.size for block in whole)
            self._free[small] = [block for block in free if block not in whole]

    def _give(self, block: Block, small: bool) -> None:
        block.free = True
        insort(self._free[small], block, key=_size)


def _size(block: Block) -> int:
    return block.size


def _segment(size: int) -> int:
    """Of a segment that is made for a piece of that size."""
    if size <= SMALL:
        return SMALL_SEGMENT
    return MIDDLE_SEGMENT if size < MIDDLE else -(-size // SMALL_SEGMENT) * SMALL_SEGMENT
