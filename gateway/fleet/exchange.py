"""One request on its way: to a neuron, and to another where that one refuses or is lost, which goes on with
what has begun; and the account that is taken of it."""

from __future__ import annotations

import logging
from time import monotonic

from msgspec import structs

from gateway.access.principal import ANYBODY, Principal
from gateway.aliases import naming_both
from gateway.fleet import prompts
from gateway.fleet.breaker import FAULTS
from gateway.fleet.patience import NOT_THERE, waited_too_long
from gateway.fleet.prompts import NOTHING
from gateway.fleet.transcript import Transcript
from gateway.fleet.view import Fleet, Neuron
from gateway.refusals import STATUSES, one_line, shown, status_of
from gateway.telemetry import metrics, traces
from ipc.client import Call
from ipc.errors import Code, CortexError
from ipc.messages import (
    Cancelled,
    CountTokens,
    Delta,
    Detokenize,
    Embed,
    Embeddings,
    Failed,
    Finished,
    Generate,
    Progress,
    Ranked,
    Reply,
    Started,
    Text,
    TokenCount,
    Tokens,
    Usage,
)

logger = logging.getLogger("gateway.requests")

CLIENT_LEFT = 499  # nobody receives it: it stands in metrics and the log only
EXCHANGE = "cortex.exchange"  # in a request's ASGI scope: its exchange
MOST_TOKENS = 1 << 40  # of one request, whatever a neuron says that it came to
SHORTEST_STREAM = 8  # tokens, of which it can be said how fast they came
WAIT_SECONDS = 60.0  # the client ends a call whose neuron is silent, so this only bounds each wait
# A stream that fails so soon gets an HTTP status; later it has begun, and says it itself.
VERDICT_SECONDS = 0.5
STALE_SECONDS = 3.0  # after which a request waits no more whose neuron has not said so again
LOOK_SECONDS = 1.0  # between two looks at whether a request that has waited for long enough has begun

# Failures after which another neuron may do better, as long as the answer has not begun. The first ones pass.
_PASSING = frozenset(
    (Code.NEURON_LOST, Code.DRAINING, Code.SHUTTING_DOWN, Code.QUEUE_FULL, Code.INSUFFICIENT_MEMORY)
)
_ELSEWHERE = _PASSING | {Code.MODEL_LOAD_FAILED, Code.MODEL_NOT_FOUND}

# The same, once: another time it would be the request itself that kills workers.
_DEATHS = frozenset((Code.WORKER_DIED, Code.STEP_DEADLINE))

# Failures after which a stream goes on where another neuron has the model, and how often it may.
_RESUMED = _DEATHS | {Code.NEURON_LOST, Code.SHUTTING_DOWN}
RESUMES = 2

# Of OpenTelemetry's, by what is asked.
_OPERATIONS = {Generate: "chat", Embed: "embeddings"}

Asked = Generate | Embed | CountTokens | Detokenize
OneReply = Embeddings | Ranked | TokenCount | Tokens | Text  # that answers a request by itself
ONE_REPLY = OneReply.__args__


class Exchange:
    """A request and its account. Whoever makes one calls `close` in the end, whatever happened.

    Args:
        principal: who asks.
        session: the conversation that it belongs to, where its headers say so; else the request may.

    Attributes:
        status: the HTTP status it is answered with.
        started: the neuron's word that the prompt is accepted.
        finished: its regular end.
        reply: the same, of a request that one reply answers.
        placement: the neuron that has it, and why, in words.
        parent: the `traceparent` header that it came with.
        goes_on: it outlives its HTTP request; whoever notes that closes it.
    """

    def __init__(
        self, fleet: Fleet, request_id: str, principal: Principal = ANYBODY, session: str = ""
    ) -> None:
        self._principal, self._session = principal, session
        self._admitted = False
        self.request_id = request_id
        self.status = 200
        self.started: Started | None = None
        self.finished: Finished | None = None
        self.reply: OneReply | None = None
        self.goes_on = False
        self.placement = ""
        self.parent: str | None = None
        self._fleet = fleet
        self._began = monotonic()
        self._model = metrics.UNKNOWN
        self._name = ""  # the model's, for the log
        self._asked = ""  # what the client calls it
        self._request: Asked | None = None
        self._neuron: Neuron | None = None
        self._call: Call | None = None
        self._prompt = NOTHING
        self._refusals: dict[Neuron, CortexError] = {}  # of neurons that did not take it
        self._error: CortexError | None = None
        self._why = ""  # it was refused, for the log
        self._waits_for: Progress | None = None  # as its neuron said last, and
        self._told = 0.0  # when
        self._answered = False  # some of the answer has passed through here
        self._transcript: Transcript | None = None  # of it, where it can go on elsewhere
        self._resumes = 0
        self._left = False
        self._tokens = 0  # of the answer, that passed through here
        self._first_token = 0.0  # seconds
        self._last_tokens = 0.0  # when
        self._handed_over = 0.0  # when
        self._ready = 0.0  # when the last byte was

    # --- the way ----------------------------------------------------------------------------------------

    async def send(self, request: Asked) -> None:
        """Hand the request over. CortexError when no neuron can take it."""
        request.account, request.trace = self._principal.account, self.request_id
        self._asked, request.model = request.model, self._fleet.resolve(request.model)
        self._request = request
        if self._fleet.knows(request.model):
            self._model = self._name = request.model
        else:
            self._name = shown(request.model)
        if isinstance(request, Generate):
            request.session = prompts.session_name(self._principal.account, self._session or request.session)
            if self._fleet.has_choice(request.model):
                self._prompt = prompts.read(request)
                request.marks = self._prompt.marks()
                if request.stream:
                    request.resumable = True
                    self._transcript = Transcript(_choices(request), request.return_token_ids)
        try:
            self._principal.admit(request.model)
            self._admitted = True
            if isinstance(request, Generate | Embed):
                request.priority = self._principal.weigh(request.priority)
            began = monotonic()
            self._hold(*await self._place())
            self._metrics.placement.observe(monotonic() - began)
        except CortexError as error:
            raise self._naming_the_alias(error) from None

    async def take(self, within: float) -> list[Reply]:
        """The replies that came since the last time, after waiting up to `within` seconds for the first.

        Raises:
            CortexError: the request failed, and what came before that has been taken.
        """
        self.check()
        replies = await self._call.take(within)
        if self._transcript is not None:
            replies = [each for each in replies if type(each) is not Delta or self._transcript.take(each)]
        tokens = 0
        for reply in replies:
            kind = type(reply)
            if kind is Delta:
                tokens += max(reply.tokens, 0)
                self._answered = True
            elif kind is Started:
                if self.started is not None:  # at the neuron before this one, and the client was told
                    replies = [other for other in replies if other is not reply]
                self.started, self._waits_for = reply, None
            elif kind is Progress:
                self._waits_for, self._told = reply, monotonic()
            elif kind is Finished:
                self.finished = reply
                self._neuron.served(self._request.model)
            elif kind in ONE_REPLY:
                self.reply = reply
                if self._needs_load():
                    self._neuron.served(self._request.model)
            elif kind is Failed or kind is Cancelled:
                replies.pop()  # the last one: it is terminal
                await self._fail(reply)
        if tokens:
            self._on_tokens(tokens)
        return replies

    async def verdict(self) -> list[Reply]:
        """The replies until the neuron takes a streamed request, or has had its time to refuse it.

        Raises:
            CortexError: it failed, and nothing was written yet.
        """
        replies: list[Reply] = []
        deadline = monotonic() + VERDICT_SECONDS
        while self.started is None and (left := deadline - monotonic()) > 0:
            replies += await self.take(left)
        self.check()
        return replies

    def check(self) -> None:
        """Raise the failure of the request, where there is one."""
        if self._error is not None:
            raise self._error

    async def whole(self) -> Finished:
        """Wait for the end of an unstreamed request. CortexError when it failed."""
        while self.finished is None:
            await self._wait()
        return self.finished

    async def one(self) -> OneReply:
        """Wait for the reply that answers the request by itself. CortexError when it failed."""
        while self.reply is None:
            await self._wait()
        return self.reply

    async def _wait(self) -> None:
        """Take what comes next for a client that is told nothing meanwhile.

        Raises:
            CortexError: it failed, or has not begun though it waited for longer than such a client should.
        """
        left = self._fleet.load_wait_seconds - (monotonic() - self._began)
        if left > 0:
            await self.take(min(left, WAIT_SECONDS))
            return
        state = self._neuron.models.get(self._request.model) if self._needs_load() else None
        waits_for = self._waits_for if monotonic() - self._told < STALE_SECONDS else None
        seconds = self._fleet.load_wait_seconds
        error = waited_too_long(self._request.model, state, waits_for, seconds)
        if error is None:
            await self.take(LOOK_SECONDS)
            return
        error = self._naming_the_alias(error)
        self._error, self.status = error, status_of(error)
        raise error

    async def _place(self) -> tuple[Neuron, str]:
        return await self._fleet.place(
            self._request.model,
            self._refusals,
            needs_load=self._needs_load(),
            prompt=self._prompt,
            key=self._prompt.key or self.request_id.encode(),
        )

    def _needs_load(self) -> bool:
        """Whether a worker has to do with it. What has not says nothing of how a neuron serves the model."""
        return not isinstance(self._request, CountTokens | Detokenize)

    async def _fail(self, reply: Failed | Cancelled) -> None:
        """Go elsewhere, or note what ended the request."""
        if isinstance(reply, Cancelled):
            error = CortexError(Code.INTERNAL, "the neuron cancelled the request, and nobody had asked it to")
        else:
            error = reply.error()
        metrics.rejected(self._model, self._neuron.name, _label(error)).inc()
        if error.code in FAULTS and self._needs_load():
            self._neuron.failed(self._request.model)
        if not self._answered and self._may_go_elsewhere(error):
            if await self._move(error):
                return
            error = self._refusal()
        elif self._answered and self._may_resume(error):
            self._resumes += error.code in _RESUMED
            self._request.written = self._transcript.written()
            if await self._move(error):
                return
        self._error, self.status = self._naming_the_alias(error), status_of(error)

    def _may_go_elsewhere(self, error: CortexError) -> bool:
        """Whether another neuron might serve it, of which this one has made nothing yet."""
        if error.code in _DEATHS:
            return not any(other.code in _DEATHS for other in self._refusals.values())
        return error.code in _ELSEWHERE

    def _naming_the_alias(self, error: CortexError) -> CortexError:
        return naming_both(error, self._asked, self._request.model)

    def _may_resume(self, error: CortexError) -> bool:
        """Whether another neuron might go on with what one has begun; this one may have refused to."""
        if self._transcript is None or not self._transcript.is_whole:
            return False
        if error.code in _RESUMED:
            return self._resumes < RESUMES
        return self._resumes > 0 and error.code in _ELSEWHERE

    async def _move(self, error: CortexError) -> bool:
        """Hand the request to another neuron, where there is one."""
        self._refusals[self._neuron] = error
        try:
            self._hold(*await self._place())
        except CortexError:
            return False
        metrics.retried(self._model, self._neuron.name, _label(error)).inc()
        if self._resumes:
            self._metrics.resumes.inc()
        return True

    def _refusal(self) -> CortexError:
        """What to say of a request that all refused: the last refusal that may pass, and who else refused.

        One that has not the model says least, where another has it and failed.
        """
        refusals = list(self._refusals.values())
        if len(refusals) == 1:
            return refusals[0]
        having = [error for error in refusals if error.code != Code.MODEL_NOT_FOUND] or refusals
        told = next((error for error in reversed(having) if error.code in _PASSING), having[-1])
        codes = ", ".join(f"{neuron.name} ({error.code})" for neuron, error in self._refusals.items())
        waits = [error.retry_after for error in refusals if error.retry_after is not None]
        return CortexError(
            told.code,
            f"{told.message}; refused by {codes}",
            param=told.param,
            retry_after=min(waits, default=None),
            details=told.details,
        )

    def _alias(self) -> str:
        """What the client calls the model, for the log, where that is not its name."""
        return "" if self._request is None or self._asked == self._request.model else shown(self._asked)

    def _hold(self, neuron: Neuron, reason: str) -> None:
        call = neuron.client.open(self._request)
        if self._call is not None:
            self._let_go()
        self._handed_over = monotonic()
        self._neuron, self._call, self._waits_for = neuron, call, None
        if self._resumes:
            reason += f", to go on after {sum(map(len, self._request.written))} tokens"
        if self._needs_load():
            neuron.began(self._request.model)
        self._fleet.placed(neuron, self._request.model, self._prompt)
        self.placement = f"{neuron.name}: {reason}"
        self._metrics = metrics.of(self._model, neuron.name)
        self._metrics.in_flight.inc()
        if self._needs_load() and _is_away(neuron, self._request.model):
            self._metrics.cold_starts.inc()
        if self._refusals or len(self._fleet.neurons) > 1:  # there was something to decide
            logger.info(
                "request placed request_id=%s model=%s alias=%s neuron=%s reason=%s refused=%s",
                self.request_id,
                self._name,
                self._alias(),
                neuron.name,
                reason,
                ",".join(f"{other.name}:{error.code}" for other, error in self._refusals.items()),
            )

    def _let_go(self) -> None:
        if self._needs_load():
            self._neuron.left(self._request.model)
        self._metrics.in_flight.dec()

    # --- the account ------------------------------------------------------------------------------------

    def _on_tokens(self, tokens: int) -> None:
        now = monotonic()
        if not self._tokens:
            self._first_token = now - self._began
            self._metrics.first_token.observe(self._first_token)
        else:
            self._metrics.inter_token.observe_many((now - self._last_tokens) / tokens, tokens)
        self._tokens += tokens
        self._last_tokens = now

    def ready(self) -> None:
        """The last byte of the answer is ready to be sent."""
        self._ready = monotonic()

    def refused(self, reason: str) -> None:
        """It is answered with an error, for that reason."""
        self._why = reason

    def leave(self) -> None:
        """The client is gone: what is not ready for it yet will never be asked for."""
        if not self._ready:
            self._left = True
            self.status = CLIENT_LEFT

    def close(self) -> None:
        """The last byte is sent, or never will be: end what still runs, count, and say so in one line."""
        neuron = self._neuron.name if self._neuron is not None else ""
        duration = monotonic() - self._began
        metrics.ended(self._model, neuron, self.status).inc()
        if self._call is not None:
            self._call.cancel()  # does nothing to one that has ended
            self._let_go()
            self._count(duration)
        usage = self._usage()
        if self._admitted:
            self._principal.charge(self._model, usage)
        if self._principal.key_id:
            spent = metrics.spent(self._principal.key_id, self._principal.name)
            spent.count(usage.prompt_tokens, usage.completion_tokens)
        if traces.is_on():
            self._trace(neuron, usage, duration)
        logger.info(
            "request ended request_id=%s key=%s model=%s alias=%s neuron=%s status=%d prompt_tokens=%d "
            "completion_tokens=%d first_token=%.4f duration=%.4f reason=%s",
            self.request_id,
            self._principal.key_id,
            self._name,
            self._alias(),
            neuron,
            self.status,
            usage.prompt_tokens,
            usage.completion_tokens,
            self._first_token,
            duration,
            self._reason(),
        )

    def _trace(self, neuron: str, usage: Usage, seconds: float) -> None:
        """Have a span made of it, in the words of OpenTelemetry."""
        operation = _OPERATIONS.get(type(self._request), "")
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "cortex",
            "gen_ai.request.model": self._asked,
            "gen_ai.response.model": self._name if self._request is not None else None,
            "gen_ai.response.id": self.request_id,
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
            "gen_ai.response.time_to_first_chunk": self._first_token or None,
            "http.response.status_code": self.status,
            "cortex.neuron": neuron,
            "cortex.placement": self.placement,
            "cortex.account": self._principal.name,
        }
        if isinstance(self._request, Generate):
            if self._request.messages is None:
                operation = attributes["gen_ai.operation.name"] = "text_completion"
            asked = self._request.sampling
            attributes |= {
                "gen_ai.request.max_tokens": asked.max_tokens,
                "gen_ai.request.temperature": asked.temperature,
                "gen_ai.request.top_p": asked.top_p,
                "gen_ai.request.seed": asked.seed,
                "gen_ai.request.choice.count": asked.n if asked.n != 1 else None,
            }
        if self.finished is not None:
            timings = self.finished.timings
            reasons = tuple(choice.reason for choice in self.finished.choices)
            attributes |= {"gen_ai.response.finish_reasons": reasons, "cortex.queue_seconds": timings.queue}
        error = self._error.code if self._error is not None else "cancelled" if self._left else ""
        if not error and self.status >= 400:
            error = str(self.status)
        traces.record(
            f"{operation or 'request'} {self._name}".strip(), seconds, attributes, self.parent, error
        )

    def _usage(self) -> Usage:
        """What it came to; of a request without a regular end, as much as is known here."""
        if self.finished is not None:
            said = self.finished.usage
        elif isinstance(self.reply, Embeddings | Ranked):
            said = Usage(prompt_tokens=self.reply.prompt_tokens)
        else:
            prompt_tokens = self.started.prompt_tokens if self.started is not None else 0
            said = Usage(prompt_tokens=prompt_tokens, completion_tokens=self._tokens)
        return Usage(*(min(max(count, 0), MOST_TOKENS) for count in structs.astuple(said)))

    def _reason(self) -> str:
        if self._left:
            return "client left"
        if self._error is not None:
            return one_line(f"{self._error.code}: {self._error.message}")
        if self._why:
            return one_line(self._why)
        return self.finished.choices[0].reason if self.finished is not None else ""

    def _count(self, duration: float) -> None:
        counts, usage, finished = self._metrics, self._usage(), self.finished
        counts.duration.observe(duration)
        if self.status >= 400 and not self._left:
            counts.errors.inc()
        if self._tokens >= SHORTEST_STREAM and (taken := self._last_tokens - self._began - self._first_token):
            counts.speed.observe((self._tokens - 1) / taken)
        counts.prompt_tokens.inc(usage.prompt_tokens)
        counts.completion_tokens.inc(usage.completion_tokens)
        counts.cached_tokens.inc(usage.cached_tokens)
        if self._left:
            counts.cancelled.inc()
        if finished is None:
            return
        counts.queue.observe(finished.timings.queue)
        self._fleet.measure(self._request.model, self._prompt, usage.prompt_tokens)
        if not self._tokens:  # it was not streamed
            self._first_token = finished.timings.first_token
            counts.first_token.observe(self._first_token)
        if self._ready and not self._refusals:  # else a lost neuron's silence would count as ours
            counts.added.observe(self._handed_over - self._began + self._ready - self._call.ended)


def _choices(request: Generate) -> int:
    """How many answers there will be: `n` of each prompt."""
    several = isinstance(request.prompt, list) and not isinstance(request.prompt[0], int)
    return request.sampling.n * (len(request.prompt) if several else 1)


def _label(error: CortexError) -> str:
    """Its code, for a metric: neurons cannot make labels up."""
    return error.code if error.code in STATUSES else metrics.UNKNOWN


def _is_away(neuron: Neuron, model: str) -> bool:
    """Whether the model is not loaded there."""
    state = neuron.models.get(model)
    return state is None or state.status in NOT_THERE
