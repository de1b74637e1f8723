"""The sum of a small tensor over the ranks of a group, in one launch on each GPU: my part for all to see, and
theirs as soon as they are there.

Cards that cannot reach each other's memory, as consumer cards cannot, all reach the host's. There each rank
has two slots that it alone writes. A word of a slot is 8 bytes: 4 of the tensor, and a tag that says for
which launch they are. It is written at once and read at once, so who reads the tag that he waits for has the
numbers too: there is no flag, no fence, and no second way over the bus (NCCL's LL protocol). Both pass all
caches: a volatile load, and a store that is written through, are those that the whole system sees in the code
of every card. Nothing is read, changed and written back, which no card does to the host's memory at once.

A program has a part of the tensor, and its own count of launches, which is the tag. The count is on the card
and the kernel raises it, so a recorded launch counts on. All words of a program are written in each launch,
the last part's rest as well: what stands in a word is for this launch or for the one two before, and never
for one so long ago that the tag, of 32 bits, comes again.

**Why two slots are enough.** A program writes where it wrote two launches ago. In its last launch it saw
words of that launch from every rank; so each rank had begun that launch, and before it, in its one stream,
ended the one two ago, with all that read there.

**Why programs need no room beside each other.** They wait for programs of the same number alone, and a card
begins them in the order of numbers. Of those that are not over on some rank, the least is next wherever it
does not run yet; and what it waits for are its like.

**What ends it.** A rank that does not come is waited for so many polls, and what it should have brought makes
the sum not a number. The supervisor's deadlines come long before.

The sum is made in float32, rank by rank from number 0 on, and rounded once: the same bits on every rank, and
whatever else the tensor holds.
"""

from __future__ import annotations

import mmap

import torch
import triton
import triton.language as tl
from torch import Tensor

from ipc.worker_messages import SUM_BYTES
from workers.kernels.dependent_triton import wait_for_previous
from workers.kernels.launch import Launcher
from workers.locked import lock, unlock

BLOCK = 256  # words of a program
WARPS = 4  # of which each thread has two words, which are one load of 16 bytes from each rank
SLOTS = 2  # of a rank
PATIENCE = (1 << 31) - 1  # polls, each of which goes over the bus: about half an hour
BFLOAT16, FLOAT16, FLOAT32 = map(tl.constexpr, range(3))
KINDS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}  # by the numbers that the kernel knows


@triton.jit
def floats_of(word, KIND: tl.constexpr):
    """The two floats of 4 bytes; or twice the one."""
    if KIND == BFLOAT16:
        low, high = (word << 16).to(tl.float32, bitcast=True), (word & -65536).to(tl.float32, bitcast=True)
    elif KIND == FLOAT16:
        low = word.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        high = (word >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        low = word.to(tl.float32, bitcast=True)
        high = low
    return low, high


@triton.jit
def word_of(low, high, KIND: tl.constexpr):
    """Their 4 bytes."""
    if KIND == FLOAT32:
        word = low.to(tl.int32, bitcast=True)
    else:
        kind: tl.constexpr = tl.bfloat16 if KIND == BFLOAT16 else tl.float16
        word = low.to(kind).to(tl.int16, bitcast=True).to(tl.int32) & 65535
        word |= high.to(kind).to(tl.int16, bitcast=True).to(tl.int32) << 16
    return word


@triton.jit
def poll(at, mine, tag, rank, STRIDE: tl.constexpr, SIZE: tl.constexpr, KIND: tl.constexpr):
    """The sum, low and high; and whether anything in it has not come yet."""
    late = tl.zeros(at.shape, tl.int32)
    for other in tl.static_range(SIZE):
        is_theirs = other != rank
        word = tl.load(at + other * STRIDE, mask=is_theirs, other=0, volatile=True)  # LDG.STRONG.SYS
        late |= (is_theirs & ((word >> 32).to(tl.int32) != tag)).to(tl.int32)
        first, second = floats_of(tl.where(is_theirs, word.to(tl.int32), mine), KIND)
        if other == 0:
            low, high = first, second
        else:
            low += first
            high += second
    return low, high, tl.max(late, 0)


@triton.jit(do_not_specialize=["words", "rank", "patience"])
def one_shot_kernel(
    x,  # [words] int32: of the tensor, in the place of which comes the sum
    slots,  # [SIZE, SLOTS, PLACES] int64, in memory that all ranks share
    counts,  # [programs] int32, on this rank's card: launches of each program
    words,
    rank,
    patience,  # polls, after which the sum is not a number
    SIZE: tl.constexpr,
    SLOTS: tl.constexpr,
    PLACES: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    wait_for_previous()
    program = tl.program_id(0)
    i = program * BLOCK + tl.arange(0, BLOCK)
    tag = tl.load(counts + program) + 1
    mine = tl.load(x + i, mask=i < words, other=0)
    at, stride = slots + (tag & (SLOTS - 1)) * PLACES + i, SLOTS * PLACES
    # through all caches (STG.STRONG.SYS)
    tl.store(
        at + rank * stride, tag.to(tl.int64) << 32 | mine.to(tl.int64) & 0xFFFFFFFF, cache_modifier=".wt"
    )
    low, high, late = poll(at, mine, tag, rank, stride, SIZE, KIND)
    polls = 0
    while (late != 0) & (polls < patience):
        low, high, late = poll(at, mine, tag, rank, stride, SIZE, KIND)
        polls += 1
    low, high = tl.where(late != 0, float("nan"), low), tl.where(late != 0, float("nan"), high)
    tl.store(x + i, word_of(low, high, KIND), mask=i < words)
    tl.store(counts + program, tag)


LAUNCH = Launcher(one_shot_kernel)


def places(size: int) -> int:
    """Words of a slot, where there are so many ranks."""
    return SUM_BYTES // (8 * SLOTS * size) // BLOCK * BLOCK


class OneShot:
    """One rank's part in such sums. Its launches are in one stream, and those of all ranks the same.

    Args:
        fd: `SUM_BYTES` of zeros, which all ranks have.
        rank: its number, of `size`.

    Raises:
        OSError: the memory cannot be mapped.
        RuntimeError: the device cannot reach it.
    """

    def __init__(self, fd: int, rank: int, size: int, device: torch.device) -> None:
        self._rank, self._size, self._device = rank, size, device
        self._places = places(size)
        self._slots = torch.frombuffer(mmap.mmap(fd, SUM_BYTES), dtype=torch.int64)
        self._counts = torch.zeros(self._places // BLOCK, dtype=torch.int32, device=device)
        if device.type == "cuda" and (failed := lock(self._slots, device)):
            raise RuntimeError(f"cudaHostRegister: {failed}")

    @property
    def most_bytes(self) -> int:
        """Of a tensor."""
        return 4 * self._places

    def takes(self, x: Tensor) -> bool:
        """Whether such a tensor may be summed here: by what all ranks have in common, its type and size."""
        return x.dtype in KINDS and 0 < x.nbytes <= self.most_bytes and not x.nbytes % 4

    def add(self, x: Tensor, patience: int = PATIENCE) -> None:
        """Put the sum over the ranks in its place.

        Args:
            patience: polls, after which what has not come makes it NaN.
        """
        lies_well = x.is_contiguous() and not x.storage_offset() * x.itemsize % 4
        whole = x if lies_well else x.clone(memory_format=torch.contiguous_format)
        words = whole.view(-1).view(torch.int32)
        grid, kind = (triton.cdiv(len(words), BLOCK), 1, 1), KINDS[x.dtype]
        numbers = len(words), self._rank, patience
        constants = self._size, SLOTS, self._places, kind, BLOCK
        LAUNCH(grid, words, self._slots, self._counts, *numbers, *constants, num_warps=WARPS)
        if whole is not x:
            x.copy_(whole)

    def close(self) -> None:
        """Let go of the memory, of which no launch makes use any more."""
        if self._device.type == "cuda":
            unlock(self._slots, self._device)
        del self._slots
