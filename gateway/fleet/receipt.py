"""The receipt of one request: what it came to, counted, charged, traced, and said in one line of the log."""

from __future__ import annotations

from time import monotonic

from gateway.access.principal import Principal
from gateway.refusals import one_line, shown, status_of, unwind
from gateway.telemetry import metrics, traces
from ipc.errors import CortexError
from ipc.logs import Gathered
from ipc.messages.answers import Usage
from ipc.messages.replies import Embeddings, Finished, Ranked, Started, Text, TokenCount, Tokens
from ipc.messages.requests import CountTokens, Detokenize, Embed, Generate

CLIENT_LEFT = 499  # nobody receives it: it stands in metrics and the log only
SHORTEST_STREAM = 8  # tokens, of which it can be said how fast they came

# Of OpenTelemetry's, by what is asked.
_OPERATIONS = {Generate: "chat", Embed: "embeddings"}

Asked = Generate | Embed | CountTokens | Detokenize
OneReply = Embeddings | Ranked | TokenCount | Tokens | Text  # that answers a request by itself


class Receipt:
    """Of one request, from its arrival to its last byte.

    Args:
        principal: who asks.
        log: gets its line.

    Attributes:
        status: the HTTP status it is answered with.
        admitted: it counts against the limits of its key.
        request: what is asked, by the model's own name; None: that was never known.
        asked: what the client calls the model.
        model: its label in metrics.
        name: the model's, for the log.
        placement: the neuron that has it, and why, in words.
        parent: the `traceparent` header that it came with.
        error: why it failed.
        left: its client is gone, and has not had all of it.
        started: the neuron's word that the prompt is accepted.
        finished: its regular end.
        reply: the same, of a request that one reply answers.
        cut_short: what a neuron says that it came to which has ended it for a client that left.
    """

    def __init__(self, request_id: str, principal: Principal, log: Gathered) -> None:
        self.request_id = request_id
        self.principal = principal
        self.status = 200
        self.admitted = False
        self.request: Asked | None = None
        self.asked = self.name = self.placement = ""
        self.model = metrics.UNKNOWN
        self.parent: str | None = None
        self.error: CortexError | None = None
        self.left = False
        self.started: Started | None = None
        self.finished: Finished | None = None
        self.reply: OneReply | None = None
        self.cut_short: Usage | None = None
        self.began = monotonic()
        self._neuron = self._placed = ""
        self._metrics: metrics.ModelMetrics | None = None  # with that neuron
        self._log = log
        self._why = ""  # it was refused, for the log
        self._tokens = 0  # of the answer, that passed through here
        self._first_token = 0.0  # seconds
        self._last_tokens = 0.0  # when
        self._handed_over = 0.0  # when
        self._ready = 0.0  # when the last byte was
        self._left_at = 0.0

    @property
    def alias(self) -> str:
        """What the client calls the model, for the log, where that is not its name."""
        return "" if self.request is None or self.asked == self.request.model else shown(self.asked)

    def on_handed_over(self, neuron: str, reason: str, counts: metrics.ModelMetrics) -> None:
        """That neuron has it, for that reason."""
        self._handed_over = monotonic()
        self._neuron, self._placed, self._metrics = neuron, reason, counts
        self.placement = f"{neuron}: {reason}"

    def on_tokens(self, tokens: int) -> None:
        """So many more of the answer pass through here."""
        now = monotonic()
        if not self._tokens:
            self._first_token = now - self.began
            self._metrics.first_token.observe(self._first_token)
        else:
            self._metrics.inter_token.observe_many((now - self._last_tokens) / tokens, tokens)
        self._tokens += tokens
        self._last_tokens = now

    def on_ready(self) -> None:
        """The last byte of the answer is ready to be sent."""
        self._ready = monotonic()

    def on_refused(self, reason: str) -> None:
        """It is answered with an error, for that reason."""
        self._why = reason

    def on_left(self) -> None:
        """The client is gone: what is not ready for it yet will never be asked for."""
        if not self._ready:
            self.left, self._left_at = True, monotonic()
            self.status = CLIENT_LEFT

    def fail(self, error: CortexError) -> None:
        """That is what becomes of it."""
        self.error, self.status = error, status_of(error)

    def close(self, retried: bool = False, call_ended: float = 0.0) -> Usage:
        """It is over: count, charge, and say so in one line.

        Args:
            retried: a neuron did not take it, or was lost.
            call_ended: when the last one had ended it (monotonic).

        Returns:
            What it came to.
        """
        unwind(self.error)
        usage, duration = self.usage(), (self._left_at or monotonic()) - self.began
        metrics.ended(self.model, self._neuron, self.status).inc(1)
        if self._metrics is not None:
            self._count(usage, duration)
            if self.finished is not None and self._ready and not retried:  # or a silence would count as ours
                added = self._handed_over - self.began + self._ready - call_ended
                self._metrics.added.observe(added)
        if self.admitted:
            self.principal.charge(self.model, usage)
        if self.principal.key_id:
            spent = metrics.spent(self.principal.key_id, self.principal.name)
            spent.count(usage.prompt_tokens, usage.completion_tokens)
        if traces.is_on():
            self._trace(usage, duration)
        self._log.info(
            "request ended request_id=%s key=%s model=%s alias=%s neuron=%s placed=%s status=%d "
            "prompt_tokens=%d completion_tokens=%d first_token=%.4f duration=%.4f reason=%s",
            self.request_id,
            self.principal.key_id,
            self.name,
            self.alias,
            self._neuron,
            self._placed,
            self.status,
            usage.prompt_tokens,
            usage.completion_tokens,
            self._first_token,
            duration,
            self._reason(),
        )
        if self.status >= 400:  # its line stands beside what else is said of that
            self._log.write()
        return usage

    def _trace(self, usage: Usage, seconds: float) -> None:
        """Have a span made of it, in the words of OpenTelemetry."""
        operation = _OPERATIONS.get(type(self.request), "")
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "cortex",
            "gen_ai.request.model": self.asked,
            "gen_ai.response.model": self.name if self._neuron else None,
            "gen_ai.response.id": self.request_id,
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
            "gen_ai.response.time_to_first_chunk": self._first_token or None,
            "http.response.status_code": self.status,
            "cortex.neuron": self._neuron,
            "cortex.placement": self.placement,
            "cortex.account": self.principal.name,
        }
        if isinstance(self.request, Generate):
            if self.request.messages is None:
                operation = attributes["gen_ai.operation.name"] = "text_completion"
            asked = self.request.sampling
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
        error = self.error.code if self.error is not None else "cancelled" if self.left else ""
        if not error and self.status >= 400:
            error = self._why.partition(":")[0] or str(self.status)
        name = f"{operation or 'request'} {self.name if self._neuron else ''}".strip()
        traces.record(name, seconds, attributes, self.parent, error)

    def usage(self) -> Usage:
        """What it came to; of a request without a regular end, as much as is known here."""
        if self.finished is not None:
            return self.finished.usage
        if isinstance(self.reply, Embeddings | Ranked):
            return Usage(prompt_tokens=self.reply.prompt_tokens)
        if self.cut_short is not None:
            return self.cut_short
        prompt_tokens = self.started.prompt_tokens if self.started is not None else 0
        return Usage(prompt_tokens=prompt_tokens, completion_tokens=self._tokens)

    def _reason(self) -> str:
        if self.left:
            return "client left"
        if self.error is not None:
            return one_line(f"{self.error.code}: {self.error.message}")
        if self._why:
            return one_line(self._why)
        return self.finished.choices[0].reason if self.finished is not None else ""

    def _count(self, usage: Usage, duration: float) -> None:
        counts, finished = self._metrics, self.finished
        counts.duration.observe(duration)
        if self.status >= 400 and not self.left:
            counts.errors.inc(1)
        if self._tokens >= SHORTEST_STREAM and (taken := self._last_tokens - self.began - self._first_token):
            counts.speed.observe((self._tokens - 1) / taken)
        counts.prompt_tokens.inc(usage.prompt_tokens)
        counts.completion_tokens.inc(usage.completion_tokens)
        counts.cached_tokens.inc(usage.cached_tokens)
        if self.left:
            counts.cancelled.inc(1)
        if finished is None:
            return
        counts.queue.observe(finished.timings.queue)
        if not self._tokens:  # it was not streamed
            self._first_token = finished.timings.first_token
            counts.first_token.observe(self._first_token)
