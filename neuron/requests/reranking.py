"""One open `Rerank`: documents to scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ipc.messages import Ranked, Reply, Rerank
from neuron.description import ModelDescription
from neuron.refusals import bad_request
from neuron.requests.inputs import encode_pairs
from neuron.requests.request import OpenRequest
from neuron.requests.vectors import MAX_INPUTS, VectorRequest
from neuron.text.frontend import TextFrontEnd


class Reranking(VectorRequest):
    """Each document is one sequence in the worker, with the query before it."""

    request: Rerank

    def __init__(
        self,
        keys: Iterator[int],
        request: Rerank,
        send: Callable[[Reply], None],
        on_end: Callable[[OpenRequest], None],
    ) -> None:
        super().__init__(keys, request, send, on_end, "input", len(request.input))
        if not 0 < len(request.input) <= MAX_INPUTS:
            raise bad_request("input", f"there are {len(request.input)} documents, not 1 to {MAX_INPUTS}")
        if not request.query:
            raise bad_request("query", "query is empty")
        self._sigmoid = True

    def prepare(
        self,
        text: TextFrontEnd,
        description: ModelDescription,
        context_length: int,
        seconds: float | None = None,
    ) -> None:
        inputs = encode_pairs(self.request, text, description, context_length)
        self._sigmoid = description.reranker.sigmoid
        self.submit(inputs, "score", description)

    def reply(self) -> Ranked:
        scores = np.array([part.values[0] for part in self.parts], np.float64)
        if self._sigmoid:
            scores = 1 / (1 + np.exp(-scores))
        return Ranked(id=self.request.id, scores=scores.tolist(), prompt_tokens=self.prompt_tokens)
