"""What rank 0 of a group is told, in its order, though its ring may have no room for all of it yet."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from ipc.ring import Ring
from ipc.worker_messages import ImageData, PlacedImage

PIXEL_BYTES = 256 << 10  # of an image, that travel at once

encode = msgspec.msgpack.Encoder().encode


class Image(Protocol):
    """An image in a prompt."""

    placed: PlacedImage
    pixels: bytes


class _Piece(NamedTuple):
    """Some of an image's pixels, which are encoded only when the ring has room for them."""

    image: Image
    start: int

    def encode(self) -> bytes:
        pixels = self.image.pixels[self.start : self.start + PIXEL_BYTES]
        return encode(ImageData(self.image.placed.digest, self.start, pixels))


class Commands:
    """Writes commands into the ring that rank 0 reads. What finds no room waits here until there is some.

    All that writes raises `RingBroken` where the ring cannot be read any more.
    """

    def __init__(self, ring: Ring) -> None:
        self.largest = ring.largest  # bytes of a command
        self._ring = ring
        self._backlog: deque[bytes | _Piece] = deque()  # that found no room
        self._ringing: asyncio.Handle | None = None  # for commands of this turn of the loop
        self._loop = asyncio.get_running_loop()

    def fileno(self) -> int:
        """Readable when the rank has made room, for `on_room`."""
        return self._ring.room_fileno()

    def send(self, command: bytes) -> None:
        """Write a command, behind those that still wait for room. All that come in one turn of the loop wake
        the worker once."""
        if self._ringing is None:
            self._ringing = self._loop.call_soon(self._wake)
        if self._backlog or not self._ring.try_write(command, ring=False):
            self._backlog.append(command)
            self.flush()

    def show(self, images: Sequence[Image]) -> None:
        """Have the pixels of images go before the next command."""
        for image in images:
            self._backlog.extend(_Piece(image, start) for start in range(0, len(image.pixels), PIXEL_BYTES))

    def flush(self) -> None:
        """Write as far as the ring has room, and the rest when it has room again."""
        while self._backlog:
            if isinstance(command := self._backlog[0], _Piece):
                command = command.encode()
            if self._ring.try_write(command) or (
                self._ring.arm_room(command) and self._ring.try_write(command)
            ):
                self._backlog.popleft()
            else:
                return

    def on_room(self) -> None:
        """Write what waited for the room that there is now."""
        self._ring.drain_room()
        self.flush()

    def drop(self) -> None:
        """Forget what was not written."""
        self._backlog.clear()

    def close(self) -> None:
        """The rank is gone, and its ring will be."""
        if self._ringing is not None:
            self._ringing.cancel()

    def _wake(self) -> None:
        self._ringing = None
        self._ring.ring()
