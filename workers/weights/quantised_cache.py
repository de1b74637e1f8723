"""Weights that were quantised while they were read, kept on disk, so that the next load only reads them.

A copy is a safetensors file: of each weight all rows, in its blocks, so that any number of ranks reads what
is theirs. What its header says follows from the model's card alone: a file that begins with other bytes, or
is of another size, is none of ours, or damaged. It is written beside its place, by all ranks at once, each
what it made; it comes to its place whole, or not at all.

Locks of the kernel's, which end with whoever holds them, keep processes apart: who writes a draft holds it
alone, those who read a copy share it, and what anybody holds is not deleted to make room.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from ipc.errors import CortexError
from ipc.worker_messages import WeightCache
from workers.checkpoints.blocks import FORMATS
from workers.checkpoints.card import ModelCard
from workers.checkpoints.stored_tensors import StoredTensor, WeightFile
from workers.parallel import RankGroup
from workers.weights import quantise
from workers.weights.loader import Shard, Slice, WeightFiles

SUFFIX = ".safetensors"
DRAFT = ".draft"
SPARE = 1 << 30  # bytes of its disk that a copy leaves free
NUMBERS, SCALES = ".numbers", ".scales"  # of formats that have them apart, as two tensors
APART = ("INT8_128", "FP8_128")
ALONE = fcntl.LOCK_EX | fcntl.LOCK_NB

logger = logging.getLogger("workers.weights.quantised_cache")


def load_weights(
    card: ModelCard,
    formats: Mapping[str, str],
    parts: Iterable[Shard],
    progress: Callable[[float], None],
    group: RankGroup,
    cache: WeightCache | None,
) -> None:
    """Fill and finish every part: from a copy of what is to be quantised, or so that there is one next time.

    Args:
        formats: of weights in blocks, on every rank, as `ModelCard.formats` has them.
        cache: None: no copy is read or written.

    Raises:
        CortexError: as `WeightFiles.load` has it. That there can be no copy is no error, but a warning.
    """
    if cache is None or not (layout := Layout.of(card, formats)).formats:
        WeightFiles(card).load(parts, progress)
        return
    folder = Folder(Path(cache.folder), cache.max_bytes)
    copy = folder.find(layout, tidy=group.rank == 0)
    everywhere = group.least(int(copy is not None))
    if copy is not None:
        with copy:
            if everywhere:
                copy.load(card, parts, progress)
                return
    draft = folder.begin(layout) if group.rank == 0 else None
    if not group.least(int(group.rank > 0 or draft is not None)):
        WeightFiles(card).load(parts, progress)
        return
    with draft or folder.join(layout) as draft:
        WeightFiles(card).load(parts, progress, draft.write)
        written = group.all_reduce(torch.tensor(draft.fractions(), device=group.device))
        whole = not draft.failed and bool((written > 0.999).all())
        if group.least(int(whole)):
            draft.keep()


class Region(msgspec.Struct, frozen=True):
    """Rows of bytes in a copy: of what belongs to `elements` elements each, `nbytes`."""

    name: str  # in the header
    offset: int  # in the file
    rows: int
    row_bytes: int
    elements: int
    nbytes: int
    dtype: str
    columns: int  # in units of `dtype`

    @property
    def stored(self) -> tuple[int, int]:
        return self.rows, self.columns

    def at(self, row: int, column: int) -> int:
        """Where in the file the blocks of that row begin at that column."""
        return self.offset + row * self.row_bytes + column // self.elements * self.nbytes


def _regions(name: str, form_name: str, rows: int, columns: int, offset: int) -> list[Region]:
    """Where a weight is whose bytes begin at `offset`."""
    form = FORMATS[form_name]
    if form_name not in APART:
        size = form.row_bytes(columns)
        return [Region(name, offset, rows, size, form.elements, form.nbytes, "U8", size)]
    groups = columns // form.elements
    return [
        Region(name + NUMBERS, offset, rows, columns, 1, 1, "U8", columns),
        Region(name + SCALES, offset + rows * columns, rows, 4 * groups, form.elements, 4, "F32", groups),
    ]


@dataclass(frozen=True)
class Layout:
    """What stands where in the copy of a model.

    Args:
        place: names the model and what is made of it.
        content: names all that the numbers depend on.
        shapes: of the weights that it has, by name.
        formats: the same, of their blocks.
    """

    place: str
    content: str
    shapes: Mapping[str, tuple[int, int]]
    formats: Mapping[str, str]

    @classmethod
    def of(cls, card: ModelCard, formats: Mapping[str, str]) -> Layout:
        made = {name: form for name, form in formats.items() if card.tensors[name].dtype != form}
        folder = os.path.realpath(card.folder)
        sources = [card.tensors[name] for name in made]
        place = _digest((folder, [file.name for file in card.files], made))
        content = _digest((quantise.VERSION, quantise.library() is not None, card.files, sources))
        return cls(place, content, {name: card.tensors[name].shape for name in made}, made)

    @property
    def name(self) -> str:
        return f"{self.place}-{self.content}{SUFFIX}"

    @cached_property
    def parts(self) -> dict[str, list[Region]]:
        """Without the header, from 0 on."""
        found, offset = {}, 0
        for name, form in self.formats.items():
            rows, columns = self.shapes[name]
            found[name] = _regions(name, form, rows, columns, offset)
            offset += rows * FORMATS[form].row_bytes(columns)
        return found

    @cached_property
    def header(self) -> bytes:
        """The first bytes of the file."""
        described: dict[str, object] = {
            "__metadata__": {"made_by": "cortex, while a model was loaded", "content": self.content}
        }
        for regions in self.parts.values():
            for each in regions:
                end = each.offset + each.rows * each.row_bytes
                described[each.name] = {
                    "dtype": each.dtype,
                    "shape": each.stored,
                    "data_offsets": [each.offset, end],
                }
        text = json.dumps(described).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @property
    def size(self) -> int:
        """Of the file, in bytes."""
        data = sum(each.rows * each.row_bytes for regions in self.parts.values() for each in regions)
        return len(self.header) + data

    def card(self, card: ModelCard, path: Path, status: os.stat_result) -> ModelCard:
        """`card`, with the weights where they are in the copy at `path`."""
        number, begin = len(card.files), len(self.header)

        def place(each: Region, dtype: str, shape: tuple[int, int]) -> StoredTensor:
            return StoredTensor(shape, dtype, number, begin + each.offset, "none")

        tensors = dict(card.tensors)
        for name, regions in self.parts.items():
            form, shape, sharing = self.formats[name], self.shapes[name], card.tensors[name].sharing
            first = begin + regions[0].offset
            if len(regions) == 1:
                tensors[name] = StoredTensor(shape, form, number, first, sharing)
            else:
                sources = tuple(place(each, each.dtype, each.stored) for each in regions)
                tensors[name] = StoredTensor(shape, form, number, first, sharing, "apart", sources)
        file = WeightFile(str(path), status.st_size, status.st_mtime_ns)
        return msgspec.structs.replace(card, files=[*card.files, file], tensors=tensors)


def _digest(what: object) -> str:
    return hashlib.sha256(msgspec.msgpack.encode(what)).hexdigest()[:32]


class Folder:
    """The copies that are kept.

    Args:
        path: made when the first copy is.
        max_bytes: of all of them; those that were read longest ago go first.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path, self.max_bytes = path, max_bytes

    def find(self, layout: Layout, tidy: bool) -> Copy | None:
        """The copy, which nobody deletes until it is closed; None where there is none.

        Args:
            tidy: a damaged one is deleted.
        """
        path = self.path / layout.name
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("a quantised copy cannot be read path=%s: %s", path, error.strerror)
            return None
        copy = Copy(path, fd, layout)
        try:
            if _locked(fd, path, fcntl.LOCK_SH):  # waits for who has just written it, or is deleting it
                if why := copy.damage():
                    if tidy:
                        logger.warning("a damaged quantised copy is made again path=%s: it %s", path, why)
                        path.unlink()
                else:
                    os.utime(fd, ns=(time.time_ns(), os.fstat(fd).st_mtime_ns))  # it was of use
                    return copy
        except OSError as error:
            logger.warning("a quantised copy cannot be read path=%s: %s", path, error.strerror)
        copy.close()
        return None

    def begin(self, layout: Layout) -> Draft | None:
        """A draft that is this process's alone; None, with one line in the log, where there can be none."""
        path = self.path / (layout.name + DRAFT)
        if layout.size > self.max_bytes:
            logger.info(
                "no quantised copy is kept: it would have %d bytes, of quantised_cache.max_size %d",
                *(layout.size, self.max_bytes),
            )
            return None
        fd = None
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            mine = _locked(fd, path, ALONE)
            if (
                not mine or (self.path / layout.name).exists()
            ):  # another process writes it, or has just done so
                if mine:
                    path.unlink()
                os.close(fd)
                return None
            self._make_room(layout)
            free = shutil.disk_usage(self.path).free
            if free < layout.size + SPARE:
                raise OSError(
                    0, f"{free:,} bytes are free, and it takes {layout.size:,} and leaves {SPARE:,}"
                )
            os.ftruncate(fd, 0)
            os.posix_fallocate(fd, 0, layout.size)
            _write(fd, memoryview(layout.header), 0)
        except OSError as error:
            _warn(path, error)
            if fd is not None:
                path.unlink(missing_ok=True)
                os.close(fd)
            return None
        return Draft(path, fd, layout, owner=True)

    def join(self, layout: Layout) -> Draft:
        """The draft that the first rank has begun."""
        path = self.path / (layout.name + DRAFT)
        try:
            return Draft(path, os.open(path, os.O_RDWR | os.O_CLOEXEC), layout)
        except OSError as error:
            _warn(path, error)
            return Draft(path, None, layout, failed=True)

    def _make_room(self, layout: Layout) -> None:
        """Delete what the new copy is in place of, and then what was read longest ago, as far as needed.

        What processes that died left as drafts goes as well.
        """
        draft = layout.name + DRAFT
        others = [path for path in self.path.iterdir() if SUFFIX in path.suffixes and path.name != draft]
        for path in others:
            if path.suffix == DRAFT or path.name.startswith(layout.place):
                _delete(path)
        left = [(path.stat().st_atime_ns, path.stat().st_size, path) for path in others if path.exists()]
        held = sum(size for _, size, _ in left)
        for _, size, path in sorted(left):
            if held + layout.size <= self.max_bytes:
                return
            held -= size if path.suffix == SUFFIX and _delete(path) else 0
        if held + layout.size > self.max_bytes:
            raise OSError(0, f"copies that are in use take {held:,} of quantised_cache.max_size")


class Copy:
    """A copy that is open."""

    def __init__(self, path: Path, fd: int, layout: Layout) -> None:
        self.path, self._fd, self.layout = path, fd, layout

    def damage(self) -> str | None:
        """What is wrong with it."""
        status, header = os.fstat(self._fd), self.layout.header
        if status.st_size != self.layout.size:
            return f"has {status.st_size:,} bytes instead of {self.layout.size:,}"
        return None if os.pread(self._fd, len(header), 0) == header else "has another header"

    def load(self, card: ModelCard, parts: Iterable[Shard], progress: Callable[[float], None]) -> None:
        """Fill the parts from it, and from the model's own files what it does not have."""
        logger.info("reading quantised weights path=%s", self.path)
        own = self.layout.card(card, self.path, os.fstat(self._fd))
        try:
            WeightFiles(own).load(parts, progress)
        except (CortexError, OSError):
            self.path.unlink(missing_ok=True)  # whatever it was of: the next load shall not fail of this
            raise

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Copy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class Draft:
    """A copy that is being written, by this rank and the others.

    Args:
        fd: None: it cannot be written here.
        owner: this rank has its lock, and says whether it becomes a copy.
        failed: something could not be written.
    """

    path: Path
    fd: int | None
    layout: Layout
    owner: bool = False
    failed: bool = False
    _written: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, piece: Slice, made: Tensor) -> None:
        """Write rows of a weight, as they are kept; what is not of the copy is none of its business."""
        regions = self.layout.parts.get(piece.name)
        if regions is None or self.failed:
            return
        rows, columns = len(made), piece.format.columns(made.shape[1])
        begin, start = len(self.layout.header), 0
        try:
            for each in regions:
                width = columns // each.elements * each.nbytes
                part, start = made[:, start : start + width].contiguous().numpy(), start + width
                if width == each.row_bytes:
                    _write(self.fd, memoryview(part).cast("B"), begin + each.at(piece.row, 0))
                    continue
                for number, row in enumerate(part, piece.row):
                    _write(self.fd, memoryview(row), begin + each.at(number, piece.column))
        except OSError as error:
            with self._lock:
                first, self.failed = not self.failed, True
            if first:
                _warn(self.path, error)
        with self._lock:
            self._written[piece.name] += rows * columns

    def fractions(self) -> list[float]:
        """Of each weight, how much of it this rank has written; more than one may have written the same."""
        shapes = self.layout.shapes.items()
        return [self._written[name] / (rows * columns) for name, (rows, columns) in shapes]

    def keep(self) -> None:
        """Bring it to its place, in a thread: until all of it is on the disk may take long."""
        fd, self.fd = self.fd, None
        if self.owner:
            threading.Thread(target=self._publish, args=[fd], name="quantised copy").start()
        else:
            os.close(fd)

    def _publish(self, fd: int) -> None:
        final = self.path.with_name(self.layout.name)
        try:
            os.fsync(fd)
            os.rename(self.path, final)
        except OSError as error:
            _warn(self.path, error)
            self.path.unlink(missing_ok=True)
        else:
            logger.info("quantised weights are kept path=%s bytes=%d", final, self.layout.size)
        finally:
            os.close(fd)

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *_: object) -> None:
        """What was not kept is gone."""
        if self.fd is None:
            return
        if self.owner:
            self.path.unlink(missing_ok=True)
        os.close(self.fd)


def _locked(fd: int, path: Path, kind: int) -> bool:
    """Whether this process has that lock of a file now, and the file is still at `path`."""
    try:
        fcntl.flock(fd, kind)
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        return False


def _delete(path: Path) -> bool:
    """Delete a file that nobody holds."""
    try:
        with open(path, "rb") as file:
            if gone := _locked(file.fileno(), path, ALONE):
                path.unlink()
            return gone
    except FileNotFoundError:
        return True


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count


def _warn(path: Path, error: OSError) -> None:
    logger.warning("no quantised copy can be kept path=%s: %s", path, error.strerror)
