"""Weights from safetensors files into the tensors of one rank, reading only what that rank holds.

The plan comes from the files' headers: the model lists `Slice`s, each a block of a tensor in the checkpoint
and the tensor that it fills, in `Shard`s that are finished as soon as they are there, while others are read.
Rows are read with `preadv`, straight into place where type and shape allow it, else into a buffer that each
thread has for itself. Never through mmap: a page fault in the middle of a copy is the slowest way to read a
file.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from ipc.errors import Code, CortexError

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


class _Entry(msgspec.Struct, frozen=True):
    """A tensor in a safetensors header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Source:
    """A tensor in a file. `offset` is where its bytes begin."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


class WeightFiles:
    """The tensors of a Hugging Face folder, one file or sharded, known from their headers.

    Raises:
        CortexError: a file is missing or truncated, or a header is not valid; the message names the file.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._sources: dict[str, _Source] = {}
        for file in self._files():
            self._sources.update(_read_header(file))

    def _files(self) -> list[Path]:
        index = self.folder / "model.safetensors.index.json"
        if not index.exists():
            return [self.folder / "model.safetensors"]
        try:
            listing = msgspec.json.decode(index.read_bytes(), type=dict[str, object])
            names = msgspec.convert(listing.get("weight_map"), dict[str, str])
        except msgspec.MsgspecError as error:
            raise _failed(f"{index}: {error}") from error
        return [self.folder / name for name in sorted(set(names.values()))]

    def load(self, parts: Iterable[Shard], progress: Callable[[float], None]) -> None:
        """Fill and finish every part; `progress` hears the fraction of bytes that are there.

        Nothing here keeps a tensor that was filled: what `finish` replaces is gone with it.

        Raises:
            CortexError: a tensor is missing, has another shape or a type that is no float, or its file ends
                too early. Nothing is read before all pieces have been checked.
        """
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

    def _jobs(self, part: Shard) -> list[_Job]:
        blocks = [block for piece in part.pieces for block in self._blocks(piece)]
        rest = _Countdown(len(blocks), part.finish)
        return [_Job(source, block, rest) for source, block in blocks]

    def _blocks(self, piece: Slice) -> Iterator[tuple[_Source, Slice]]:
        """`piece` in blocks of rows, with where they are read from; vectors as matrices of one column."""
        source = self._sources.get(piece.name)
        if source is None:
            raise _failed(f"{self.folder}: tensor {piece.name} is missing")
        if source.shape != piece.shape:
            raise _failed(
                f"{source.file}: tensor {piece.name} has shape {list(source.shape)}, "
                f"but config.json implies {list(piece.shape)}"
            )
        if source.dtype not in DTYPES:
            raise _failed(
                f"{source.file}: tensor {piece.name} has type {source.dtype}, which is not supported"
            )
        into = piece.into if piece.into.dim() == 2 else piece.into.unsqueeze(1)
        shape = source.shape if len(source.shape) == 2 else (*source.shape, 1)
        rows = max(1, BLOCK // (shape[1] * DTYPES[source.dtype].itemsize))
        for start in range(0, into.shape[0], rows):
            part = into[start : start + rows]
            yield source, replace(piece, shape=shape, into=part, row=piece.row + start)


def _read_header(file: Path) -> dict[str, _Source]:
    """The tensors of one file: 8 bytes of header length, a JSON header, then the data."""
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= size - 8:
                raise _failed(
                    f"{file}: truncated, or no safetensors file (header of {length} bytes in {size})"
                )
            header = msgspec.json.decode(stream.read(length), type=dict[str, msgspec.Raw])
            header.pop("__metadata__", None)
            entries = {name: msgspec.json.decode(raw, type=_Entry) for name, raw in header.items()}
    except OSError as error:
        raise _failed(f"{file}: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _failed(f"{file}: the header is not valid: {error}") from error
    sources = {}
    for name, entry in entries.items():
        begin, end = entry.data_offsets
        if not 0 <= begin <= end or 8 + length + end > size:
            raise _failed(f"{file}: truncated: tensor {name} ends at byte {8 + length + end} of {size}")
        values = torch.Size(entry.shape).numel()
        if entry.dtype in DTYPES and values * DTYPES[entry.dtype].itemsize != end - begin:
            raise _failed(f"{file}: tensor {name} has {end - begin} bytes, which is not its shape's size")
        sources[name] = _Source(file, entry.dtype, tuple(entry.shape), 8 + length + begin)
    return sources


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
        into, width, dtype = self.block.into, self.block.shape[1], DTYPES[self.source.dtype]
        in_place = (
            into.dtype == dtype and into.shape[1] == width and into.is_contiguous() and not into.is_cuda
        )
        rows = into if in_place else _staging(into.shape[0] * width * dtype.itemsize, into.is_cuda)
        rows = rows.view(dtype).view(into.shape[0], width)
        offset = self.source.offset + self.block.row * width * dtype.itemsize
        target = memoryview(rows.view(torch.uint8).numpy()).cast("B")
        _read_exactly(self.source.file, offset, target, self.block.name)
        if not in_place:
            into.copy_(rows[:, self.block.column : self.block.column + into.shape[1]])
        size = into.nbytes
        self.block = into = None  # what is finished may let go of it
        self.rest()
        return size


_staged = threading.local()


def _staging(size: int, pinned: bool) -> Tensor:  # [size] uint8
    """The buffer of this thread, which ends with it. Copies from pinned memory need no other copy."""
    if not hasattr(_staged, "buffer") or _staged.buffer.nbytes < size:
        _staged.buffer = torch.empty(max(size, BLOCK), dtype=torch.uint8, pin_memory=pinned)
    return _staged.buffer[:size]


def _read_exactly(file: Path, offset: int, target: memoryview, name: str) -> None:
    fd = os.open(file, os.O_RDONLY)
    try:
        while target:
            count = os.preadv(fd, [target], offset)
            if not count:
                raise _failed(f"{file}: truncated while tensor {name} was read")
            target, offset = target[count:], offset + count
    finally:
        os.close(fd)


def _failed(message: str) -> CortexError:
    return CortexError(Code.MODEL_LOAD_FAILED, message)
