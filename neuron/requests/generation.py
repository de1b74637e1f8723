"""One open request: from its messages to the worker's sequences, and from their answers to its replies."""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable, Iterator, Sequence

import msgspec

from ipc.errors import Code, CortexError
from ipc.messages.answers import Timings, TokenLogprob, Usage
from ipc.messages.conversation import Tool
from ipc.messages.replies import Delta, Finished, LogprobPiece, Reply, Started
from ipc.messages.requests import Generate
from ipc.unread import Unread
from ipc.worker_messages import PAGE_SIZE, Logprobs, SequenceReport, Submit
from neuron.description import ModelDescription
from neuron.preparation.prepared import Prepared, PreparedPrompt, check_length, prepare
from neuron.preparation.prompt import validate
from neuron.preparation.sampling import MAX_SEED
from neuron.refusals import bad_request
from neuron.requests.answer import Answer, News
from neuron.requests.order import stretches
from neuron.requests.request import OpenRequest
from neuron.text.answers import AnswerText
from neuron.text.detokenizer import CONTEXT
from neuron.text.frontend import TextFrontEnd
from neuron.text.offered_tool import OfferedTool
from neuron.trace import word

log = logging.getLogger("neuron.requests.generation")

# Log-probabilities, alternatives included, of which each takes some 50 bytes.
PIECE = 1000  # that go together: a turn of the loop lasts as long as what it names and writes
RECALLED = 1000  # tokens that are read at once of what was written elsewhere
MOST_WHOLE = 2_000_000  # of an answer that is not streamed, for its client holds all of them

_encode = msgspec.msgpack.Encoder().encode


class OpenPrompt:
    """One prompt of a request, and what the worker says of it.

    Attributes:
        logprobs: of its tokens, where they were asked for, until they were sent.
    """

    __slots__ = ("_heard", "_taken", "cached_tokens", "given", "logprobs", "tokens")

    def __init__(self, given: PreparedPrompt) -> None:
        self.given = given
        self.tokens = given.tokens
        self.cached_tokens = 0
        self.logprobs: list[TokenLogprob] | None = None
        self._taken = self._heard = 0  # log-probabilities: all that were new, and what this worker told

    def new(self, told: list[Logprobs]) -> list[Logprobs]:
        """Of what its worker tells, that which no worker told before it."""
        start = self._taken - self._heard
        self._heard += len(told)
        self._taken = max(self._taken, self._heard)
        return told[start:] if start > 0 else told

    def again(self) -> None:
        """Another worker begins with it."""
        self._heard = 0

    def cost(self, cached: int) -> int:
        """Tokens to compute where so many are cached, and what looks at images come to."""
        return max(self.tokens - cached, 0) + self.looks(cached)

    def looks(self, cached: int) -> int:
        """What looks at those images come to that are not cached as a whole."""
        return sum(image.placed.cost for image in self.given.images if image.placed.end > cached)


class Generation(OpenRequest):
    """One `Generate`: each of the `n` answers to each of its prompts is a sequence in the worker.

    It ends with the last of them. Answers are in the order of their prompts.
    """

    request: Generate  # while it comes unread: an `Unread`, until it is accepted
    parts: list[Answer]

    def __init__(
        self,
        keys: Iterator[int],
        request: Generate | Unread,
        send: Callable[[Reply], None],
        on_end: Callable[[OpenRequest], None],
    ) -> None:
        if isinstance(request, Generate):
            validate(request)
        super().__init__(keys, request, send, on_end)
        self.parts = []
        self._prompts: list[OpenPrompt] = []
        self._first_token: float | None = None
        self._usual_tokens: int | None = None  # of an answer, where the model has a say
        self._most_tokens: int | None = None  # of an answer, where its owner has
        self._scoring = False  # only the prompts are of interest
        self._pages: Sequence[bytes] = ()  # that its marks stand for
        self._written: list[array[int]] = []  # elsewhere, of each answer
        self._kept = self._told = 0  # log-probabilities that wait to be sent, and all that there were

    # --- on the way down --------------------------------------------------------------------------------

    def prepare(
        self,
        text: TextFrontEnd,
        description: ModelDescription,
        context_length: int,
        seconds: float | None = None,
    ) -> None:
        self.accept(prepare(self.request, text, description, context_length, seconds), text, description)
        for _ in self.recall():
            pass

    def accept(self, prepared: Prepared, text: AnswerText, description: ModelDescription) -> None:
        tools = prepared.tools if prepared.request is not None else self.request.tools
        if prepared.request is not None:
            self.request = prepared.request
        self._scoring = self.request.sampling.max_tokens == 0
        self._usual_tokens = description.defaults.max_tokens
        self._most_tokens = description.max_output
        for given in prepared.prompts:
            prompt = OpenPrompt(given)
            self._prompts.append(prompt)
            self.prompt_tokens += prompt.tokens
            self._add_answers(prompt, prepared, tools, text)
        self._written = [array("I", ids) for ids in prepared.written]
        if self._written and len(self._written) != len(self.parts):
            text = f"written has {len(self._written)} choices, not {len(self.parts)}"
            raise bad_request("written", text)

    def recall(self) -> Iterator[None]:
        for answer, token_ids in zip(self.parts, self._written, strict=False):
            for start in range(0, len(token_ids) - 1, RECALLED):
                if self.outcome is not None:  # cancelled, or a fault in the text
                    return
                answer.recall(token_ids[start : min(start + RECALLED, len(token_ids) - 1)])
                yield

    def _add_answers(
        self,
        prompt: OpenPrompt,
        prepared: Prepared,
        tools: Sequence[Tool | OfferedTool],
        text: AnswerText,
    ) -> None:
        """The `n` answers to one prompt. Prompts that draw with a seed of the client's all draw with that."""
        request, params = self.request, prepared.params
        goes_on = prepared.thought is None or request.continue_final_message
        after = prompt.given.token_ids(CONTEXT) if goes_on else ()
        for choice in range(request.sampling.n):
            index = len(self.parts)
            seed = (params.seed + (index if request.sampling.seed is None else choice)) & MAX_SEED
            submit = Submit(
                request_id=next(self._keys) if index else self.key,
                prompt=prompt.given.ids,
                max_tokens=0,  # known when the context is: see `hand_over`
                params=params if seed == params.seed else msgspec.structs.replace(params, seed=seed),
                constraint=prepared.constraint,
                priority=request.priority,
                account=request.account,
                cache_salt=request.cache_salt,
                images=[image.placed for image in prompt.given.images],
            )
            answer = Answer(
                submit,
                index,
                self,
                detokenizer=text.detokenizer(after=after),
                parser=text.answer_parser(prepared.thought, request, tools),
                spell=text.spell,
                whole=not request.stream,
            )
            answer.images = prompt.given.images
            self.parts.append(answer)
        if params.prompt_logprobs is not None and not prepared.written:
            prompt.logprobs = [answer.name_first(prompt.given.first)]

    def check_length(self, context_length: int) -> None:
        for prompt in self._prompts:
            check_length(prompt.given.param, prompt.tokens, self.request.sampling.max_tokens, context_length)

    def cost_of(self, part: Answer, usual_output: int) -> int:
        tokens = min(usual_output, self.request.sampling.max_tokens or usual_output)
        if not self._speaks_for_prompt(part):
            return tokens  # the others have the prompt's pages
        held = 0
        if self.model is not None and len(self._prompts) == 1:
            held = max((self.model.held(mark.digest) for mark in self.request.marks), default=0)
        return self._prompt_of(part).cost(held) + tokens

    @property
    def tokens_computed(self) -> int:
        looks = sum(prompt.looks(prompt.cached_tokens) for prompt in self._prompts)
        return super().tokens_computed + looks

    def hand_over(self, context_length: int) -> list[Answer]:
        """The sequences for the worker; says `Started` to the client."""
        for answer in self.parts:
            room = context_length - self._prompt_of(answer).tokens
            # a worker makes one token at least: where only the prompt is of interest it is not used
            share = context_length // self.request.sampling.n
            share = min(share, self._usual_tokens or share)
            wanted = 1 if self._scoring else self.request.sampling.max_tokens or share
            wanted = min(wanted, self._most_tokens or wanted)
            answer.submit.max_tokens = min(wanted, room)
            answer.fills_context = wanted > room
        self.parts[0].submit.marks = [page for page, _ in self._marked()]
        with_ids = self.request.return_token_ids
        if not self.attempts and (self.request.stream or with_ids):
            ids = [prompt.given.token_ids() for prompt in self._prompts] if with_ids else None
            self._send(Started(id=self.request.id, prompt_tokens=self.prompt_tokens, prompt_token_ids=ids))
            self.told_started = True
        super().hand_over(context_length)
        for prompt in self._prompts:
            prompt.again()
        if self.attempts == 1:
            for answer, token_ids in zip(self.parts, self._written, strict=False):
                if token_ids:
                    answer.go_on(token_ids[-1])
        else:
            for answer in self.parts:
                answer.resume()
        if self.outcome is not None:  # what was written could not be taken
            return []
        return [answer for answer in self.parts if answer.reason is None]

    def _marked(self) -> list[tuple[int, bytes]]:
        """The last whole page of each marked part of the prompt, and the mark."""
        if len(self._prompts) > 1 or not self.request.marks:
            return []
        ends = [(int(mark.share * self.prompt_tokens), mark.digest) for mark in self.request.marks]
        return [(tokens // PAGE_SIZE - 1, digest) for tokens, digest in ends if tokens >= PAGE_SIZE]

    def _prompt_of(self, answer: Answer) -> OpenPrompt:
        return self._prompts[answer.index // self.request.sampling.n]

    def _speaks_for_prompt(self, answer: Answer) -> bool:
        """Whether it is the first of its prompt: what a worker says of a prompt is taken from that one."""
        return answer.index % self.request.sampling.n == 0

    # --- on the way up ----------------------------------------------------------------------------------

    def on_report(self, answer: Answer, report: SequenceReport) -> bool:
        """Take what a report says of the request as a whole; False: it has nothing for the answer."""
        if not self.take(report):
            return False
        if (said := report.more) is not None and self._speaks_for_prompt(answer):
            prompt = self._prompt_of(answer)
            if said.cached_tokens > prompt.cached_tokens:
                if self.model is not None:
                    self.model.reuse(
                        self, prompt.cost(prompt.cached_tokens) - prompt.cost(said.cached_tokens)
                    )
                prompt.cached_tokens = said.cached_tokens
            if said.prompt_logprobs and prompt.logprobs is not None:
                named = list(map(answer.name, prompt.new(said.prompt_logprobs)))
                prompt.logprobs += named
                self._keep(named)
            if said.marks and self.model is not None:
                self._pages = said.marks
                for (page, mark), digest in zip(self._marked(), said.marks, strict=True):
                    self.model.hold(mark, PAGE_SIZE * (page + 1), digest)
        if report.token_ids and self._first_token is None:
            self._first_token = time.monotonic()
        if self._scoring and report.finish and self.outcome is None:
            answer.reason = "length"
            self.on_news(answer, News())
        return not self._scoring and self.outcome is None

    def on_news(self, answer: Answer, news: News) -> None:
        """Send what is new of one answer; end the request with the last of them."""
        if self.request.stream:
            self._stream(answer, news)
        elif news.logprobs:
            self._keep(news.logprobs)
        if answer.reason is None or self.outcome is not None:
            return
        if len(self.parts) == 1 or all(each.is_over for each in self.parts):
            self._finish()
        elif self.model is not None:
            self.model.abort(answer.key)  # a stop string ended it, of which the worker knows nothing

    def on_fault(self, error: Exception) -> None:
        """The text path failed; that ends this request and no other."""
        log.error(
            "output of a request cannot be turned into text id=%d trace=%s",
            self.key,
            word(self.request.trace),
            exc_info=error,
        )
        self.fail(CortexError(Code.INTERNAL, f"the output cannot be turned into text: {error!r}"))

    def _keep(self, named: list[TokenLogprob]) -> None:
        """Note that so much is kept to be sent, and send it where that is enough."""
        count = sum(1 + len(each.top) for each in named)
        self._kept += count
        self._told += count
        if self.request.stream:
            if self._kept > PIECE:
                self._stream_prompts()
        elif self._told > MOST_WHOLE:
            text = (
                f"more than {MOST_WHOLE} log-probabilities, alternatives included, are told in a stream only"
            )
            self.fail(bad_request("logprobs", text))
        elif self._kept > PIECE and self.request.in_pieces:
            self._send_pieces()

    def _stream_prompts(self) -> None:
        """Send what is known of prompts before their first tokens."""
        self._kept = 0
        for number, prompt in enumerate(self._prompts):
            if prompt.logprobs:
                told, prompt.logprobs = prompt.logprobs, []
                index = number * self.request.sampling.n
                self._send(Delta(id=self.request.id, tokens=0, index=index, prompt_logprobs=told))

    def _send_pieces(self) -> None:
        """Send the log-probabilities that are kept."""
        self._kept = 0
        for number, prompt in enumerate(self._prompts):
            if prompt.logprobs:
                self._send_piece(prompt, number, of_prompt=True)
        for answer in self.parts:
            if answer.logprobs:
                self._send_piece(answer, answer.index)

    def _send_piece(self, of: OpenPrompt | Answer, index: int, of_prompt: bool = False) -> None:
        told, of.logprobs = of.logprobs, []
        self._send(
            LogprobPiece(
                id=self.request.id,
                entries=msgspec.Raw(_encode(told)),
                tokens=len(told),
                index=index,
                of_prompt=of_prompt,
            )
        )

    def _stream(self, answer: Answer, news: News) -> None:
        """Send what is new. Tokens without text wait for the next delta, but the first one is news itself."""
        tokens = answer.completion_tokens - answer.tokens_sent
        said, *more = stretches(news.pieces)
        text, prompt_logprobs = said.text, None
        with_ids = self.request.return_token_ids or self.request.resumable
        if not answer.tokens_sent:
            prompt = self._prompt_of(answer)
            text = prompt.given.echo + text
            if self._speaks_for_prompt(answer):
                prompt_logprobs, prompt.logprobs = prompt.logprobs or None, None
        first = tokens and not answer.tokens_sent
        if text or said.reasoning or said.tools or first or with_ids or news.logprobs or prompt_logprobs:
            answer.tokens_sent = answer.completion_tokens
            self._send(
                Delta(
                    id=self.request.id,
                    tokens=tokens,
                    index=answer.index,
                    text=text,
                    reasoning=said.reasoning,
                    tool_calls=said.tools,
                    token_ids=list(news.token_ids) if with_ids else None,
                    logprobs=news.logprobs,
                    prompt_logprobs=prompt_logprobs,
                )
            )
        for each in more:
            self._send(
                Delta(
                    id=self.request.id,
                    tokens=0,
                    index=answer.index,
                    text=each.text,
                    reasoning=each.reasoning,
                    tool_calls=each.tools,
                )
            )

    def _finish(self) -> None:
        choices = [answer.choice(self.request.return_token_ids) for answer in self.parts]
        if self.request.echo and not self.request.stream:
            choices = [
                msgspec.structs.replace(choice, text=self._prompt_of(answer).given.echo + choice.text)
                for answer, choice in zip(self.parts, choices, strict=True)
            ]
        told = [prompt.logprobs for prompt in self._prompts if prompt.logprobs is not None]
        now = time.monotonic()
        self._end(
            "finished",
            Finished(
                id=self.request.id,
                choices=choices,
                usage=self.usage(),
                timings=Timings(
                    queue=self._handed_over - self._arrived,
                    first_token=(self._first_token or now) - self._arrived,
                    total=now - self._arrived,
                ),
                prompt_logprobs=told or None,
            ),
        )

    @property
    def prefill(self) -> tuple[int, float]:
        computed = self.prompt_tokens
        for prompt in self._prompts:
            computed -= prompt.cached_tokens
        return computed, (self._first_token or self._handed_over) - self._handed_over

    @property
    def output_tokens(self) -> float:
        tokens = 0
        for answer in self.parts:
            tokens += answer.completion_tokens
        return tokens / max(1, len(self.parts))

    @property
    def pages(self) -> Sequence[bytes]:
        return self._pages if self._first_token is None else ()

    def usage(self) -> Usage:
        completion = cached = reasoning = 0
        for prompt in self._prompts:
            cached += prompt.cached_tokens
        for answer in self.parts:
            completion += answer.completion_tokens
            reasoning += answer.reasoning_tokens
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=completion,
            cached_tokens=cached,
            reasoning_tokens=reasoning,
        )

    @property
    def tokens_sent(self) -> int:
        return sum(answer.tokens_sent for answer in self.parts)
