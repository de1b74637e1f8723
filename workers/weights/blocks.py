"""A weight that is kept in blocks, and the factory that makes all weights of a model."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.checkpoints.blocks import FORMATS, LINE, Format, Formats, filled
from workers.weights import planes
from workers.weights.dequantise import dequantise

BYTES_AT_ONCE = 8 << 20  # of a weight, whose order is changed: that takes some ten times as many


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """A weight `[rows, columns]` in the bytes of its format."""

    format: Format
    data: Tensor  # [rows, format.row_bytes(columns)] uint8
    dtype: torch.dtype = torch.float32  # of what it is multiplied with, and of its rows in an embedding
    in_planes: bool = False  # as `workers.weights.planes` orders the bits of a row
    filled: int = 0  # columns of zeros that rows have behind their own

    @property
    def shape(self) -> tuple[int, int]:
        return self.data.shape[0], self.format.columns(self.data.shape[1]) - self.filled

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    @property
    def device(self) -> torch.device:
        return self.data.device

    def __getitem__(self, rows: slice | Tensor) -> Blocks:
        return Blocks(self.format, self.data[rows], self.dtype, self.in_planes, self.filled)

    def float(self) -> Tensor:  # [rows, columns] float32
        name = self.format.name
        if not self.in_planes:
            return dequantise(name, self.data)
        return dequantise(name, planes.from_planes(name, self.data))[:, : self.shape[1]]

    def to_planes(self) -> Blocks:
        """The same in planes; the bytes of this one are used for it where its rows begin at 16 bytes, and
        are not filled."""
        rows, columns = self.shape
        filling = filled(columns)
        size = self.format.row_bytes(columns + filling)
        stride = -(-size // LINE) * LINE
        into = self.data
        if filling or self.data.stride(0) % LINE:
            into = torch.empty(rows, stride, dtype=torch.uint8, device=self.data.device)[:, :size]
        step = max(1, BYTES_AT_ONCE // size)
        for start in range(0, rows, step):
            part = self.data[start : start + step]
            into[start : start + step] = planes.to_planes(self.format.name, part)
        return Blocks(self.format, into, self.dtype, True, filling)


Weight = Tensor | Blocks

LARGE_PAGE = 2 << 20  # bytes
SHARED_BYTES = 32 << 20  # of host memory that weights share, each of which is smaller
CACHE_LINE = 64  # bytes: at which each of them begins


class Empty:
    """Makes the tensors of a model, whose contents the loader brings.

    Args:
        dtype: of all that is not in blocks.
        formats: the block formats of weights, by name, as `ModelCard.formats` has them.
    """

    def __init__(
        self, dtype: torch.dtype, device: torch.device | str = "cpu", formats: Mapping[str, str] | None = None
    ) -> None:
        self.dtype, self.device = dtype, torch.device(device)
        self.formats = formats if isinstance(formats, Formats) else Formats(formats)
        self._shared, self._taken = torch.empty(0, dtype=torch.uint8), 0

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)

    def weight(self, name: str, rows: int, columns: int) -> Weight:
        """The weight of that name, or some rows and columns of it."""
        if name not in self.formats:
            if (
                self.device.type != "cpu" or self.dtype.itemsize != 2
            ):  # else it may be packed, which copies it
                return self(rows, columns)
            return self._memory(rows * columns * 2).view(self.dtype).view(rows, columns)
        form = FORMATS[self.formats[name]]
        size = form.row_bytes(columns)
        return Blocks(form, self._memory(rows * size).view(rows, size), self.dtype)

    def _memory(self, size: int) -> Tensor:  # [size] uint8
        """Memory of its own; or, for one of many weights on a CPU that each fill no large page, of theirs."""
        if self.device.type != "cpu" or size >= SHARED_BYTES:
            return _in_large_pages(torch.empty(size, dtype=torch.uint8, device=self.device))
        if self._taken + size > len(self._shared):
            self._shared = _in_large_pages(torch.empty(SHARED_BYTES, dtype=torch.uint8))
            self._taken = -self._shared.data_ptr() % CACHE_LINE
        start = self._taken
        self._taken += -(-size // CACHE_LINE) * CACHE_LINE
        return self._shared[start : start + size]

    def order(self, name: str, columns: int) -> Tensor | None:
        """Of the weight of that name the columns as they are kept, `[columns]` int32; None: as they are."""
        if name not in self.formats.orders:
            return None
        return torch.empty(columns, dtype=torch.int32, device=self.device)


def _in_large_pages(data: Tensor) -> Tensor:
    """Ask the kernel for large pages, as far as whole ones lie in a tensor that nobody has written to.

    A weight is read from end to end at each step. In small pages 170 MB take a fifth longer, and so much in
    weights of 1 MB each a half.
    """
    if data.device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return data
    start = -(-data.data_ptr() // LARGE_PAGE) * LARGE_PAGE
    size = (data.data_ptr() + data.nbytes) // LARGE_PAGE * LARGE_PAGE - start
    if size > 0:  # where there are none the call fails, and nothing is lost
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)
    return data
