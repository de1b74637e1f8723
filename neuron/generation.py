"""One open request: from its messages to the worker's sequences, and from their answers to its replies."""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable, Iterator
from functools import partial

import msgspec

from ipc.errors import Code, CortexError
from ipc.messages import (
    Delta,
    Finished,
    Generate,
    Reply,
    Started,
    Timings,
    TokenLogprob,
    Usage,
)
from ipc.worker_messages import Constraint, SequenceReport, Submit
from neuron.answer import Answer, News
from neuron.blueprint import Blueprint
from neuron.prompt import encode_prompt, thought_after, validate
from neuron.sampling import MAX_SEED, bad_request, resolve
from neuron.structured import constrain
from neuron.text.frontend import TextFrontEnd
from neuron.text.stops import StopStrings
from neuron.work import Work, too_long

log = logging.getLogger("neuron.generation")


class Generation(Work):
    """One `Generate`: each of its `n` answers is a sequence in the worker; it ends with the last of them."""

    request: Generate
    parts: list[Answer]

    def __init__(
        self,
        keys: Iterator[int],
        request: Generate,
        send: Callable[[Reply], None],
        on_end: Callable[[Work], None],
    ) -> None:
        validate(request)
        super().__init__(keys, request, send, on_end)
        self.parts = []
        self.cached_tokens = 0
        self._first_token: float | None = None
        self._prompt_logprobs: list[TokenLogprob] | None = None  # until they were sent
        self._scoring = request.sampling.max_tokens == 0  # only the prompt is of interest

    # --- on the way down --------------------------------------------------------------------------------

    def prepare(self, text: TextFrontEnd, blueprint: Blueprint, context_length: int) -> None:
        request, sampling = self.request, self.request.sampling
        ids, rendered = encode_prompt(text, request)
        if not ids:
            raise bad_request("prompt", "the prompt has no tokens")
        self._prompt_ids = ids
        self.prompt_tokens = len(ids)
        self.check_length(context_length)
        if sampling.n > 1 and sampling.n * (sampling.max_tokens or 0) > context_length:
            raise bad_request(
                "n",
                f"n times max_tokens is {sampling.n * sampling.max_tokens}, above the model's context of "
                f"{context_length} tokens",
            )
        if blueprint.engine == "simulated":
            self._refuse_what_needs_a_model()
        params = resolve(sampling, blueprint.defaults, blueprint.eos_ids, text)
        if request.echo and params.prompt_logprobs is None:
            params = msgspec.structs.replace(params, prompt_logprobs=params.logprobs)
        constraint: Constraint | None = None
        if request.structured is not None:
            encode = partial(text.encode, special=False)
            thought = thought_after(rendered, blueprint.reasoning)
            constraint = constrain(request.structured, encode, thought)
        self._echo = ""
        if request.echo:
            self._echo = request.prompt if isinstance(request.prompt, str) else text.decode(ids)
        prompt = array("I", ids).tobytes()
        for index in range(sampling.n):
            submit = Submit(
                request_id=next(self._keys) if index else self.key,
                prompt=prompt,
                max_tokens=0,  # known when the context is: see `hand_over`
                params=msgspec.structs.replace(params, seed=params.seed + index & MAX_SEED),
                constraint=constraint,
                priority=request.priority,
                account=request.account,
                cache_salt=request.cache_salt,
            )
            answer = Answer(
                submit,
                index,
                self,
                detokenizer=text.detokenizer(after=ids if rendered is None else ()),
                stops=StopStrings(sampling.stop) if sampling.stop else None,
                include_stop=sampling.include_stop,
                parser=None if rendered is None else text.answer_parser(rendered, request.tools),
                spell=text.spell,
            )
            self.parts.append(answer)

    def _refuse_what_needs_a_model(self) -> None:
        """A simulated engine has neither probabilities nor a choice of tokens."""
        sampling = self.request.sampling
        for name, asked in (
            ("structured_outputs", self.request.structured),
            ("logprobs", sampling.logprobs),
            ("prompt_logprobs", sampling.prompt_logprobs),
        ):
            if asked is not None:
                raise CortexError(
                    Code.NOT_SUPPORTED, f"{name}: the model is simulated and cannot do that", param=name
                )

    def check_length(self, context_length: int) -> None:
        if self.prompt_tokens >= context_length:
            param = "messages" if self.request.messages is not None else "prompt"
            raise too_long(self.prompt_tokens, context_length, param, self.request.sampling.max_tokens)

    def hand_over(self, context_length: int) -> list[Answer]:
        """The sequences for the worker; says `Started` to the client."""
        room = context_length - self.prompt_tokens
        for answer in self.parts:
            # a worker makes one token at least: where only the prompt is of interest it is not used
            wanted = 1 if self._scoring else self.request.sampling.max_tokens or room
            answer.submit.max_tokens = min(wanted, room)
        with_ids = self.request.return_token_ids
        if not self.attempts and (self.request.stream or with_ids):
            ids = self._prompt_ids if with_ids else None
            self._send(Started(id=self.request.id, prompt_tokens=self.prompt_tokens, prompt_token_ids=ids))
        return super().hand_over(context_length)

    # --- on the way up ----------------------------------------------------------------------------------

    def on_report(self, answer: Answer, report: SequenceReport) -> bool:
        """Take what a report says of the request as a whole; False: it has nothing for the answer."""
        if not self.take(report):
            return False
        if not answer.index:
            self.cached_tokens = max(self.cached_tokens, report.cached_tokens)
            if report.prompt_logprobs:
                self._prompt_logprobs = self._prompt_logprobs or [answer.name_first(self._prompt_ids[0])]
                self._prompt_logprobs += map(answer.name, report.prompt_logprobs)
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
        log.error("output of a request cannot be turned into text id=%d", self.key, exc_info=error)
        self.fail(CortexError(Code.INTERNAL, f"the output cannot be turned into text: {error!r}"))

    def _stream(self, answer: Answer, news: News) -> None:
        """Send what is new. Tokens without text wait for the next delta, but the first one is news itself."""
        tokens = answer.completion_tokens - answer.tokens_sent
        text, prompt_logprobs, with_ids = news.text, None, self.request.return_token_ids
        if not answer.tokens_sent:
            text = self._echo + text
            if not answer.index:
                prompt_logprobs, self._prompt_logprobs = self._prompt_logprobs, None
        first = tokens and not answer.tokens_sent
        if text or news.reasoning or news.tools or first or with_ids or news.logprobs or prompt_logprobs:
            answer.tokens_sent = answer.completion_tokens
            self._send(
                Delta(
                    id=self.request.id,
                    tokens=tokens,
                    index=answer.index,
                    text=text,
                    reasoning=news.reasoning,
                    tool_calls=news.tools,
                    token_ids=list(news.token_ids) if with_ids else None,
                    logprobs=news.logprobs,
                    prompt_logprobs=prompt_logprobs,
                )
            )

    def _finish(self) -> None:
        whole = not self.request.stream
        choices = [answer.choice(whole, self.request.return_token_ids) for answer in self.parts]
        if whole and self._echo:
            choices = [msgspec.structs.replace(each, text=self._echo + each.text) for each in choices]
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
                prompt_logprobs=self._prompt_logprobs,
            ),
        )

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=sum(answer.completion_tokens for answer in self.parts),
            cached_tokens=self.cached_tokens,
            reasoning_tokens=sum(answer.reasoning_tokens for answer in self.parts),
        )

    def fail(self, error: CortexError, tokens_sent: int = 0) -> None:
        super().fail(error, sum(answer.tokens_sent for answer in self.parts))
