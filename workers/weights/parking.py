"""Weights of a rank that stay in the host's memory when its process ends, and come back from there.

What is parked is what every tensor was filled with, before `finish` made of it what is computed with: so a
load from memory differs from one of files only in where its bytes come from. They stand one after the other,
in the order in which the model lists its parts.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ipc import parked
from workers.parallel import RankGroup
from workers.weights.loader import BLOCK, THREADS, Shard, Slice

ALIGNED = 64  # bytes: where each tensor begins

logger = logging.getLogger("workers.weights.parking")

Parts = Callable[[], Iterable[Shard]]  # the same ones each time
Progress = Callable[[float], None]


def load(
    fd: int | None,
    parts: Parts,
    progress: Progress,
    group: RankGroup,
    read: Callable[[Iterable[Shard]], None],
) -> bool:
    """Fill and finish every part: from `fd`, which is closed then, or with `read`, so that they are there
    next time.

    Args:
        fd: memory as `ipc.parked` has it; None: there is none.
        read: fills and finishes from files.

    Returns:
        Whether they came from `fd`: on all ranks, or on none.
    """
    if fd is None:
        read(parts())
        return False
    try:
        digest, size = _layout(parts())
        known = parked.digest_of(fd)
        if group.least(int(known == digest)):
            _wake(fd, parts(), size, progress)
            return True
        if known is not None:  # a worker of another version has parked them
            logger.warning("parked weights are not those of this model, and are read from its files again")
            read(parts())
            return False
        keep = _Filling(fd)
        read(keep.watched(parts()))
        if keep.failed is None:
            parked.sign(fd, digest)
        else:
            os.ftruncate(fd, 0)
            logger.warning("weights cannot be parked: %s", keep.failed)
        return False
    finally:
        os.close(fd)


def _places(shards: Iterable[Shard]) -> Iterator[tuple[Shard, list[int]]]:
    """Each of them with where its tensors begin."""
    end = parked.HEAD
    for shard in shards:
        places = []
        for piece in shard.pieces:
            places.append(end)
            end += -(-piece.into.nbytes // ALIGNED) * ALIGNED
        yield shard, places


def _layout(shards: Iterable[Shard]) -> tuple[bytes, int]:
    """A digest of what stands where, and the bytes of all tensors."""
    digest, total = hashlib.blake2b(digest_size=parked.DIGEST), 0
    for shard, places in _places(shards):
        for piece, place in zip(shard.pieces, places, strict=True):
            into, form = piece.into, piece.format.name if piece.format is not None else ""
            what = (piece.name, piece.row, piece.column, form, str(into.dtype), tuple(into.shape), place)
            digest.update(repr(what).encode())
            total += into.nbytes
    return digest.digest(), total


class _Filling:
    """Writes what shards were filled with, as each is finished."""

    def __init__(self, fd: int) -> None:
        self.failed: OSError | None = None
        self._fd = fd

    def watched(self, shards: Iterable[Shard]) -> Iterator[Shard]:
        """The same shards, which are written before they are finished."""
        for shard, places in _places(shards):
            yield Shard(shard.pieces, _Once(self, shard, places))

    def write(self, pieces: list[Slice], places: list[int]) -> None:
        """In some thread. What is missing is no reason for a load to fail."""
        if self.failed is not None:
            return
        try:
            for piece, place in zip(pieces, places, strict=True):
                for part, offset in _blocks(piece.into, place):
                    _write(self._fd, part.cpu().contiguous(), offset)
        except OSError as error:
            self.failed = error


class _Once:
    """`finish` of a watched shard; keeps nothing of it once it was called."""

    def __init__(self, filling: _Filling, shard: Shard, places: list[int]) -> None:
        self._filling, self._shard, self._places = filling, shard, places

    def __call__(self) -> None:
        shard, self._shard = self._shard, None
        self._filling.write(shard.pieces, self._places)
        shard.pieces = []
        shard.finish()


def _wake(fd: int, shards: Iterable[Shard], size: int, progress: Progress) -> None:
    """Fill and finish every shard from `fd`."""
    done = 0

    def one(job: list[tuple[Shard, list[int]]]) -> int:
        shard, places = job.pop()
        filled = 0
        for piece, place in zip(shard.pieces, places, strict=True):
            filled += piece.into.nbytes
            for part, offset in _blocks(piece.into, place):
                _read(fd, part, offset)
        shard.pieces = []
        shard.finish()
        return filled

    with ThreadPoolExecutor(THREADS, thread_name_prefix="waker") as threads:
        for filled in threads.map(one, [[job] for job in _places(shards)]):
            done += filled
            progress(done / (size or 1))


def _blocks(tensor: Tensor, place: int) -> Iterator[tuple[Tensor, int]]:
    """Some rows at a time, and where they stand."""
    if not tensor.nbytes:
        return
    rows = max(1, BLOCK // (tensor.nbytes // len(tensor)))
    for part in tensor.split(rows):
        yield part, place
        place += part.nbytes


def _bytes(tensor: Tensor) -> memoryview:
    """Of a tensor on the CPU that is contiguous."""
    return memoryview(tensor.view(torch.uint8).numpy()).cast("B")


def _write(fd: int, tensor: Tensor, offset: int) -> None:
    rest = _bytes(tensor)
    while rest:
        count = os.pwrite(fd, rest, offset)
        rest, offset = rest[count:], offset + count


def _read(fd: int, into: Tensor, offset: int) -> None:
    """Into place, or to a GPU by way of a pinned buffer that each thread has."""
    target = into if into.device.type == "cpu" and into.is_contiguous() else _staging(into)
    rest = _bytes(target)
    while rest:
        count = os.preadv(fd, [rest], offset)
        if not count:
            raise EOFError("parked weights end too early")
        rest, offset = rest[count:], offset + count
    if target is not into:
        into.copy_(target)


_staged = threading.local()


def _staging(like: Tensor) -> Tensor:
    """A buffer of this thread's with the shape and type of `like`."""
    size = like.nbytes
    if not hasattr(_staged, "buffer") or _staged.buffer.nbytes < size:
        _staged.buffer = torch.empty(max(size, BLOCK), dtype=torch.uint8, pin_memory=like.is_cuda)
    return _staged.buffer[:size].view(like.dtype).view(like.shape)
