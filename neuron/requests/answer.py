"""One answer to a request: from the worker's tokens to text, reasoning, tool calls and log-probabilities."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ipc.messages.answers import Alternative, Choice, FinishReason, TokenLogprob
from ipc.worker_messages import Logprobs, SequenceReport, Submit
from neuron.preparation.placing import PreparedImage
from neuron.requests.order import Spans, joined
from neuron.text.detokenizer import Detokenizer
from neuron.text.parser import AnswerParser, Piece

TOGETHER = 10_000  # pieces of a text that is kept: to join, and to free, a million at its end takes long


@dataclass(slots=True)
class News:
    """What a report adds to an answer."""

    pieces: Sequence[Piece] = ()
    token_ids: Sequence[int] = ()
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Owner(Protocol):
    """Whoever is told of an answer's progress."""

    def on_news(self, answer: Answer, news: News) -> None:
        """Told what a report added to it."""
        ...

    def on_report(self, answer: Answer, report: SequenceReport) -> bool:
        """Told first of each report; False when the answer has nothing to take from it."""
        ...

    def on_fault(self, error: Exception) -> None:
        """Told when what was written could not be taken."""
        ...


class Answer:
    """Takes the reports on one sequence. It ends by its finish, or by a stop string.

    Args:
        submit: the sequence, as the worker gets it.
        index: its number among the answers to its request.
        parser: tells its parts apart, and where it ends.
        spell: the bytes of a token.
        whole: keep all of it for `choice`. What is streamed need not be kept.
    """

    def __init__(
        self,
        submit: Submit,
        index: int,
        owner: Owner,
        *,
        detokenizer: Detokenizer,
        parser: AnswerParser,
        spell: Callable[[int], bytes],
        whole: bool,
    ) -> None:
        self.submit = submit
        self.index = index
        self.images: list[PreparedImage] = []  # of its prompt
        self.reason: FinishReason | None = None  # once it ended
        self.fills_context = False  # whether the context has no room for all that it may write
        self.completion_tokens = 0
        self.reasoning_tokens = 0
        self.tokens_sent = 0  # tokens behind the deltas so far
        self.token_ids = array("I")  # all that it has written, for a worker that has to go on with it
        self.logprobs: list[TokenLogprob] = []
        self._owner = owner
        self._detokenizer = detokenizer
        self._parser = parser
        self._spell = spell
        self._whole = whole
        self._stop_ids = frozenset(submit.params.stop_ids)
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._spans = Spans()
        self._recalled: list[Piece] | None = None  # what was written elsewhere, until it is told

    @property
    def key(self) -> int:
        """Its id between supervisor and worker."""
        return self.submit.request_id

    @property
    def is_over(self) -> bool:
        """Whether it ended, and its owner was told so."""
        return self.reason is not None and self._recalled is None

    def advance(self, report: SequenceReport) -> None:
        """Take what a step brought."""
        if self.reason is not None or not self._owner.on_report(self, report):
            return
        if not report.token_ids and not report.finish:
            return
        self._advance(report.token_ids, report.finish, report.details.logprobs)

    def recall(self, token_ids: Sequence[int]) -> None:
        """Read some more of what another worker wrote of it, the last token aside: `go_on` tells that."""
        self._guarded(self._recall, token_ids, "")

    def go_on(self, last: int) -> None:
        """Tell what another worker wrote of it, up to this token; it may turn out that it was all."""
        finish = ""
        if last in self._stop_ids:
            finish = "stop"
        elif len(self.token_ids) + 1 >= self.submit.max_tokens:
            finish = "length"
        self._guarded(self._go_on, last, finish)

    def resume(self) -> None:
        """Have the next worker go on after what there is; it may have no room for more."""
        self.submit.output = self.token_ids.tobytes()
        if self.reason is None and len(self.token_ids) >= self.submit.max_tokens:
            self._advance([], "length", [])

    def _advance(self, ids: Sequence[int], finish: str, told: list[Logprobs]) -> None:
        self._guarded(self._take_all, ids, finish, told)

    def _guarded(self, take: Callable[..., None], *args: Any) -> None:
        """Go on by so much; a fault in that is its owner's alone."""
        try:
            take(*args)
        except Exception as error:
            self._owner.on_fault(error)

    def _recall(self, token_ids: Sequence[int], finish: str) -> None:
        if self.reason is None:
            self._recalled = self._recalled or []
            self._take_all(token_ids, finish, [])
            self._recalled = joined(self._recalled)

    def _go_on(self, last: int, finish: str) -> None:
        self._recall([last], finish)
        self.submit.output = self.token_ids.tobytes()
        recalled, self._recalled = self._recalled, None
        self._tell(News(recalled or (), self.token_ids))

    def _take_all(self, ids: Sequence[int], finish: str, told: list[Logprobs]) -> None:
        taken = 0
        while taken < len(ids) - 1 and self._parser.counts_tokens:
            self._take(ids[taken : taken + 1], "", told[taken : taken + 1])
            if self.reason is not None:
                return
            taken += 1
        self._take(ids[taken:] if taken else ids, finish, told[taken:])

    def choice(self, with_ids: bool) -> Choice:
        """How it ended, and all of it where that was kept."""
        calls, stop_sequence = self._parser.tool_calls, self._parser.stop_sequence
        reason = "tool_calls" if calls and self.reason == "stop" else self.reason
        full = self.fills_context and reason == "length"
        if not self._whole:
            return Choice(reason=reason, index=self.index, stop_sequence=stop_sequence, context_full=full)
        return Choice(
            reason=reason,
            index=self.index,
            text="".join(self._text),
            reasoning="".join(self._reasoning),
            tool_calls=calls,
            token_ids=list(self.token_ids) if with_ids else None,
            logprobs=self.logprobs,
            stop_sequence=stop_sequence,
            context_full=full,
            spans=self._spans.told(),
        )

    def name(self, told: Logprobs) -> TokenLogprob:
        """A log-probability with the texts of its tokens."""
        top = [Alternative(**self._named(token), logprob=logprob) for token, logprob in told.top]
        return TokenLogprob(**self._named(told.token), logprob=told.logprob, rank=told.rank, top=top)

    def name_first(self, token: int) -> TokenLogprob:
        """The first token of a prompt: nothing comes before it that could make it probable."""
        return TokenLogprob(**self._named(token), logprob=None, rank=0)

    def _named(self, token: int) -> dict[str, int | str | bytes]:
        raw = self._spell(token)
        return {"token_id": token, "token": raw.decode(errors="replace"), "raw": raw}

    def _take(self, token_ids: Sequence[int], finish: str, told: list[Logprobs]) -> None:
        self.completion_tokens += len(token_ids)
        self.token_ids.extend(token_ids)
        # The stop id that ended the answer is counted, and is not part of its text.
        stopped = finish == "stop" and token_ids and token_ids[-1] in self._stop_ids
        text = self._detokenizer.push(token_ids[:-1] if stopped else token_ids)
        if finish:
            text += self._detokenizer.finish()
        if self._parser.in_reasoning:
            self.reasoning_tokens += len(token_ids)
        pieces = self._parser.push(text)
        over = self._parser.ended
        if finish or over:
            pieces += self._parser.finish(cut=finish == "length" and not over)
            over = over or self._parser.stop_sequence is not None
            self.reason = "length" if finish == "length" and not over else "stop"
        if self._recalled is None:
            self._tell(News(pieces, token_ids, [self.name(each) for each in told] if told else []))
        else:
            self._recalled += pieces

    def _tell(self, news: News) -> None:
        if self._whole:
            self._keep(news)
        self._owner.on_news(self, news)

    def _keep(self, news: News) -> None:
        self.logprobs += news.logprobs
        for kind, piece in news.pieces:
            if kind != "tool":  # the parser keeps these
                texts = self._text if kind == "text" else self._reasoning
                texts.append(piece)
                if len(texts) == TOGETHER:
                    texts[:] = ["".join(texts)]
        self._spans.add(news.pieces, len(news.logprobs))
