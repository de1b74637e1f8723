"""Weights from safetensors files into the tensors of one rank, reading only what that rank holds.

The model lists `Slice`s, each a block of a tensor and the tensor that it fills, in `Shard`s that are finished
as soon as they are there, while others are read. The model's card knows where each tensor is. Rows are read
with `preadv`, straight into place where type and device allow it, else into a buffer that each thread has for
itself; of a block of columns, each row's part by itself (a quarter of 2560 x 9728: 174 ms for six such
tensors, where reading them whole took 663). Not through mmap, though it is faster yet on files in the page
cache: a file that somebody cuts short would kill the process, which could not even name it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from workers.checkpoints.card import ModelCard
from workers.checkpoints.files import open_file, refuse

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
BLOCK = 32 << 20  # bytes that one read covers: progress moves, and staging stays small
THREADS = 4


@dataclass(frozen=True, slots=True)
class Slice:
    """A block of a tensor in the checkpoint, and where it goes.

    The block has the shape of `into` and begins at (`row`, `column`).
    """

    name: str
    shape: tuple[int, ...]  # of the whole tensor, as the config implies it
    into: Tensor  # one or two dimensions
    row: int = 0
    column: int = 0


@dataclass(slots=True)
class Shard:
    """Pieces that are of use together. `finish` is called, in some thread, once all are in place."""

    pieces: list[Slice]
    finish: Callable[[], None] = field(default=lambda: None)


@dataclass(frozen=True, slots=True)
class _Source:
    """A tensor in a file. `offset` is where its bytes begin."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int


class WeightFiles:
    """The tensors of a checkpoint, where its card says that they are."""

    def __init__(self, card: ModelCard) -> None:
        self._card = card
        self._paths = [Path(card.folder) / file.name for file in card.files]

    def load(self, parts: Iterable[Shard], progress: Callable[[float], None]) -> None:
        """Fill and finish every part; `progress` hears the fraction of bytes that are there.

        Nothing here keeps a tensor that was filled: what `finish` replaces is gone with it.

        Raises:
            CortexError: a file is not what it was when the card was read, or ends too early.
        """
        self._check_files()
        jobs = deque(job for part in parts for job in self._jobs(part))
        total = sum(job.block.into.nbytes for job in jobs) or 1
        done = 0
        with ThreadPoolExecutor(THREADS, thread_name_prefix="loader") as threads:
            running = deque[Future[int]]()
            while jobs:
                running.append(threads.submit(jobs.popleft()))
            try:
                while running:
                    done += running.popleft().result()
                    progress(done / total)
            finally:
                for future in running:
                    future.cancel()

    def _check_files(self) -> None:
        for path, known in zip(self._paths, self._card.files, strict=True):
            try:
                status = path.stat()
            except OSError as error:
                refuse(path, f"cannot be read: {error.strerror}")
            if (status.st_size, status.st_mtime_ns) != (known.size, known.changed):
                refuse(path, "has changed since its header was read")

    def _jobs(self, part: Shard) -> list[_Job]:
        blocks = [block for piece in part.pieces for block in self._blocks(piece)]
        rest = _Countdown(len(blocks), part.finish)
        return [_Job(source, block, rest) for source, block in blocks]

    def _blocks(self, piece: Slice) -> Iterator[tuple[_Source, Slice]]:
        """`piece` in blocks of rows, with where they are read from; vectors as matrices of one column."""
        tensor = self._card.tensors[piece.name]
        assert tensor.shape == piece.shape, piece.name
        dtype = DTYPES[tensor.dtype]
        source = _Source(self._paths[tensor.file], dtype, tensor.shape, tensor.offset)
        into = piece.into if piece.into.dim() == 2 else piece.into.unsqueeze(1)
        shape = source.shape if len(source.shape) == 2 else (*source.shape, 1)
        rows = max(1, BLOCK // (into.shape[1] * dtype.itemsize))
        for start in range(0, into.shape[0], rows):
            part = into[start : start + rows]
            yield source, replace(piece, shape=shape, into=part, row=piece.row + start)


class _Countdown:
    """Calls `finish` the last of `count` times that it is called itself."""

    def __init__(self, count: int, finish: Callable[[], None]) -> None:
        self._left, self._finish, self._lock = count, finish, threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self._left -= 1
            last = not self._left
        if last:
            self._finish()


@dataclass(slots=True)
class _Job:
    """One block of rows to be read, in a thread; the bytes that it fills come of it."""

    source: _Source
    block: Slice
    rest: _Countdown

    def __call__(self) -> int:
        into, dtype = self.block.into, self.source.dtype
        in_place = into.dtype == dtype and into.is_contiguous() and not into.is_cuda
        rows = into if in_place else _staging(into.numel() * dtype.itemsize, into.is_cuda)
        rows = rows.view(dtype).view(into.shape)
        self._read(memoryview(rows.view(torch.uint8).numpy()).cast("B"))
        if not in_place:
            into.copy_(rows)
        size = into.nbytes
        self.block = into = None  # what is finished may let go of it
        self.rest()
        return size

    def _read(self, target: memoryview) -> None:
        """Fill `target` with the block: in one go, where it has whole rows of the tensor."""
        itemsize, width, columns = self.source.dtype.itemsize, self.block.shape[1], self.block.into.shape[1]
        stride, count = width * itemsize, columns * itemsize
        offset = self.source.offset + (self.block.row * width + self.block.column) * itemsize
        with open_file(self.source.file) as file:
            if columns == width:
                self._fill(file.fileno(), target, offset)
                return
            for start in range(0, len(target), count):
                self._fill(file.fileno(), target[start : start + count], offset)
                offset += stride

    def _fill(self, fd: int, target: memoryview, offset: int) -> None:
        while target:
            count = os.preadv(fd, [target], offset)
            if not count:
                refuse(self.source.file, f"was cut short while tensor {self.block.name} was read")
            target, offset = target[count:], offset + count


_staged = threading.local()


def _staging(size: int, pinned: bool) -> Tensor:  # [size] uint8
    """The buffer of this thread, which ends with it. Copies from pinned memory need no other copy."""
    if not hasattr(_staged, "buffer") or _staged.buffer.nbytes < size:
        _staged.buffer = torch.empty(max(size, BLOCK), dtype=torch.uint8, pin_memory=pinned)
    return _staged.buffer[:size]
