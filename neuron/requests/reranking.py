"""One open `Rerank`: documents to scores."""

from __future__ import annotations

import numpy as np

from ipc.messages.replies import Ranked
from ipc.messages.requests import Rerank
from neuron.requests.vectors import VectorRequest


class Reranking(VectorRequest):
    """Each document is one sequence in the worker, with the query before it."""

    request: Rerank

    def reply(self) -> Ranked:
        scores = np.array([part.values[0] for part in self.parts], np.float64)
        if self.description.reranker.sigmoid:
            scores = 1 / (1 + np.exp(-scores))
        return Ranked(id=self.request.id, scores=scores.tolist(), prompt_tokens=self.prompt_tokens)
