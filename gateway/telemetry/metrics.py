"""What one gateway process counts; `gateway.telemetry.exposition` adds the processes up.

Import it in a process that serves, and after its directory is known: prometheus-client chooses where its
values live when it is imported.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from functools import cache
from typing import Protocol

import prometheus_client
from prometheus_client import Counter, Gauge, values

from gateway.telemetry import counts_file
from gateway.telemetry.metrics_directory import VARIABLE

UNKNOWN = "unknown"  # label of a model that no neuron has: clients cannot make labels up

_WAITS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120)
_DURATIONS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200)
_GAPS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_SPEEDS = (1, 2.5, 5, 10, 15, 20, 30, 40, 60, 80, 120, 200, 400, 1000)
_ADDED = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)

_BOTH = ("model", "neuron")


_looked_up: list[_Value] = []  # in this process


class _Value(values.MultiProcessValue()):
    """A number in a file of this process. Where it stands there is looked up once, and there is no lock: what
    is counted is counted in the event loop's thread."""

    _place: memoryview | None = None  # of its eight bytes

    def inc(self, amount: float) -> None:
        place = self._place
        if place is None:
            place = self._look_up()
        self._value = place[0] = self._value + amount

    def _look_up(self) -> memoryview:
        super().inc(0.0)  # after a fork there are other files
        at = self._file._positions[self._key]
        self._place = memoryview(self._file._m)[at : at + 8].cast("d")
        _looked_up.append(self)
        return self._place


def _forget_places() -> None:
    while _looked_up:
        _looked_up.pop()._place = None


os.register_at_fork(after_in_child=_forget_places)
if VARIABLE in os.environ:
    counts_file.use()
    values.ValueClass = _Value


class Histogram(prometheus_client.Histogram):
    """As prometheus-client's, without exemplars, and with its bucket found at once."""

    def observe(self, amount: float) -> None:
        self._sum.inc(amount)
        self._buckets[bisect_left(self._upper_bounds, amount)].inc(1)

    def observe_many(self, amount: float, count: int) -> None:
        """Take several equal observations at the price of one."""
        self._sum.inc(amount * count)
        self._buckets[bisect_left(self._upper_bounds, amount)].inc(count)


_requests = Counter(
    "cortex_requests",
    "Requests ended, by the HTTP status of their answer; 499: the client left; a stream that broke has the "
    "status that its error would have had.",
    (*_BOTH, "status"),
)
_cancelled = Counter("cortex_cancelled", "Requests whose client left before their end.", _BOTH)
_errors = Counter(
    "cortex_request_errors",
    "Requests that ended with an error, of those that a client waited for.",
    _BOTH,
)
_cold_starts = Counter(
    "cortex_cold_starts", "Requests handed to a neuron that had to load their model first.", _BOTH
)
_rejections = Counter(
    "cortex_model_rejections",
    "Requests that a neuron refused, or did not end, by the code of its error; another one may have served "
    "them.",
    (*_BOTH, "reason"),
)
_retries = Counter(
    "cortex_retries",
    "Requests handed to a further neuron, by the code of the error of the one before.",
    (*_BOTH, "reason"),
)
_resumes = Counter(
    "cortex_resumes", "Of these, answers that had begun, with which the further neuron went on.", _BOTH
)
_avoided = Counter(
    "cortex_model_avoided",
    "Times that a gateway process began to keep requests away from a model on a neuron where it had failed.",
    _BOTH,
)
_spent_prompt = Counter("cortex_spend_prompt_tokens", "Tokens of prompts, by API key.", ("key", "account"))
_spent_completion = Counter(
    "cortex_spend_completion_tokens", "Tokens of answers, by API key.", ("key", "account")
)
_spent = Counter("cortex_spend_tokens", "Both together.", ("key", "account"))
_in_flight = Gauge(
    "cortex_requests_in_flight", "Requests at a neuron now.", ("model",), multiprocess_mode="livesum"
)
_prompt_tokens = Counter("cortex_prompt_tokens", "Tokens of prompts.", _BOTH)
_completion_tokens = Counter("cortex_completion_tokens", "Tokens of answers.", _BOTH)
_cached_tokens = Counter(
    "cortex_cached_prompt_tokens", "Tokens of prompts that a prefix cache held, part of all of them.", _BOTH
)
_first_token = Histogram(
    "cortex_time_to_first_token_seconds",
    "From the whole request read to its first token here; of unstreamed requests, as the neuron measured it.",
    _BOTH,
    buckets=_WAITS,
)
_inter_token = Histogram(
    "cortex_inter_token_seconds",
    "Between tokens of a stream; tokens that came together share the time since the last ones.",
    _BOTH,
    buckets=_GAPS,
)
_queue = Histogram(
    "cortex_queue_seconds",
    "From a request's arrival in the neuron to its hand-over to a worker, loading included.",
    _BOTH,
    buckets=_WAITS,
)
_added = Histogram(
    "cortex_gateway_added_seconds",
    "Of finished requests: from the whole request read to its hand-over to the neuron, plus from the arrival "
    "of the neuron's last reply to the answer's last byte being ready to be sent.",
    _BOTH,
    buckets=_ADDED,
)
_speed = Histogram(
    "cortex_tokens_per_second",
    "Of streams of 8 tokens or more, from the first token to the last.",
    _BOTH,
    buckets=_SPEEDS,
)
_placement = Histogram(
    "cortex_placement_seconds",
    "What choosing a neuron took, for the first one of each request; quotes of neurons included.",
    ("model",),
    buckets=_ADDED,
)
_duration = Histogram(
    "cortex_request_duration_seconds",
    "From the whole request read to the last byte of its answer sent.",
    _BOTH,
    buckets=_DURATIONS,
)


class Number(Protocol):
    """What stands behind a counter or a gauge. Nobody checks what is added to it."""

    def inc(self, amount: float) -> None: ...


def _number(metric: Counter | Gauge, *labels: str) -> Number:
    return metric.labels(*labels)._value


class ModelMetrics:
    """The metrics of one model on one neuron, with their labels looked up once."""

    def __init__(self, model: str, neuron: str) -> None:
        labels = (model, neuron)
        self.cancelled = _number(_cancelled, *labels)
        self.in_flight = _number(_in_flight, model)
        self.prompt_tokens = _number(_prompt_tokens, *labels)
        self.completion_tokens = _number(_completion_tokens, *labels)
        self.cached_tokens = _number(_cached_tokens, *labels)
        self.errors = _number(_errors, *labels)
        self.cold_starts = _number(_cold_starts, *labels)
        self.resumes = _number(_resumes, *labels)
        self.first_token = _first_token.labels(*labels)
        self.inter_token = _inter_token.labels(*labels)
        self.queue = _queue.labels(*labels)
        self.added = _added.labels(*labels)
        self.duration = _duration.labels(*labels)
        self.speed = _speed.labels(*labels)
        self.placement = _placement.labels(model)


of = cache(ModelMetrics)


@cache
def ended(model: str, neuron: str, status: int) -> Number:
    """The counter of requests that ended so."""
    return _number(_requests, model, neuron, str(status))


@cache
def rejected(model: str, neuron: str, reason: str) -> Number:
    """The counter of requests that a neuron refused so."""
    return _number(_rejections, model, neuron, reason)


@cache
def retried(model: str, neuron: str, reason: str) -> Number:
    """The counter of requests that this neuron was handed after such an error of another."""
    return _number(_retries, model, neuron, reason)


@cache
def avoided(model: str, neuron: str) -> Number:
    """The counter of times that a model was begun to be avoided there."""
    return _number(_avoided, model, neuron)


class SpendMetrics:
    """What was used with one API key."""

    def __init__(self, key: str, account: str) -> None:
        self._prompt = _number(_spent_prompt, key, account)
        self._completion = _number(_spent_completion, key, account)
        self._both = _number(_spent, key, account)

    def count(self, prompt: int, completion: int) -> None:
        self._prompt.inc(prompt)
        self._completion.inc(completion)
        self._both.inc(prompt + completion)


spent = cache(SpendMetrics)
