"""Weights from the files of a checkpoint into the tensors of one rank, reading only what that rank holds.

The model lists `Slice`s, each a block of a tensor and the tensor that it fills, in `Shard`s that are finished
as soon as they are there, while others are read. The model's card knows where each tensor is. Rows are read
with `preadv`, straight into place where format and device allow it, else into memory that each thread has for
itself (`lanes`), which then makes of them what is kept. Not through mmap, though it is faster yet on files in
the page cache: a file that somebody cuts short would kill the process, which could not even name it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from workers.checkpoints.adapter import AdapterCard
from workers.checkpoints.blocks import FORMATS, Format
from workers.checkpoints.card import ModelCard
from workers.checkpoints.files import open_file, refuse
from workers.checkpoints.safetensors import DTYPE_BYTES
from workers.checkpoints.stored_tensors import StoredTensor
from workers.weights import four_bits
from workers.weights.blocks import Blocks, Weight
from workers.weights.conversions import CONVERSIONS
from workers.weights.dequantise import dequantise
from workers.weights.lanes import BLOCK, Lane, run
from workers.weights.quantise import quantise
from workers.weights.reading import Unreadable, fill_parts

FP8 = "F8_E4M3"
TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True, slots=True)
class Slice:
    """A block of a tensor in the checkpoint, and where it goes.

    The block has the shape of `into` and begins at (`row`, `column`).
    """

    name: str
    shape: tuple[int, ...]  # of the whole tensor, as the config implies it
    into: Tensor  # one or two dimensions; of what is kept in blocks, its bytes
    row: int = 0
    column: int = 0
    format: Format | None = None  # of `into`, where that is bytes
    heard: Callable[[int, Tensor], None] | None = None  # told what `into` gets: its rows from a number on

    @classmethod
    def of(cls, name: str, shape: tuple[int, ...], weight: Weight, row: int = 0, column: int = 0) -> Slice:
        """A slice that fills a weight of whatever kind."""
        if isinstance(weight, Blocks):
            return cls(name, shape, weight.data, row, column, weight.format)
        return cls(name, shape, weight, row, column)


@dataclass(slots=True)
class Shard:
    """Pieces that are of use together. `finish` is called, in some thread, once all are in place."""

    pieces: list[Slice]
    finish: Callable[[], None] = field(default=lambda: None)


def bytes_filled(shards: Iterable[Shard]) -> int:
    """Bytes of all that they fill, in the type that it is kept in."""
    return sum(piece.into.nbytes for shard in shards for piece in shard.pieces)


class WeightFiles:
    """The tensors of a checkpoint or an adapter, where its card says that they are."""

    def __init__(self, card: ModelCard | AdapterCard) -> None:
        self._card = card
        self._paths = [Path(card.folder) / file.name for file in card.files]

    def load(
        self,
        parts: Iterable[Shard],
        progress: Callable[[float], None],
        keep: Callable[[Slice, Tensor], None] | None = None,
    ) -> None:
        """Fill and finish every part; `progress` hears the fraction of bytes that are there.

        Nothing here keeps a tensor that was filled: what `finish` replaces is gone with it.

        Args:
            keep: is given what weights in blocks are filled with, in the threads that read.

        Raises:
            CortexError: a file is not what it was when the card was read, or ends too early.
        """
        self._check_files()
        jobs = deque(job for part in parts for job in self._jobs(part, keep))
        total = sum(job.piece.into.nbytes for job in jobs)
        device = jobs[0].piece.into.device if jobs else torch.device("cpu")
        run(jobs, device, total, progress)
        self._check_files()  # who wrote there meanwhile has left some of the old and some of the new

    def read(self, tensor: StoredTensor, rows: range, columns: range, into: Tensor | None = None) -> Tensor:
        """Rows of a tensor as they are stored: in its type, or as bytes of blocks.

        Args:
            rows: of a vector, its elements.
            columns: whole blocks; of a vector, one.
            into: `[rows, columns]` of that type, contiguous and on the CPU; None: a new one.

        Raises:
            Unreadable: naming the file, which ends too early, or whose disk fails, or has NaN in FP8.
        """
        form = FORMATS.get(tensor.dtype)
        elements, size = (form.elements, form.nbytes) if form else (1, DTYPE_BYTES[tensor.dtype])
        width = tensor.shape[1] if len(tensor.shape) == 2 else 1
        stride, count = width // elements * size, len(columns) // elements * size
        kind = TYPES.get(tensor.dtype, torch.uint8)
        if into is None:
            into = torch.empty(len(rows) * count, dtype=torch.uint8).view(kind).view(len(rows), -1)
        target = memoryview(into.view(torch.uint8).numpy()).cast("B")
        offset = tensor.offset + rows.start * stride + columns.start // elements * size
        path = self._paths[tensor.file]
        with open_file(path) as file:
            fill_parts(file.fileno(), path, target, offset, count, stride)
        if tensor.dtype == FP8 and _has_nan(into):
            raise Unreadable(path, "has NaN among its FP8 numbers, found")
        return into

    def _check_files(self) -> None:
        for path, known in zip(self._paths, self._card.files, strict=True):
            try:
                status = path.stat()
            except OSError as error:
                refuse(path, f"cannot be read: {error.strerror}")
            if (status.st_size, status.st_mtime_ns) != (known.size, known.changed):
                refuse(path, "has changed since its header was read")

    def _jobs(self, part: Shard, keep: Callable[[Slice, Tensor], None] | None) -> list[_Job]:
        blocks = [(piece.row, block) for piece in part.pieces for block in self._blocks(piece)]
        rest = Countdown(len(blocks), part.finish)
        return [
            _Job(self, self._card.tensors[block.name], block, block.row - first, rest, keep)
            for first, block in blocks
        ]

    def _blocks(self, piece: Slice) -> Iterator[Slice]:
        """`piece` in blocks of rows; vectors as matrices of one column."""
        tensor = self._card.tensors[piece.name]
        assert tensor.shape == piece.shape, piece.name
        into = piece.into if piece.into.dim() == 2 else piece.into.unsqueeze(1)
        width = into.shape[1] if piece.format is None else piece.format.columns(into.shape[1])
        rows = max(1, BLOCK // (width * _bytes_while_read(tensor, piece)))
        for start in range(0, into.shape[0], rows):
            yield replace(piece, into=into[start : start + rows], row=piece.row + start)


def _bytes_while_read(tensor: StoredTensor, piece: Slice) -> int:
    """Of an element, in the widest form that it has on its way."""
    if tensor.dtype in TYPES and piece.format is None:
        return max(TYPES[tensor.dtype].itemsize, piece.into.itemsize)
    return 1 if piece.format is not None and piece.format.name == tensor.dtype else torch.float32.itemsize


def _has_nan(numbers: Tensor) -> bool:
    """Whether one of some numbers of FP8, in bytes, is NaN, whose bits are all ones but for the sign: what
    multiplies them takes that for 480. Looked at with 20 GB/s of a core."""
    if not numbers.numel():
        return False
    return numbers.max().item() == 0xFF or numbers.view(torch.int8).max().item() == 0x7F


class Countdown:
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
    """One block of rows to be read, by a lane; the bytes that it fills come of it."""

    files: WeightFiles
    tensor: StoredTensor
    piece: Slice
    first: int  # of its rows, among those of the slice that it is a block of
    rest: Countdown
    keep: Callable[[Slice, Tensor], None] | None

    def __call__(self, lane: Lane) -> int:
        piece = self.piece
        place = lane.place(piece.into)
        try:
            made = self._made(lane, place)
        except Unreadable as error:
            refuse(error.path, f"{error.why} while tensor {piece.name} was read")
        if made is not place:
            place.copy_(made)
        if self.keep is not None and piece.format is not None:
            self.keep(piece, place)
        if piece.heard is not None:
            piece.heard(self.first, place)
        lane.send(place, piece.into, self.rest)
        return place.nbytes

    def _made(self, lane: Lane, place: Tensor) -> Tensor:
        """What was read, as it is kept, or in a plain type; in `place`, where that can be."""
        tensor, into, form = self.tensor, self.piece.into, self.piece.format
        rows = range(self.piece.row, self.piece.row + len(into))
        width = into.shape[1] if form is None else form.columns(into.shape[1])
        columns = range(self.piece.column, self.piece.column + width)
        if tensor.conversion:
            read = CONVERSIONS[tensor.conversion](self.files.read, tensor, rows, columns)
        elif tensor.dtype == (form.name if form is not None else _NAMES.get(into.dtype)):
            return self.files.read(tensor, rows, columns, place)
        else:
            scratch = lane.scratch(len(rows) * FORMATS[tensor.dtype].row_bytes(width))
            scratch = scratch.view(TYPES.get(tensor.dtype, torch.uint8)).view(len(rows), -1)
            read = self.files.read(tensor, rows, columns, scratch)
        if tensor.dtype not in FORMATS or (form is not None and form.name == tensor.dtype):
            return read
        wide = read if tensor.dtype in TYPES else dequantise(tensor.dtype, read)
        if tensor.order:  # what is in no blocks keeps its columns where they are
            kept = four_bits.ordered(self.files.read, tensor.sources[-1])
            wide = wide[:, kept.argsort()]
        return wide if form is None else quantise(form.name, wide, place)


_NAMES = {kind: name for name, kind in TYPES.items()}
