"""What a neuron tells of a model, put together from what its parts know."""

from __future__ import annotations

from typing import Any

from ipc.messages.state import ModelState
from neuron.admission.request_queue import RequestQueue
from neuron.config import ModelSettings
from neuron.description import ModelDescription
from neuron.models.speed import Speed
from neuron.tenancy.tenancy import Tenancy


def model_state(
    settings: ModelSettings,
    description: ModelDescription,
    tenancy: Tenancy,
    requests: RequestQueue,
    speed: Speed,
    **own: Any,
) -> ModelState:
    """The `ModelState` of a model.

    Args:
        tenancy: what it has while it is loaded.
        own: fields that none of these know.
    """
    fit, epochs, adapters = tenancy.fit, tenancy.epochs, tenancy.adapters
    ranks, statistics = epochs.ranks(), epochs.statistics
    beside = adapters.nbytes
    return ModelState(
        id=settings.id,
        architecture=description.architecture,
        engine=description.engine,
        dtype=description.dtype,
        context_wanted=description.context_length,
        completion=description.completion,
        embedding=description.embedding,
        rerank=description.reranker is not None,
        chat=description.chat,
        tools=description.tools,
        reasoning=description.reasoning,
        vision=description.vision,
        bytes_weights=description.bytes_weights,
        created=description.created,
        max_output=description.max_output or 0,
        adapters=[adapter.name for adapter in description.adapters],
        adapters_loaded=adapters.loaded,
        pinned=settings.pin,
        priority=settings.priority,
        max_sequences=settings.max_sequences,
        devices=list(fit.devices) if fit is not None else [],
        bytes_reserved=sum(fit.reservations.values()) + beside if fit is not None else 0,
        epoch=epochs.number,
        restarts=epochs.restarts,
        load_seconds=epochs.load_seconds,
        bytes_parked=tenancy.bytes_parked,
        wakes=epochs.wakes,
        wake_seconds=epochs.wake_seconds,
        collectives=ranks[0].collectives if ranks else 0,
        collective_seconds=[rank.collective_seconds for rank in ranks] if len(ranks) > 1 else [],
        running=requests.running,
        waiting=requests.waiting,
        finished=requests.counts["finished"],
        cancelled=requests.counts["cancelled"],
        failed=requests.counts["failed"],
        request_seconds=speed.request_seconds,
        prefill_rate=speed.prefill_rate,
        **(statistics.state(beside) if statistics is not None else {}),
        **own,
    )
