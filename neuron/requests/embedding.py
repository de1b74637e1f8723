"""One open `Embed`: texts to vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ipc.messages.replies import Embeddings, Reply, VectorPiece
from ipc.messages.requests import Embed
from ipc.unread import Unread
from neuron.requests.request import OpenRequest
from neuron.requests.vectors import Vector, VectorRequest

PIECE = 512 << 10  # bytes of vectors that go together


class Embedding(VectorRequest):
    """Each input is one sequence in the worker; it ends when all of them have their vectors."""

    request: Embed

    def __init__(
        self,
        keys: Iterator[int],
        request: Embed | Unread,
        send: Callable[[Reply], None],
        on_end: Callable[[OpenRequest], None],
    ) -> None:
        super().__init__(keys, request, send, on_end)
        self._kept: list[Vector] = []  # that were not sent
        self._kept_bytes = 0
        self._has_sent = False

    def made(self, vector: np.ndarray) -> np.ndarray:
        normalize, own = self.request.normalize, self.description.embedder
        if normalize is None:
            normalize = own is None or own.normalize
        vector = vector[: self.request.dimensions]
        if normalize:
            vector = vector / max(np.linalg.norm(vector.astype(np.float64)), 1e-12)
        return vector.astype("<f4")

    def on_vector(self, vector: Vector) -> None:
        if self.request.in_pieces:
            self._kept.append(vector)
            self._kept_bytes += vector.values.nbytes
            if self._kept_bytes > PIECE:
                self._send_piece()
        super().on_vector(vector)

    def _send_piece(self) -> None:
        kept, self._kept, self._kept_bytes = self._kept, [], 0
        self._has_sent = True
        numbers = [vector.number for vector in kept]
        vectors = [vector.values.tobytes() for vector in kept]
        self._send(VectorPiece(id=self.request.id, numbers=numbers, vectors=vectors))

    def reply(self) -> Embeddings:
        if self._has_sent:
            self._send_piece()
        vectors = [] if self._has_sent else [part.values.tobytes() for part in self.parts]
        return Embeddings(id=self.request.id, vectors=vectors, prompt_tokens=self.prompt_tokens)
