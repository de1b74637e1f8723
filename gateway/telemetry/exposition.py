"""`GET /metrics` on the metrics port: the counts of all gunicorn processes, and the state of the fleet.

Each process counts in files of its own; whichever is asked adds them up. Files of processes that died keep
their counts. What the neurons say of themselves is no sum: it comes from the view of the process that is
asked, so that a model or a neuron that went away leaves no series behind.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from gateway.telemetry.metrics import UNKNOWN
from gateway.telemetry.metrics_directory import VARIABLE, forget_gone
from ipc.messages.replies import HealthReply, Reply
from ipc.messages.requests import Health
from ipc.messages.state import Device, ModelState

Send = Callable[[dict[str, Any]], Awaitable[None]]

# Attributes of `ModelState` and `Device` of `ipc.messages.state`, and of `Neuron`; what they are here.
# Prometheus keeps `_total` for counters, so those that end so have a name of their own.
_NAMES = {
    "pages_total": "pages",
    "memory_total": "memory",
    "waiting": "queue_depth",
    "max_sequences": "max_in_flight",
    "prefill_rate": "prefill_tokens_per_second",
    "progress": "load_progress",
    "epoch": "starts",
}
_MODEL_GAUGES = {
    "running": "Requests in the worker.",
    "waiting": "Requests in the neuron's queue.",
    "pages_total": "KV pages of 32 tokens.",
    "pages_free": "KV pages that no request holds.",
    "pages_cached": "KV pages that requests with the same beginning can share.",
    "context_length": "Tokens of prompt and answer that fit.",
    "context_wanted": "Tokens of prompt and answer that would fit with enough memory.",
    "bytes_reserved": "Device memory booked for the model.",
    "bytes_measured": "Device memory that its processes hold.",
    "bytes_parked": "Host memory that its weights are kept in, for its next load.",
    "max_sequences": "Requests that the worker computes at once.",
    "load_seconds": "What its last load took.",
    "wake_seconds": "What its last return from the host's memory took.",
    "prefill_rate": "Tokens of prompts a second, lately at best.",
    "progress": "Of its load, 0 to 1.",
}
_MODEL_COUNTERS = {
    "finished": "Requests that ended regularly, as the neuron counts them.",
    "cancelled": "Requests cancelled, as the neuron counts them.",
    "failed": "Requests that failed, as the neuron counts them.",
    "restarts": "Restarts of its worker group after a fault.",
    "epoch": "Worker groups that were started for it.",
    "wakes": "Loads whose weights came from the host's memory.",
    "steps": "Engine steps.",
    "prompt_tokens": "Tokens of prompts that the worker began.",
    "cached_tokens": "Part of these that it had computed before.",
    "preemptions": "Sequences that gave up their pages and were computed again.",
    "out_of_memory": "Steps that ran out of device memory.",
    "collectives": "Collectives between the ranks.",
    "drafted": "Tokens that were guessed and checked.",
    "accepted": "Part of these that were right.",
}
_NEURON_GAUGES = {
    "text_memory": "Bytes that the processes hold which prepare requests.",
    "parked_memory": "Bytes that weights are parked in.",
    "parking": "Bytes that weights may be parked in.",
}
_DEVICE_GAUGES = {
    "memory_total": "Bytes of memory.",
    "memory_free": "Bytes that the driver or kernel says are free.",
    "memory_reserved": "Bytes in the neuron's ledger.",
    "utilization": "Share of time at work, 0 to 1.",
    "temperature": "Degrees Celsius.",
}

_TEXT = "text/plain; charset=utf-8"
HEALTH_SECONDS = 1.0  # for a neuron to say how it is; of one that does not, these series are missing


class Client(Protocol):
    """What is told of the connection to one."""

    silent_seconds: float

    async def ask(self, request: Health, within: float) -> Reply: ...


class Neuron(Protocol):
    """What is told of a neuron."""

    name: str
    healthy: bool
    draining: bool
    client: Client
    own_models: Sequence[ModelState]
    devices: Sequence[Device]
    text_memory: int
    parked_memory: int
    parking: int


class Exposition:
    """The ASGI application of the metrics port.

    Args:
        knows: whether some neuron has, or had, the model of a name; of others no series is shown.
        leads_here: whether a request for the host in its header, which came at an address, is meant for us.
    """

    def __init__(
        self,
        neurons: Sequence[Neuron],
        knows: Callable[[str], bool],
        leads_here: Callable[[str, str], bool],
    ) -> None:
        self._neurons, self._knows, self._leads_here = neurons, knows, leads_here

    async def __call__(self, scope: dict[str, Any], receive: object, send: Send) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if not self._leads_here(headers.get(b"host", ""), scope["server"][0]):
            await _answer(send, 403, _TEXT, b"that host is no name of this gateway (gateway.hosts)\n")
            return
        if scope["path"] != "/metrics" or scope["method"] not in ("GET", "HEAD"):
            await _answer(send, 404, _TEXT, b"there is only GET /metrics here\n")
            return
        accept = headers.get(b"accept", "")
        encoder, content_type = choose_encoder(accept)
        registry = CollectorRegistry()
        forget_gone()
        registry.register(OfKnownModels(MultiProcessCollector(None, os.environ[VARIABLE]), self._knows))
        registry.register(_OfNeurons(list(self._neurons), await self._health()))
        # In a thread: it reads a file or two for each process, and of thousands of models there are a hundred
        # thousand series; streams must not wait for that.
        body = await asyncio.to_thread(encoder, registry)
        await _answer(send, 200, content_type, body)

    async def _health(self) -> dict[str, HealthReply]:
        """What each neuron says when it is asked: a stopped rank tells nobody of itself."""
        healthy = [neuron for neuron in self._neurons if neuron.healthy]
        asked = [neuron.client.ask(Health(id=0), HEALTH_SECONDS) for neuron in healthy]
        replies = await asyncio.gather(*asked, return_exceptions=True)
        told = zip(healthy, replies, strict=True)
        return {neuron.name: reply for neuron, reply in told if isinstance(reply, HealthReply)}


async def _answer(send: Send, status: int, content_type: str, body: bytes) -> None:
    headers = [
        (b"content-type", content_type.encode("latin-1")),
        (b"content-length", str(len(body)).encode("latin-1")),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class OfKnownModels(Collector):
    """The counts of all processes, but of models that are gone: nobody looks at those again."""

    def __init__(self, counts: MultiProcessCollector, knows: Callable[[str], bool]) -> None:
        self._counts, self._knows = counts, knows

    def collect(self) -> Iterable[Metric]:
        for family in self._counts.collect():
            family.samples = [sample for sample in family.samples if self._is_known(sample.labels)]
            yield family

    def _is_known(self, labels: dict[str, str]) -> bool:
        model = labels.get("model", UNKNOWN)
        return model == UNKNOWN or self._knows(model)


class _OfNeurons(Collector):
    """What is told of these neurons. Their models are replaced as a whole, so any thread may read them."""

    def __init__(self, neurons: Sequence[Neuron], replies: Mapping[str, HealthReply]) -> None:
        self._neurons, self._replies = neurons, replies

    def collect(self) -> Iterable[Metric]:
        return [*neuron_metrics(self._neurons), *health_metrics(self._replies)]


def neuron_metrics(neurons: Sequence[Neuron]) -> list[Metric]:
    """What the neurons that answer say of themselves, now."""
    up = GaugeMetricFamily("cortex_neuron_up", "1 while the neuron answers.", labels=["neuron"])
    silence = GaugeMetricFamily(
        "cortex_neuron_silent_seconds", "Since the last word of the neuron.", labels=["neuron"]
    )
    draining = GaugeMetricFamily(
        "cortex_neuron_draining", "1 while the neuron takes no new work.", labels=["neuron"]
    )
    for neuron in neurons:
        up.add_metric([neuron.name], float(neuron.healthy))
        silence.add_metric([neuron.name], neuron.client.silent_seconds)
        draining.add_metric([neuron.name], float(neuron.healthy and neuron.draining))
    healthy = [neuron for neuron in neurons if neuron.healthy]
    hosts = [([neuron.name], neuron) for neuron in healthy]
    models = [([m.id, neuron.name], m) for neuron in healthy for m in neuron.own_models]
    devices = [([neuron.name, device.id], device) for neuron in healthy for device in neuron.devices]
    waited = CounterMetricFamily(
        "cortex_model_collective_seconds",
        "Time in collectives; the others wait for the rank with the least.",
        labels=["model", "neuron", "rank"],
    )
    status = GaugeMetricFamily(
        "cortex_model_status", "1 for the status that the model has.", labels=["model", "neuron", "status"]
    )
    in_flight = GaugeMetricFamily(
        "cortex_model_in_flight", "Requests in the worker and in the queue.", labels=["model", "neuron"]
    )
    evictions = CounterMetricFamily(
        "cortex_evictions", "Times that the model left for another one.", labels=["model", "neuron"]
    )
    for labels, model in models:
        evictions.add_metric(labels, model.evictions)
        status.add_metric([*labels, model.status], 1.0)
        in_flight.add_metric(labels, model.running + model.waiting)
        for rank, seconds in enumerate(model.collective_seconds):
            waited.add_metric([*labels, str(rank)], seconds)
    return [
        up,
        silence,
        draining,
        status,
        in_flight,
        evictions,
        waited,
        *_families(GaugeMetricFamily, "cortex_neuron_", ["neuron"], _NEURON_GAUGES, hosts),
        *_families(GaugeMetricFamily, "cortex_model_", ["model", "neuron"], _MODEL_GAUGES, models),
        *_families(CounterMetricFamily, "cortex_model_", ["model", "neuron"], _MODEL_COUNTERS, models),
        *_families(GaugeMetricFamily, "cortex_device_", ["neuron", "device"], _DEVICE_GAUGES, devices),
    ]


def health_metrics(replies: Mapping[str, HealthReply]) -> list[Metric]:
    """How long neurons have been there, and what the processes of models do, by their heartbeat pages.

    Args:
        replies: by neuron.
    """
    uptime = GaugeMetricFamily(
        "cortex_neuron_uptime_seconds", "Since the neuron was started.", labels=["neuron"]
    )
    names = ["model", "neuron", "rank"]
    busy = GaugeMetricFamily(
        "cortex_rank_busy_seconds",
        "Since its last heartbeat, of a rank in a load, a step or a collective; 0: it waits for work.",
        labels=names,
    )
    memory = GaugeMetricFamily("cortex_rank_memory", "Bytes that it holds on its device.", labels=names)
    for neuron, reply in replies.items():
        uptime.add_metric([neuron], reply.uptime)
        for model, processes in reply.ranks.items():
            for rank in processes:
                labels = [model, neuron, str(rank.rank)]
                busy.add_metric(labels, 0.0 if rank.state == "ready" else rank.age)
                memory.add_metric(labels, rank.memory)
    return [uptime, busy, memory]


def _families(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
    prefix: str,
    labels: list[str],
    helps: dict[str, str],
    rows: list[tuple[list[str], Any]],
) -> Iterable[Metric]:
    for attribute, text in helps.items():
        family = kind(prefix + _NAMES.get(attribute, attribute), text, labels=labels)
        for values, row in rows:
            value = getattr(row, attribute)
            if value is not None:
                family.add_metric(values, value)
        yield family
