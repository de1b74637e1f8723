"""What texts to vectors and texts to scores have in common: each input is one sequence, of one vector."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ipc.messages.answers import Usage
from ipc.messages.replies import Reply
from ipc.messages.requests import Embed
from ipc.unread import Unread
from ipc.worker_messages import SequenceReport, Submit
from neuron.description import ModelDescription
from neuron.preparation.inputs import check_tokens, most_tokens
from neuron.preparation.placing import PreparedImage
from neuron.preparation.prepared_inputs import PreparedInputs, prepare_inputs, validate_inputs
from neuron.requests.request import OpenRequest
from neuron.text.answers import AnswerText
from neuron.text.frontend import TextFrontEnd


class VectorRequest(OpenRequest):
    """Ends when all of its inputs have their vectors."""

    request: Embed
    parts: list[Vector]
    description: ModelDescription  # of the model that took it in

    def __init__(
        self,
        keys: Iterator[int],
        request: Embed | Unread,
        send: Callable[[Reply], None],
        on_end: Callable[[OpenRequest], None],
    ) -> None:
        super().__init__(keys, request, send, on_end)
        if isinstance(request, Embed):
            validate_inputs(request)
        self.parts = []
        self._missing = 0

    def prepare(
        self,
        text: TextFrontEnd,
        description: ModelDescription,
        context_length: int,
        seconds: float | None = None,
    ) -> None:
        self.accept(prepare_inputs(self.request, text, description, context_length), text, description)

    def accept(self, prepared: PreparedInputs, text: AnswerText, description: ModelDescription) -> None:
        if prepared.request is not None:
            self.request = prepared.request
        self.description = description
        self._missing = len(prepared.inputs)
        for number, each in enumerate(prepared.inputs):
            submit = Submit(
                request_id=next(self._keys) if number else self.key,
                prompt=each.ids,
                max_tokens=1,
                pooling=prepared.pooling,
                priority=self.request.priority,
                account=self.request.account,
                second=each.second,
            )
            self.parts.append(Vector(number, submit, self))
            self.prompt_tokens += len(each.ids) // 4

    def check_length(self, context_length: int) -> None:
        most = most_tokens(self.description, context_length)
        for number, part in enumerate(self.parts):
            check_tokens(f"input[{number}]", len(part.submit.prompt) // 4, most)

    def hand_over(self, context_length: int) -> Sequence[Vector]:
        super().hand_over(context_length)
        return [part for part in self.parts if not part.values.size]

    def cost_of(self, part: Vector, usual_output: int) -> int:
        return len(part.submit.prompt) // 4

    def usage(self) -> Usage:
        return Usage(prompt_tokens=self.prompt_tokens)

    def on_vector(self, vector: Vector) -> None:
        """One more input is done."""
        self._missing -= 1
        if not self._missing:
            self._end("finished", self.reply())

    def made(self, vector: np.ndarray) -> np.ndarray:
        """What a worker's vector comes to."""
        return vector

    @abstractmethod
    def reply(self) -> Reply:
        """The answer, once all vectors are there."""


class Vector:
    """One input on its way, and its number among those of the request."""

    def __init__(self, number: int, submit: Submit, owner: VectorRequest) -> None:
        self.number = number
        self.submit = submit
        self.images: Sequence[PreparedImage] = ()
        self.values = np.empty(0, np.float32)
        self._owner = owner

    def advance(self, report: SequenceReport) -> None:
        """Take what a step brought."""
        if self._owner.take(report) and report.finish:
            self.values = self._owner.made(np.frombuffer(report.details.embedding, "<f4"))
            self._owner.on_vector(self)
