"""One open `Embed`: texts to vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ipc.errors import Code, CortexError
from ipc.messages import Embed, Embeddings, Reply, Usage
from ipc.worker_messages import SequenceReport, Submit
from neuron.description import ModelDescription
from neuron.refusals import bad_request, too_long
from neuron.requests.prompt import pack, to_ids
from neuron.requests.request import OpenRequest
from neuron.text.frontend import TextFrontEnd

MAX_INPUTS = 2048  # of one request, as OpenAI has it


class Embedding(OpenRequest):
    """Each input is one sequence in the worker; it ends when all of them have their vectors."""

    request: Embed

    def __init__(
        self,
        keys: Iterator[int],
        request: Embed,
        send: Callable[[Reply], None],
        on_end: Callable[[OpenRequest], None],
    ) -> None:
        super().__init__(keys, request, send, on_end)
        if not 0 < len(request.input) <= MAX_INPUTS:
            raise bad_request("input", f"input has {len(request.input)} entries, not 1 to {MAX_INPUTS}")
        for number, each in enumerate(request.input):
            if not each:
                raise bad_request(f"input[{number}]", f"input[{number}] is empty")
        if request.dimensions is not None and request.dimensions < 1:
            raise bad_request("dimensions", f"dimensions is {request.dimensions}, not 1 or more")
        self._missing = len(request.input)

    def prepare(
        self,
        text: TextFrontEnd,
        description: ModelDescription,
        context_length: int,
        seconds: float | None = None,
    ) -> None:
        if description.engine == "simulated":
            raise CortexError(Code.NOT_SUPPORTED, "model: a simulated one has no embeddings", param="model")
        for number, each in enumerate(self.request.input):
            ids = to_ids(text, each, f"input[{number}]", context_length)
            submit = Submit(
                request_id=next(self._keys) if number else self.key,
                prompt=pack(ids),
                max_tokens=1,
                pooling=self.request.pooling,
                priority=self.request.priority,
                account=self.request.account,
            )
            self.parts = [*self.parts, Vector(submit, self)]
            self.prompt_tokens += len(ids)
        self.check_length(context_length)

    def check_length(self, context_length: int) -> None:
        for number, part in enumerate(self.parts):
            if (tokens := len(part.submit.prompt) // 4) >= context_length:
                raise too_long(tokens, context_length, f"input[{number}]", None)

    def usage(self) -> Usage:
        return Usage(prompt_tokens=self.prompt_tokens)

    def on_vector(self) -> None:
        """One more input is done."""
        self._missing -= 1
        if self._missing:
            return
        vectors = []
        for part in self.parts:
            vector = part.values[: self.request.dimensions]
            if self.request.normalize:
                vector = vector / max(np.linalg.norm(vector.astype(np.float64)), 1e-12)
            vectors.append(vector.astype("<f4").tobytes())
        self._end(
            "finished", Embeddings(id=self.request.id, vectors=vectors, prompt_tokens=self.prompt_tokens)
        )


class Vector:
    """One input on its way."""

    def __init__(self, submit: Submit, owner: Embedding) -> None:
        self.submit = submit
        self.values = np.empty(0, np.float32)
        self._owner = owner

    def advance(self, report: SequenceReport) -> None:
        """Take what a step brought."""
        if not self._owner.take(report) or not report.finish:
            return
        self.values = np.frombuffer(report.embedding, "<f4")
        most, wanted = len(self.values), self._owner.request.dimensions
        if wanted is not None and wanted > most:
            self._owner.fail(
                bad_request("dimensions", f"dimensions is {wanted}, and the model's vectors have {most}")
            )
        else:
            self._owner.on_vector()
