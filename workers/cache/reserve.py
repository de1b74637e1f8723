"""Memory that comes and goes under addresses that stay: a pool grows and shrinks, and nothing moves.

A tensor covers a range of addresses as long as the pool may ever be; its beginning has memory. On a CPU the
kernel does that by itself. On a GPU the driver maps physical memory into the range chunk by chunk (the
driver API's "virtual memory management", as PyTorch's expandable segments do it): recorded graphs, page
tables and kernels see the same addresses before and after.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

CHUNK_BYTES = 32 << 20  # of a GPU's memory, that come or go at once: a multiple of what drivers map (2 MiB)
MAP_NORESERVE = 0x4000  # Linux: what is not touched is not counted, however long the range is


class Reserve(Protocol):
    """Addresses for one pool.

    Attributes:
        tensor: `[bytes]` uint8. Only what has memory may be touched; memory that comes is zero.
    """

    tensor: Tensor

    @property
    def unseen(self) -> int:
        """Bytes of its memory that neither the process nor PyTorch has in its figures."""
        ...

    def keep(self, first: int, last: int = 0) -> None:
        """Have memory for the `first` bytes and the `last` ones, and give the rest back.

        Raises:
            MemoryError: the device has not so much; what there was is there still.
        """
        ...

    def close(self) -> None:
        """Give all of it back. The tensor may not be touched any more."""
        ...


class HostReserve:
    """Of a CPU, whose kernel gives memory to whatever is touched.

    Raises:
        OSError: there are no such addresses.
    """

    unseen = 0

    def __init__(self, nbytes: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        self._memory = mmap.mmap(-1, nbytes, flags=flags)
        self.tensor = torch.frombuffer(self._memory, dtype=torch.uint8)

    def keep(self, first: int, last: int = 0) -> None:
        start, end = _up(first, mmap.PAGESIZE), (len(self._memory) - last) // mmap.PAGESIZE * mmap.PAGESIZE
        if start < end:
            self._memory.madvise(mmap.MADV_DONTNEED, start, end - start)

    def close(self) -> None:
        self.keep(0)


class Driver(Protocol):
    """What a GPU's driver does with addresses and memory. Sizes are bytes, and multiples of CHUNK_BYTES."""

    def reserve(self, size: int) -> int:
        """Addresses for so much, without memory: the first of them. Raises OSError."""
        ...

    def free(self, address: int, size: int) -> None:
        """Give addresses back, at none of which there is memory."""
        ...

    def create(self, size: int) -> int:
        """A handle of physical memory. Raises MemoryError."""
        ...

    def release(self, handle: int) -> None:
        """Give memory back; where it stands at addresses, it goes when they are unmapped."""
        ...

    def map(self, address: int, size: int, handle: int) -> None:
        """Have memory stand there, to be read and written."""
        ...

    def unmap(self, address: int, size: int) -> None:
        """Have no memory there any more; the addresses stay reserved."""
        ...

    def tensor(self, address: int, size: int) -> Tensor:
        """`[size]` uint8 there, of which the first chunk has memory."""
        ...

    def synchronize(self) -> None:
        """Wait for all that was launched."""
        ...


class DeviceReserve:
    """Of a GPU. Its first chunk has memory always, for that is how a tensor is known to be the device's.

    Args:
        nbytes: of the range.

    Raises:
        MemoryError, OSError: the driver has no such addresses, or not one chunk.
    """

    def __init__(self, nbytes: int, driver: Driver) -> None:
        self._driver = driver
        self._size = _up(nbytes, CHUNK_BYTES)
        self._nbytes = nbytes
        self._handles: dict[int, int] = {}  # by the number of a chunk
        self._address = driver.reserve(self._size)
        try:
            self._map(0)
            whole = driver.tensor(self._address, self._size)
        except BaseException:
            self.close()
            raise
        self.tensor = whole[:nbytes]
        self._whole = whole
        whole[:CHUNK_BYTES].zero_()

    @property
    def unseen(self) -> int:
        return len(self._handles) * CHUNK_BYTES

    def keep(self, first: int, last: int = 0) -> None:
        wanted = set(range(_up(max(first, 1), CHUNK_BYTES) // CHUNK_BYTES))
        if last:
            wanted |= set(range((self._nbytes - last) // CHUNK_BYTES, self._size // CHUNK_BYTES))
        come, go = sorted(wanted - self._handles.keys()), sorted(self._handles.keys() - wanted)
        for done, number in enumerate(come):
            try:
                self._map(number)
            except BaseException:
                for each in come[:done]:
                    self._unmap(each)
                raise
        for start, end in _runs(come):
            self._whole[start * CHUNK_BYTES : end * CHUNK_BYTES].zero_()
        if go:
            self._driver.synchronize()
        for number in go:
            self._unmap(number)

    def close(self) -> None:
        self._driver.synchronize()
        for number in list(self._handles):
            self._unmap(number)
        self._driver.free(self._address, self._size)

    def _map(self, number: int) -> None:
        handle = self._driver.create(CHUNK_BYTES)
        try:
            self._driver.map(self._address + number * CHUNK_BYTES, CHUNK_BYTES, handle)
        except BaseException:
            self._driver.release(handle)
            raise
        self._handles[number] = handle

    def _unmap(self, number: int) -> None:
        self._driver.unmap(self._address + number * CHUNK_BYTES, CHUNK_BYTES)
        self._driver.release(self._handles.pop(number))


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _Properties(ctypes.Structure):  # CUmemAllocationProp
    _fields_ = (
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location", _Location),
        ("win32", ctypes.c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    )


class _Access(ctypes.Structure):  # CUmemAccessDesc
    _fields_ = (("location", _Location), ("flags", ctypes.c_int))


class CudaDriver:
    """The CUDA driver's own functions, on one device.

    Raises:
        OSError: there is no driver here, or it knows no virtual memory management.
    """

    PINNED, DEVICE, READ_WRITE, OUT_OF_MEMORY = 1, 1, 3, 2  # of the driver's enums
    MANAGES_ADDRESSES = 102  # CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._library = ctypes.CDLL("libcuda.so.1")
        location = _Location(self.DEVICE, device.index)
        self._properties = _Properties(type=self.PINNED, location=location)
        self._access = _Access(location, self.READ_WRITE)
        supported, ordinal = ctypes.c_int(), ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(ordinal), ctypes.c_int(device.index))
        self._call(
            "cuDeviceGetAttribute", ctypes.byref(supported), ctypes.c_int(self.MANAGES_ADDRESSES), ordinal
        )
        if not supported.value:
            raise OSError(f"{device} has no virtual memory management")

    def reserve(self, size: int) -> int:
        address = ctypes.c_uint64()
        nothing = ctypes.c_uint64(0)
        self._call(
            "cuMemAddressReserve", ctypes.byref(address), ctypes.c_size_t(size), nothing, nothing, nothing
        )
        return address.value

    def free(self, address: int, size: int) -> None:
        self._call("cuMemAddressFree", ctypes.c_uint64(address), ctypes.c_size_t(size))

    def create(self, size: int) -> int:
        handle = ctypes.c_uint64()
        properties = ctypes.byref(self._properties)
        self._call("cuMemCreate", ctypes.byref(handle), ctypes.c_size_t(size), properties, ctypes.c_uint64(0))
        return handle.value

    def release(self, handle: int) -> None:
        self._call("cuMemRelease", ctypes.c_uint64(handle))

    def map(self, address: int, size: int, handle: int) -> None:
        start, length = ctypes.c_uint64(address), ctypes.c_size_t(size)
        self._call("cuMemMap", start, length, ctypes.c_size_t(0), ctypes.c_uint64(handle), ctypes.c_uint64(0))
        try:
            self._call("cuMemSetAccess", start, length, ctypes.byref(self._access), ctypes.c_size_t(1))
        except BaseException:
            self.unmap(address, size)
            raise

    def unmap(self, address: int, size: int) -> None:
        self._call("cuMemUnmap", ctypes.c_uint64(address), ctypes.c_size_t(size))

    def tensor(self, address: int, size: int) -> Tensor:
        return torch.as_tensor(_Range(address, size), device=self._device)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)

    def _call(self, name: str, *arguments: object) -> None:
        if not (status := getattr(self._library, name)(*arguments)):
            return
        if status == self.OUT_OF_MEMORY:
            raise MemoryError(f"{self._device} has no memory left ({name})")
        raise OSError(f"{name} failed with CUDA's error {status}")


class _Range:
    """What `torch.as_tensor` makes a tensor of without a copy."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }


def reserve(nbytes: int, device: torch.device) -> Reserve:
    """Addresses on a device, which have no memory yet.

    Raises:
        OSError, MemoryError: it has none that memory can come to and go from.
    """
    return HostReserve(nbytes) if device.type == "cpu" else DeviceReserve(nbytes, CudaDriver(device))


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Those that follow each other, as (first, one after the last)."""
    start = 0
    for index in range(1, len(numbers) + 1):
        if index == len(numbers) or numbers[index] != numbers[index - 1] + 1:
            yield numbers[start], numbers[index - 1] + 1
            start = index


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
