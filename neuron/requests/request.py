"""What every request to a worker has in common: it is prepared, waits, is handed over, and ends once."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

import msgspec

from ipc.errors import Code, CortexError
from ipc.messages.answers import Usage
from ipc.messages.replies import Cancelled, Failed, Finished, Reply, Started
from ipc.messages.requests import Embed, Generate
from ipc.unread import Unread
from ipc.worker_messages import SequenceReport, Submit
from neuron.description import ModelDescription
from neuron.preparation.placing import PreparedImage
from neuron.requests.ended import Ended
from neuron.requests.progress import LoadProgress
from neuron.text.answers import AnswerText
from neuron.text.frontend import TextFrontEnd

# It is tokenised; it waits for its model; it waits in the worker; the worker has computed some of it, so that
# doing it again might give another answer; it was answered.
Phase = Literal["preparing", "waiting", "queued", "running", "ended"]


class RequestOwner(Protocol):
    """The model that took a request in."""

    def begin(self, request: OpenRequest) -> None:
        """Told when the worker has computed some of it."""
        ...

    def abort(self, key: int) -> None:
        """End one of its sequences in the worker."""
        ...

    def leave(self, request: OpenRequest) -> None:
        """Told when it ended."""
        ...

    def hold(self, mark: bytes, tokens: int, page: bytes) -> None:
        """Told of so many tokens of a prompt, which a client calls `mark`, and their last page's hash."""
        ...

    def held(self, mark: bytes) -> int:
        """How many tokens of prompts it holds up to that mark."""
        ...

    def reuse(self, request: OpenRequest, tokens: int) -> None:
        """Told that so much of its prompt was computed before, looks at images included."""
        ...


class OpenSequence(Protocol):
    """One of the worker's sequences that a request is made of; takes the reports on it."""

    submit: Submit
    images: Sequence[PreparedImage]  # of its prompt

    def advance(self, report: SequenceReport) -> None: ...


class OpenRequest(ABC):
    """A request on its way, from one `phase` to the next.

    It ends exactly once, by its own success, by `cancel` or by `fail`; whatever comes after that is ignored.

    Args:
        keys: gives ids between supervisor and worker, unique in this neuron.
        request: what was asked.
        send: takes each reply.
        on_end: told once, after the terminal reply was sent.
    """

    def __init__(
        self,
        keys: Iterator[int],
        request: Generate | Embed | Unread,
        send: Callable[[Reply], None],
        on_end: Callable[[OpenRequest], None],
    ) -> None:
        self.key = next(keys)  # orders requests by arrival
        self.request = request
        self.phase: Phase = "preparing"
        self.attempts = 0  # times that a worker got it
        self.deaths = 0  # of workers that had it
        self.outcome: str | None = None  # "finished", "cancelled" or "failed", once it ended
        self.ended: Ended | None = None  # the same, with what it came to
        self.model: RequestOwner | None = None  # that took it in
        self.adapter = 0  # its number among those of the model, from 1; 0: none
        self.prompt_tokens = 0
        self.parts: Sequence[OpenSequence] = ()
        self.told_started = False
        self._waited = False  # and was told so
        self._keys = keys
        self._send = send
        self._on_end = on_end
        self._arrived = time.monotonic()
        self._handed_over = self._arrived
        self._begun_at = self._arrived

    @property
    def image_bytes(self) -> int:
        """Of the pixels of its prompts, each of which several answers may have."""
        sizes: dict[int, int] = {}
        for part in self.parts:
            for image in part.images:
                sizes[id(image)] = len(image.pixels)
        return sum(sizes.values())

    @abstractmethod
    def prepare(
        self,
        text: TextFrontEnd,
        description: ModelDescription,
        context_length: int,
        seconds: float | None = None,
    ) -> None:
        """Tokenise and resolve, and take that in.

        Args:
            seconds: that the chat template may take; see `ChatTemplate.render`.

        Raises:
            CortexError: what is wrong with the request, for this model.
        """

    @abstractmethod
    def accept(self, prepared: Any, text: AnswerText, description: ModelDescription) -> None:
        """Take in what preparing came to, wherever that was done."""

    def recall(self) -> Iterator[None]:
        """Read what was written of it elsewhere, in steps between which others may have their turns."""
        return iter(())

    @abstractmethod
    def check_length(self, context_length: int) -> None:
        """See that all of it fits; CONTEXT_LENGTH_EXCEEDED when not."""

    @abstractmethod
    def cost_of(self, part: OpenSequence, usual_output: int) -> int:
        """Tokens that one of its sequences will come to: to compute of its prompt, to see of its images, and
        to write, at a guess.

        Args:
            usual_output: tokens of an answer.
        """

    @abstractmethod
    def usage(self) -> Usage:
        """What it came to so far."""

    @property
    def tokens_computed(self) -> int:
        """What it has cost the worker, once that has begun with it."""
        usage = self.usage()
        return usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens

    @property
    def output_tokens(self) -> float:
        """Of one of its answers, on average."""
        return 0.0

    @property
    def replicated(self) -> bool:
        """Whether it can go on elsewhere at once, where its worker dies."""
        return getattr(self.request, "replicated", False)

    @property
    def session(self) -> str:
        """The conversation that it belongs to; empty where nobody says."""
        return getattr(self.request, "session", "")

    def hand_over(self, context_length: int) -> Sequence[OpenSequence]:
        """The sequences as the worker takes them."""
        self.attempts += 1
        self.phase = "queued"
        self._handed_over = time.monotonic()
        return self.parts

    def take_back(self) -> None:
        """It waits again, and goes on where it is. Its sequences get new numbers: what the worker still says
        of the old ones is not about these.
        """
        self.phase = "waiting"
        for part in self.parts:
            part.submit.request_id = next(self._keys)

    @property
    def seconds_in_worker(self) -> float:
        """Since it was handed over."""
        return time.monotonic() - self._handed_over

    @property
    def seconds_running(self) -> float:
        """Since the worker was told to have begun with it."""
        return time.monotonic() - self._begun_at

    @property
    def prefill(self) -> tuple[int, float]:
        """Tokens that were computed before its first one, and the seconds from its hand-over to that."""
        return 0, 0.0

    @property
    def pages(self) -> Sequence[bytes]:
        """Hashes of the pages that it had marked, of which it is not known yet that they are computed."""
        return ()

    @property
    def begun(self) -> bool:
        """Whether the worker has computed some of it, and is not done."""
        return self.phase == "running"

    def progress(self, progress: LoadProgress) -> None:
        """Tell the client what it waits for."""
        if self.outcome is None:
            self._waited = True
            self._send(progress.reply(self.request.id))

    def take(self, report: SequenceReport) -> bool:
        """What all parts do with a report first. Returns whether there is more to do with it."""
        if self.outcome is not None:
            return False
        if self.phase != "running":
            self.phase = "running"
            self._begun_at = time.monotonic()
            if self._waited and not self.told_started:  # or its client would think that it waits
                self.told_started = True
                self._send(Started(id=self.request.id, prompt_tokens=self.prompt_tokens))
            if self.model is not None:
                self.model.begin(self)
        if report.finish == "error":
            self.fail(CortexError(report.details.code or Code.INTERNAL, report.details.message))
        elif report.finish == "aborted":
            self.cancel()
        return self.outcome is None

    def cancel(self) -> None:
        """The client wants no more of it, or is gone."""
        if self.outcome is None:
            usage = self.usage() if self.begun or self.output_tokens else Usage()
            self._end("cancelled", Cancelled(id=self.request.id, usage=usage))

    @property
    def tokens_sent(self) -> int:
        """Tokens of its answer that its client has."""
        return 0

    def fail(self, error: CortexError) -> None:
        """It cannot be served."""
        if self.outcome is None:
            failed = Failed.of(self.request.id, error)
            self._end("failed", msgspec.structs.replace(failed, tokens_sent=self.tokens_sent))

    def _end(self, outcome: str, reply: Reply) -> None:
        self.outcome = outcome
        self.phase = "ended"
        self._send(reply)
        usage = reply.usage if isinstance(reply, Finished) else self.usage()
        seconds, reason = time.monotonic() - self._arrived, _reason(reply) or outcome
        self.ended = Ended(outcome, self.key, self.request.trace, self.request.model, usage, seconds, reason)
        self._on_end(self)


def _reason(reply: Reply) -> str:
    """Why a request ended, for the log."""
    if isinstance(reply, Failed):
        reason = f"{reply.code}: {reply.message}"
        return reason if reason.isprintable() else ascii(reason)
    return reply.choices[0].reason if isinstance(reply, Finished) else ""
