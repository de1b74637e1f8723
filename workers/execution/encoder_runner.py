"""The engine of models that read a text as a whole: embedders and rerankers whose tokens see each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ipc.errors import Code, CortexError
from ipc.worker_messages import (
    KERNEL_BYTES,
    AdapterReport,
    DropAdapter,
    LoadAdapter,
    MemoryUse,
    SamplingParams,
    WorkerSpec,
)
from workers.attention.whole import WholeAttention
from workers.checkpoints.card import ModelCard
from workers.execution.device import is_out_of_memory
from workers.execution.loading import filling, join, make_ready, read_weights, within_memory
from workers.execution.memory import held, taken, trim
from workers.execution.outcome import NOT_FINITE
from workers.models.registry import MODELS
from workers.models.stages import Stages, pool
from workers.parallel import RankGroup
from workers.step.engine import Extra, Loaded, OutOfDeviceMemory, StepResult
from workers.step.plan import NewSequence, StepPlan
from workers.weights.blocks import Empty
from workers.weights.loader import Shard


class EncoderRunner:
    """One rank of an encoder. Implements `workers.step.engine.Engine`.

    A sequence enters with the step that computes it, and is gone after it: there is no cache, and no slot
    that anything is kept in.
    """

    def __init__(self, spec: WorkerSpec, card: ModelCard) -> None:
        self.spec, self.card = spec, card
        self.group = RankGroup()

    def load(self, progress: Callable[[float, str], None]) -> Loaded:
        """Read this rank's weights, and measure what a step takes.

        Raises:
            CortexError: the checkpoint cannot be loaded, or does not divide over the ranks;
                INSUFFICIENT_MEMORY, it does not fit.
        """
        return within_memory(partial(self._load, progress), self.spec, self.card)

    def _load(self, progress: Callable[[float, str], None]) -> Loaded:
        spec, config = self.spec, self.card.config
        dtype, device = getattr(torch, spec.dtype), torch.device(spec.device)
        self.group = join(spec, self.card)
        formats = self.card.formats(self.group.split, spec.quantization)
        self.model = MODELS[self.card.family](config, self.group, dtype, formats)
        self.stages = Stages(self.card.stages, config.norm_eps, Empty(dtype, device))
        weights = self.model.nbytes + self.stages.nbytes

        def parts() -> list[Shard]:
            parts = [*self.model.parts(), *self.stages.parts()]
            if dtype == torch.float32:
                # Packed for oneDNN, products of many rows are slower than MKL's: 360 rows and a weight of
                # 384 x 1536 take 6.4 ms instead of 5.1 on an EPYC core.
                return [Shard(part.pieces) for part in parts]
            return parts

        woken = read_weights(spec, self.card, self.group, formats, parts, progress)
        weights += filling(spec, self.card, self.group)
        make_ready(spec, self.model, weights, progress)
        windows = [layer.window or 0 for layer in config.layers]
        self.attention = WholeAttention(windows, device, config.attention_scale, spec.exact)
        progress(1.0, "measuring a step")
        memory = self._measure(weights)
        if spec.memory_budget is not None and memory.total > spec.memory_budget:
            raise CortexError(
                Code.INSUFFICIENT_MEMORY,
                f"{spec.model} takes {memory.total:,} bytes on rank {spec.rank}, of {spec.memory_budget:,} "
                f"that are planned: its weights {weights:,}, the largest step {memory.activations:,} and the "
                f"process itself {memory.runtime:,}. A smaller max_step_tokens or context_length needs less",
            )
        return Loaded(spec.kv_pages, memory, whole=True, woken=woken)

    def _measure(self, weights: int) -> MemoryUse:
        """What this rank holds beside `weights`, and what the largest step takes: the longest texts, then as
        many short ones as there may be.
        """
        spec, device = self.spec, self.spec.device
        trim(device)
        before = held(device)
        longest = min(spec.context_length, spec.max_step_tokens)
        count = max(1, min(spec.max_sequences, spec.max_step_tokens // longest))
        rest = spec.max_step_tokens - count * longest
        lengths = [longest] * count + [rest] * (rest > 0 and count < spec.max_sequences)
        short = max(1, spec.max_step_tokens // spec.max_sequences)
        steps = [
            StepPlan(0, [], [_blank(i, length) for i, length in enumerate(each)], [])
            for each in (lengths, [min(short, longest)] * spec.max_sequences)
        ]
        took = taken(device, lambda: [self.execute(step) for step in steps])
        kernels = KERNEL_BYTES if device == "cpu" else 0
        most = -self.group.least(min(kernels, took.left) - took.most)
        return MemoryUse(weights=weights, activations=most + kernels, runtime=before - weights)

    def prove(self) -> int:
        """Sum a one over the ranks."""
        return self.group.prove()

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step: all that enters with it, from the first token to the last."""
        self.group.begin_step(plan.step)
        try:
            return self._step(plan.added)
        except (RuntimeError, MemoryError) as error:
            if self.group.size > 1 or not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
        if self.group.device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfDeviceMemory(reason)

    def _step(self, added: Sequence[NewSequence]) -> StepResult:
        device, lengths = self.group.device, [new.prompt_len for new in added]
        token_ids = torch.frombuffer(bytearray(b"".join(new.token_ids for new in added)), dtype=torch.int32)
        positions = torch.cat([torch.arange(length) for length in lengths])
        attend = partial(self.attention.run, self.attention.prepare(lengths))
        inputs = [token_ids.long().to(device), positions.to(device), attend]
        if self.card.config.encoder is not None and self.card.config.encoder.token_types:
            inputs.append(_types(added).to(device))
        hidden = self.model.norm(self.model(*inputs))
        if self.group.rank > 0:
            return StepResult([])
        pooling = self.card.pooling
        pooled = torch.stack([pool(part, pooling) for part in hidden.split(lengths)])
        if self.stages.stages:
            pooled = self.stages(pooled.to(hidden.dtype)).float()
        return StepResult([-1] * len(added), dict(enumerate(map(_vector, pooled.cpu()))))

    def adapt(self, order: LoadAdapter | DropAdapter, tell: Callable[[AdapterReport], None]) -> None:
        """There are none: adapters of an encoder are refused when they are read."""
        raise RuntimeError(f"{self.card.architecture} was told of an adapter, and has none")

    def collectives(self) -> tuple[int, float]:
        """How many there were, and the seconds in them."""
        return self.group.collectives, self.group.collective_seconds

    def close(self) -> None:
        """Leave the group, and let go of all memory."""
        self.group.leave()
        for name in ("model", "stages", "attention"):
            self.__dict__.pop(name, None)


def _types(added: Sequence[NewSequence]) -> Tensor:  # [tokens] int64
    """Which of the texts of a pair each token belongs to."""
    parts = []
    for new in added:
        part = torch.zeros(new.prompt_len, dtype=torch.int64)
        part[new.second or new.prompt_len :] = 1
        parts.append(part)
    return torch.cat(parts)


def _vector(vector: Tensor) -> Extra:
    if not vector.isfinite().all():
        return Extra("error", NOT_FINITE.code, NOT_FINITE.message)
    return Extra(embedding=vector.numpy().astype("<f4").tobytes())


def _blank(slot: int, length: int) -> NewSequence:
    return NewSequence(slot, length, bytes(4 * length), SamplingParams())
