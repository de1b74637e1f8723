"""What a step finds out beside next tokens: vectors, scores, and how likely the tokens of prompts were."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ipc.worker_messages import Logprobs
from workers.checkpoints.card import ModelCard
from workers.execution.memory import TOLD_TOKENS
from workers.models.decoder import Decoder
from workers.models.stages import Stages
from workers.sampling.inputs import fetched
from workers.sampling.logprobs import logprobs
from workers.step.batch import Segment, Slot


class Pooled(NamedTuple):
    """What a slot has of its hidden states, as `Slot` keeps it."""

    slot: Slot
    pooled: Tensor
    vector: Callable[[], list[float]] | None

    @classmethod
    def of(cls, segment: Segment, found: Tensor) -> Pooled:  # [hidden] float64, of that segment
        """With what earlier steps found; at the end of its prompt the vector is on its way."""
        slot = segment.slot
        mean = slot.new.pooling == "mean"
        pooled = slot.pooled + found if mean else found
        if segment.end < slot.new.prompt_len:
            return cls(slot, pooled, None)
        return cls(slot, pooled, fetched(pooled / slot.new.prompt_len if mean else pooled))


class Findings(NamedTuple):
    """Those of one step, for the sequences that are asked for any."""

    pooled: list[Pooled]
    prompt_logprobs: list[tuple[Slot, list[Logprobs]]]

    def keep(self) -> None:
        """Have slots know them, once all of the step was sent: this takes no memory of a device."""
        for slot, pooled, vector in self.pooled:
            slot.pooled, slot.vector = pooled, vector
        for slot, entries in self.prompt_logprobs:
            slot.prompt_logprobs += entries


def find(
    model: Decoder, stages: Stages, card: ModelCard, segments: Iterable[Segment], hidden: Tensor
) -> Findings:
    """Look at what the model made of a step's tokens.

    Args:
        stages: behind its last layer, where files have no head to score by.
        hidden: `[tokens, hidden]`, before the last norm.
    """
    pooling = [each for each in segments if each.slot.new.pooling]
    return Findings(
        [Pooled.of(each, _pool(model, stages, card, each, hidden)) for each in pooling],
        [(each.slot, _prompt_logprobs(model, each, hidden)) for each in segments if each.slot.tells],
    )


def _pool(
    model: Decoder, stages: Stages, card: ModelCard, segment: Segment, hidden: Tensor
) -> Tensor:  # [hidden] float64
    """The last of its hidden states, or the sum of all: in float64, so that chunks do not matter."""
    rows = segment.rows
    if segment.slot.new.pooling == "score":
        return _score(model, stages, card, segment, hidden)
    first = rows.start if segment.slot.new.pooling == "mean" else rows.stop - 1
    return model.norm(hidden[first : rows.stop]).sum(dim=0, dtype=torch.float64)


def _score(
    model: Decoder, stages: Stages, card: ModelCard, segment: Segment, hidden: Tensor
) -> Tensor:  # [1] float64
    """How much more likely the one answer to a whole prompt is than the other; on rank 0."""
    nothing = hidden.new_zeros(1, dtype=torch.float64)
    question, last = card.reranker.question, segment.rows.stop - 1
    if segment.end < segment.slot.new.prompt_len:
        return nothing
    row = hidden[last : last + 1]
    logits = stages(model.norm(row)) if stages.stages else model.logits(row)
    return nothing if logits is None else (logits[:, question.yes] - logits[:, question.no]).double()


def _prompt_logprobs(model: Decoder, segment: Segment, hidden: Tensor) -> list[Logprobs]:
    """How probable the tokens of a prompt were that follow those of `segment`; on rank 0."""
    slot, first = segment.slot, segment.rows.start
    start = slot.num_computed + 1
    following = slot.token_ids[start : start + len(segment.rows)].tolist()
    found: list[Logprobs] = []
    for start in range(0, len(following), TOLD_TOKENS):
        targets = following[start : start + TOLD_TOKENS]
        logits = model.logits(hidden[first + start : first + start + len(targets)])
        if logits is not None:
            found += logprobs(logits, targets, [slot.new.params.prompt_logprobs] * len(targets))
    return found
