"""One open request: from its messages to the worker's sequences, and from their answers to its replies."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial

import msgspec

from ipc.errors import Code, CortexError
from ipc.messages import Delta, Finished, Generate, Reply, Started, Timings, Usage
from ipc.worker_messages import Constraint, SamplingParams, SequenceReport, Submit
from neuron.description import ModelDescription
from neuron.grammar.structured import constrain, hold
from neuron.grammar.tool_calls import allow_call, require_call
from neuron.refusals import bad_request, too_long
from neuron.requests.answer import Answer, News
from neuron.requests.order import stretches
from neuron.requests.prompt import Prompt, encode_prompts, named_prompts, pack, validate
from neuron.requests.request import OpenRequest
from neuron.requests.sampling import MAX_SEED, resolve
from neuron.requests.trace import word
from neuron.text.frontend import TextFrontEnd

log = logging.getLogger("neuron.requests.generation")

MAX_PROMPT_LOGPROBS = 800_000  # of one request, alternatives included: some 50 MB in the last message


class Generation(OpenRequest):
    """One `Generate`: each of the `n` answers to each of its prompts is a sequence in the worker.

    It ends with the last of them. Answers are in the order of their prompts.
    """

    request: Generate
    parts: list[Answer]

    def __init__(
        self,
        keys: Iterator[int],
        request: Generate,
        send: Callable[[Reply], None],
        on_end: Callable[[OpenRequest], None],
    ) -> None:
        validate(request)
        super().__init__(keys, request, send, on_end)
        self.parts = []
        self._prompts: list[Prompt] = []
        self._first_token: float | None = None
        self._usual_tokens: int | None = None  # of an answer, where the model has a say
        self._scoring = request.sampling.max_tokens == 0  # only the prompts are of interest

    # --- on the way down --------------------------------------------------------------------------------

    def prepare(
        self,
        text: TextFrontEnd,
        description: ModelDescription,
        context_length: int,
        seconds: float | None = None,
    ) -> None:
        if not description.completion:
            message = f"model: {self.request.model} writes no text; /v1/models says what it can do"
            raise CortexError(Code.NOT_SUPPORTED, message, param="model")
        self._prompts = encode_prompts(text, self.request, context_length, seconds)
        for prompt in self._prompts:
            if not prompt.ids:
                raise bad_request(prompt.param, f"{prompt.param} has no tokens")
        self.prompt_tokens = sum(len(prompt.ids) for prompt in self._prompts)
        self.check_length(context_length)
        self._check_choices(context_length)
        if description.engine == "simulated":
            self._refuse_what_needs_a_model()
        params = self._resolve(text, description)
        constraint = self._constrain(text)
        for prompt in self._prompts:
            self._add_answers(prompt, params, constraint, text)
        if self.request.echo:
            for prompt, (_, given) in zip(self._prompts, named_prompts(self.request), strict=True):
                prompt.echo = given if isinstance(given, str) else text.decode(given)

    def _check_choices(self, context_length: int) -> None:
        """See that all choices of a prompt are no more work than one that fills the context.

        Where no `max_tokens` is given, they share the context: see `hand_over`.
        """
        sampling = self.request.sampling
        if sampling.n > 1 and sampling.n * (sampling.max_tokens or 0) > context_length:
            raise bad_request(
                "n",
                f"n times max_tokens is {sampling.n * sampling.max_tokens}, above the model's context of "
                f"{context_length} tokens",
            )

    def _resolve(self, text: TextFrontEnd, description: ModelDescription) -> SamplingParams:
        """How tokens are chosen, and what is told of them."""
        sampling = self.request.sampling
        self._usual_tokens = description.defaults.max_tokens
        ends = description.eos_ids
        if self.request.suffix is not None and text.infill is not None:
            ends = [*ends, *text.infill.ends]
        params = resolve(sampling, description.defaults, ends, text)
        if self.request.echo and params.prompt_logprobs is None:
            params = msgspec.structs.replace(params, prompt_logprobs=params.logprobs)
        if params.prompt_logprobs is not None:
            count = self.prompt_tokens * (1 + params.prompt_logprobs)
            if count > MAX_PROMPT_LOGPROBS:
                raise bad_request(
                    "logprobs" if sampling.prompt_logprobs is None else "prompt_logprobs",
                    f"{self.prompt_tokens} tokens of prompts, and alternatives to them, have {count} "
                    f"log-probabilities, more than {MAX_PROMPT_LOGPROBS}",
                )
        return params

    def _constrain(self, text: TextFrontEnd) -> Constraint | None:
        """The grammar of every answer, and how long its thought may be. Only messages can leave a thought
        open, and they are one prompt."""
        request, budget = self.request, self.request.thinking.budget
        formed = request.structured is not None or bool(request.must_call)
        if not formed and budget is None:
            return None
        encode = partial(text.encode, special=False)
        thought, tags = text.thought_after(self._prompts[0].rendered), text.think_tags
        if thought == "none":
            budget = None
        if not formed:
            return None if budget is None else hold("", encode, thought, tags, budget)
        parallel, written = request.parallel_tool_calls, text.tool_format
        if request.must_call:  # of what is no call there is nothing then
            constraint = require_call(
                request.tools, request.must_call, encode, thought, parallel, written, tags
            )
        elif request.tools:
            constraint = allow_call(
                request.tools, request.structured, encode, thought, parallel, written, tags
            )
        else:
            constraint = constrain(request.structured, encode, thought, tags)
        return msgspec.structs.replace(constraint, budget=budget)

    def _add_answers(
        self, prompt: Prompt, params: SamplingParams, constraint: Constraint | None, text: TextFrontEnd
    ) -> None:
        """The `n` answers to one prompt. Prompts that draw with a seed of the client's all draw with that."""
        given = pack(prompt.ids)
        for choice in range(self.request.sampling.n):
            index = len(self.parts)
            seed = params.seed + (index if self.request.sampling.seed is None else choice)
            submit = Submit(
                request_id=next(self._keys) if index else self.key,
                prompt=given,
                max_tokens=0,  # known when the context is: see `hand_over`
                params=msgspec.structs.replace(params, seed=seed & MAX_SEED),
                constraint=constraint,
                priority=self.request.priority,
                account=self.request.account,
                cache_salt=self.request.cache_salt,
            )
            self.parts.append(self._answer(submit, index, prompt, text))
        if params.prompt_logprobs is not None:
            prompt.logprobs = [self.parts[-1].name_first(prompt.ids[0])]

    def _answer(self, submit: Submit, index: int, prompt: Prompt, text: TextFrontEnd) -> Answer:
        goes_on = prompt.rendered is None or self.request.continue_final_message
        return Answer(
            submit,
            index,
            self,
            detokenizer=text.detokenizer(after=prompt.ids if goes_on else ()),
            parser=text.answer_parser(prompt.rendered, self.request),
            spell=text.spell,
            whole=not self.request.stream,
        )

    def _refuse_what_needs_a_model(self) -> None:
        """A simulated engine has neither probabilities nor a choice of tokens."""
        sampling = self.request.sampling
        for name, asked in (
            ("structured_outputs", self.request.structured),
            ("must_call", self.request.must_call or None),
            ("logprobs", sampling.logprobs),
            ("prompt_logprobs", sampling.prompt_logprobs),
        ):
            if asked is not None:
                raise CortexError(
                    Code.NOT_SUPPORTED, f"{name}: the model is simulated and cannot do that", param=name
                )

    def check_length(self, context_length: int) -> None:
        for prompt in self._prompts:
            if len(prompt.ids) >= context_length:
                raise too_long(
                    len(prompt.ids), context_length, prompt.param, self.request.sampling.max_tokens
                )

    def hand_over(self, context_length: int) -> list[Answer]:
        """The sequences for the worker; says `Started` to the client."""
        for answer in self.parts:
            room = context_length - len(self._prompt_of(answer).ids)
            # a worker makes one token at least: where only the prompt is of interest it is not used
            share = context_length // self.request.sampling.n
            share = min(share, self._usual_tokens or share)
            wanted = 1 if self._scoring else self.request.sampling.max_tokens or share
            answer.submit.max_tokens = min(wanted, room)
            answer.fills_context = wanted > room
        with_ids = self.request.return_token_ids
        if not self.attempts and (self.request.stream or with_ids):
            ids = [prompt.ids for prompt in self._prompts] if with_ids else None
            self._send(Started(id=self.request.id, prompt_tokens=self.prompt_tokens, prompt_token_ids=ids))
        return super().hand_over(context_length)

    def _prompt_of(self, answer: Answer) -> Prompt:
        return self._prompts[answer.index // self.request.sampling.n]

    def _speaks_for_prompt(self, answer: Answer) -> bool:
        """Whether it is the first of its prompt: what a worker says of a prompt is taken from that one."""
        return answer.index % self.request.sampling.n == 0

    # --- on the way up ----------------------------------------------------------------------------------

    def on_report(self, answer: Answer, report: SequenceReport) -> bool:
        """Take what a report says of the request as a whole; False: it has nothing for the answer."""
        if not self.take(report):
            return False
        if self._speaks_for_prompt(answer):
            prompt = self._prompt_of(answer)
            prompt.cached_tokens = max(prompt.cached_tokens, report.cached_tokens)
            if report.prompt_logprobs:
                prompt.logprobs += map(answer.name, report.prompt_logprobs)
        if report.token_ids and self._first_token is None:
            self._first_token = time.monotonic()
        if self._scoring and report.finish:
            answer.reason = "length"
            self.on_news(answer, News())
        return not self._scoring

    def on_news(self, answer: Answer, news: News) -> None:
        """Send what is new of one answer; end the request with the last of them."""
        if self.request.stream:
            self._stream(answer, news)
        if answer.reason is None:
            return
        if all(each.reason is not None for each in self.parts):
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

    def _stream(self, answer: Answer, news: News) -> None:
        """Send what is new. Tokens without text wait for the next delta, but the first one is news itself."""
        tokens = answer.completion_tokens - answer.tokens_sent
        said, *more = stretches(news.pieces)
        text, prompt_logprobs, with_ids = said.text, None, self.request.return_token_ids
        if not answer.tokens_sent:
            prompt = self._prompt_of(answer)
            text = prompt.echo + text
            if self._speaks_for_prompt(answer):
                prompt_logprobs, prompt.logprobs = prompt.logprobs, None
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
                msgspec.structs.replace(choice, text=self._prompt_of(answer).echo + choice.text)
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

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=sum(answer.completion_tokens for answer in self.parts),
            cached_tokens=sum(prompt.cached_tokens for prompt in self._prompts),
            reasoning_tokens=sum(answer.reasoning_tokens for answer in self.parts),
        )

    def fail(self, error: CortexError, tokens_sent: int = 0) -> None:
        super().fail(error, sum(answer.tokens_sent for answer in self.parts))
