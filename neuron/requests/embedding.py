"""One open `Embed`: texts to vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ipc.messages import Embed, Embeddings, Reply
from neuron.description import ModelDescription
from neuron.refusals import bad_request
from neuron.requests.inputs import check_embed, encode_inputs
from neuron.requests.request import OpenRequest
from neuron.requests.vectors import MAX_INPUTS, VectorRequest
from neuron.text.frontend import TextFrontEnd


class Embedding(VectorRequest):
    """Each input is one sequence in the worker; it ends when all of them have their vectors."""

    request: Embed

    def __init__(
        self,
        keys: Iterator[int],
        request: Embed,
        send: Callable[[Reply], None],
        on_end: Callable[[OpenRequest], None],
    ) -> None:
        super().__init__(keys, request, send, on_end, "input", len(request.input))
        if not 0 < len(request.input) <= MAX_INPUTS:
            raise bad_request("input", f"input has {len(request.input)} entries, not 1 to {MAX_INPUTS}")
        for number, each in enumerate(request.input):
            if not each:
                raise bad_request(f"input[{number}]", f"input[{number}] is empty")
        if request.dimensions is not None and request.dimensions < 1:
            raise bad_request("dimensions", f"dimensions is {request.dimensions}, not 1 or more")
        self._normalize = True

    def prepare(
        self,
        text: TextFrontEnd,
        description: ModelDescription,
        context_length: int,
        seconds: float | None = None,
    ) -> None:
        request, own = self.request, description.embedder
        check_embed(request, description)
        self._normalize = own is None or own.normalize
        if request.normalize is not None:
            self._normalize = request.normalize
        inputs = encode_inputs(request, text, description, context_length)
        self.submit(inputs, request.pooling or ("last" if own is None else own.pooling), description)

    def reply(self) -> Embeddings:
        vectors = []
        for part in self.parts:
            vector = part.values[: self.request.dimensions]
            if self._normalize:
                vector = vector / max(np.linalg.norm(vector.astype(np.float64)), 1e-12)
            vectors.append(vector.astype("<f4").tobytes())
        return Embeddings(id=self.request.id, vectors=vectors, prompt_tokens=self.prompt_tokens)
