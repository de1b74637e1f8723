"""Weights of a rank that stay in the host's memory when its process ends, and come back from there.

What is parked is what every tensor was filled with, before `finish` made of it what is computed with: so a
load from memory differs from one of files only in where its bytes come from. They stand one after the other,
in the order in which the model lists its parts.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ipc import parked
from workers.parallel import RankGroup
from workers.weights.lanes import BLOCK, Lane, run
from workers.weights.loader import Countdown, Shard
from workers.weights.reading import fill

ALIGNED = 64  # bytes: where each tensor begins
PARKED = Path("parked weights")  # as an error names them

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
    """Writes what is filled, as each block of it is read."""

    def __init__(self, fd: int) -> None:
        self.failed: OSError | None = None
        self._fd = fd

    def watched(self, shards: Iterable[Shard]) -> Iterator[Shard]:
        """The same shards, of which each is written before it is finished."""
        for shard, places in _places(shards):
            pieces = [
                replace(piece, heard=partial(self.write, place))
                for piece, place in zip(shard.pieces, places, strict=True)
            ]
            yield Shard(pieces, shard.finish)

    def write(self, place: int, row: int, made: Tensor) -> None:
        """In some thread. What is missing is no reason for a load to fail."""
        if self.failed is not None:
            return
        rest, offset = _bytes(made), place + row * made.nbytes // len(made)
        try:
            while rest:
                count = os.pwrite(self._fd, rest, offset)
                _read_to_nowhere(self._fd, offset, count)
                rest, offset = rest[count:], offset + count
        except OSError as error:
            self.failed = error


def _read_to_nowhere(fd: int, offset: int, count: int) -> None:
    """Be the first who reads that memory: the kernel moves each of its pages to those in use then, for which
    a wake that reads them first takes half as long again. Nothing is copied; where it cannot be done, it is
    not.
    """
    with suppress(OSError), open(os.devnull, "wb", buffering=0) as nowhere:
        end = offset + count
        while offset < end and (sent := os.sendfile(nowhere.fileno(), fd, offset, end - offset)):
            offset += sent


def _wake(fd: int, shards: Iterable[Shard], size: int, progress: Progress) -> None:
    """Fill and finish every shard from `fd`."""
    jobs = deque(job for shard, places in _places(shards) for job in _jobs(fd, shard, places))
    device = jobs[0].into.device if jobs else torch.device("cpu")
    run(jobs, device, size, progress)


def _jobs(fd: int, shard: Shard, places: list[int]) -> list[_Job]:
    pieces = zip(shard.pieces, places, strict=True)
    blocks = [block for piece, place in pieces for block in _blocks(piece.into, place)]
    rest = Countdown(len(blocks), shard.finish)
    return [_Job(fd, into, offset, rest) for into, offset in blocks]


def _blocks(tensor: Tensor, place: int) -> Iterator[tuple[Tensor, int]]:
    """Some rows at a time, and where they stand."""
    if not tensor.nbytes:
        return
    rows = max(1, BLOCK // (tensor.nbytes // len(tensor)))
    for part in tensor.split(rows):
        yield part, place
        place += part.nbytes


@dataclass(slots=True)
class _Job:
    """One block that is read to its place."""

    fd: int
    into: Tensor
    offset: int
    rest: Countdown

    def __call__(self, lane: Lane) -> int:
        place = lane.place(self.into)
        fill(self.fd, PARKED, _bytes(place), self.offset)
        lane.send(place, self.into, self.rest)
        return place.nbytes


def _bytes(tensor: Tensor) -> memoryview:
    """Of a tensor on the CPU that is contiguous."""
    return memoryview(tensor.view(torch.uint8).numpy()).cast("B")
