"""One open `Embed`: texts to vectors."""

from __future__ import annotations

import numpy as np

from ipc.messages.replies import Embeddings
from ipc.messages.requests import Embed
from neuron.requests.vectors import VectorRequest


class Embedding(VectorRequest):
    """Each input is one sequence in the worker; it ends when all of them have their vectors."""

    request: Embed

    def made(self, vector: np.ndarray) -> np.ndarray:
        normalize, own = self.request.normalize, self.description.embedder
        if normalize is None:
            normalize = own is None or own.normalize
        vector = vector[: self.request.dimensions]
        if normalize:
            vector = vector / max(np.linalg.norm(vector.astype(np.float64)), 1e-12)
        return vector.astype("<f4")

    def reply(self) -> Embeddings:
        vectors = [part.values.tobytes() for part in self.parts]
        return Embeddings(id=self.request.id, vectors=vectors, prompt_tokens=self.prompt_tokens)
