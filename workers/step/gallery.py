"""The pixels of images, from when they come until nobody whose prompt shows them is open any more."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakValueDictionary

from ipc.worker_messages import ImageData, PlacedImage


class Pixels:
    """Of one image: `[rows, columns, 3]` uint8, as they lie in memory."""

    __slots__ = ("__weakref__", "data")

    def __init__(self) -> None:
        self.data = bytearray()


class Gallery:
    """All pixels that rank 0 has. Whoever `take`s some keeps them here."""

    def __init__(self) -> None:
        self._coming: dict[bytes, Pixels] = {}
        self._there = WeakValueDictionary[bytes, Pixels]()

    def receive(self, piece: ImageData) -> None:
        """Take the next pixels of an image, or the first of one."""
        if not piece.start:
            self._coming[piece.digest] = Pixels()
        self._coming[piece.digest].data += piece.pixels

    def take(self, images: Sequence[PlacedImage]) -> list[Pixels]:
        """The pixels of a prompt's images, each of which came before or is another's, too.

        Raises:
            KeyError: one of them is not there.
        """
        taken = []
        for image in images:
            came = self._coming.pop(image.digest, None)
            there = self._there.get(image.digest)  # whoever has them looks for just these
            if there is None:
                if came is None:
                    raise KeyError(image.digest)
                there = self._there[image.digest] = came
            taken.append(there)
        return taken

    def __getitem__(self, digest: bytes) -> bytearray:
        return self._there[digest].data
