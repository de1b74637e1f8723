"""What texts to vectors and texts to scores have in common: each input is one sequence, of one vector."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator

import numpy as np

from ipc.messages import Embed, Reply, Usage
from ipc.worker_messages import Pooling, SequenceReport, Submit
from neuron.description import ModelDescription
from neuron.requests.inputs import Input, check_tokens, most_tokens
from neuron.requests.prompt import pack
from neuron.requests.request import OpenRequest

MAX_INPUTS = 2048  # of one request, as OpenAI has it


class VectorRequest(OpenRequest):
    """Ends when all of its inputs have their vectors.

    Args:
        field: of the request, that has the inputs.
        count: of them.
    """

    parts: list[Vector]

    def __init__(
        self,
        keys: Iterator[int],
        request: Embed,
        send: Callable[[Reply], None],
        on_end: Callable[[OpenRequest], None],
        field: str,
        count: int,
    ) -> None:
        super().__init__(keys, request, send, on_end)
        self.parts = []
        self._field = field
        self._missing = count
        self._description: ModelDescription | None = None

    def submit(self, inputs: list[Input], pooling: Pooling, description: ModelDescription) -> None:
        """Make the sequences."""
        self._description = description
        for number, each in enumerate(inputs):
            submit = Submit(
                request_id=next(self._keys) if number else self.key,
                prompt=pack(each.ids),
                max_tokens=1,
                pooling=pooling,
                priority=self.request.priority,
                account=self.request.account,
                second=each.second,
            )
            self.parts.append(Vector(submit, self))
        self.prompt_tokens = sum(len(each.ids) for each in inputs)

    def check_length(self, context_length: int) -> None:
        most = most_tokens(self._description, context_length)
        for number, part in enumerate(self.parts):
            check_tokens(f"{self._field}[{number}]", len(part.submit.prompt) // 4, most)

    def usage(self) -> Usage:
        return Usage(prompt_tokens=self.prompt_tokens)

    def on_vector(self) -> None:
        """One more input is done."""
        self._missing -= 1
        if not self._missing:
            self._end("finished", self.reply())

    @abstractmethod
    def reply(self) -> Reply:
        """The answer, once all vectors are there."""


class Vector:
    """One input on its way."""

    def __init__(self, submit: Submit, owner: VectorRequest) -> None:
        self.submit = submit
        self.values = np.empty(0, np.float32)
        self._owner = owner

    def advance(self, report: SequenceReport) -> None:
        """Take what a step brought."""
        if self._owner.take(report) and report.finish:
            self.values = np.frombuffer(report.embedding, "<f4")
            self._owner.on_vector()
