"""Rows of files, as they are stored; and what a conversion is, which makes a weight of what it reads."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from workers.checkpoints.stored_tensors import StoredTensor

Read = Callable[[StoredTensor, range, range], Tensor]
"""Rows and columns of a stored tensor, in its type, or as bytes; a vector has one column."""

Conversion = Callable[[Read, StoredTensor, range, range], Tensor]
"""Rows and columns of a weight as `StoredTensor.dtype` has them: in a plain type, or as bytes of blocks."""

AT_ONCE = os.sysconf("SC_IOV_MAX") // 2  # rows that one call reads parts of
SKIPPED = 16 << 10  # bytes between two parts, up to which reading them is cheaper than another call


class Unreadable(Exception):
    """A file whose bytes could not be had.

    Args:
        path: of it.
        why: to be followed by "while … was read".
    """

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} {why}")
        self.path, self.why = path, why


def fill(fd: int, path: Path, target: memoryview, offset: int) -> None:
    """Read bytes from `offset` on until `target` is full.

    Raises:
        Unreadable: it ends before that, or the disk fails.
    """
    while target:
        count = _preadv(fd, path, [target], offset)
        if not count:
            raise Unreadable(path, "was cut short")
        target, offset = target[count:], offset + count


def fill_parts(fd: int, path: Path, target: memoryview, offset: int, count: int, stride: int) -> None:
    """Read `count` bytes of every `stride` from `offset` on, until `target` is full of them.

    A call to the kernel for each row costs more than its bytes: of 4096 rows of 8 KiB the halves took 61 ms
    of a core, the rows whole 55 and 20 to pick the halves out, and as here 49. So where parts are close, one
    call reads many rows, and what is between them goes to the same few bytes again and again.

    Raises:
        Unreadable: as `fill`.
    """
    if count == stride:
        fill(fd, path, target, offset)
        return
    at_once = AT_ONCE if stride - count <= SKIPPED else 1
    between = memoryview(bytearray(stride - count if at_once > 1 else 0))
    for start in range(0, len(target), at_once * count):
        some = target[start : start + at_once * count]
        parts = [some[begin : begin + count] for begin in range(0, len(some), count)]
        buffers = [buffer for part in parts for buffer in (part, between)][:-1]
        if _preadv(fd, path, buffers, offset) < len(parts) * stride - (stride - count):
            for number, part in enumerate(parts):  # it was interrupted, or the file is at its end
                fill(fd, path, part, offset + number * stride)
        offset += len(parts) * stride


def _preadv(fd: int, path: Path, buffers: list[memoryview], offset: int) -> int:
    try:
        return os.preadv(fd, buffers, offset)
    except OSError as error:
        raise Unreadable(path, f"could not be read ({error.strerror}, at byte {offset:,})") from error
