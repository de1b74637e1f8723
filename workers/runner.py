"""The engine with a model in it: executes step plans on one rank."""

from __future__ import annotations

import ctypes
import logging
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ipc.errors import Code, CortexError
from ipc.worker_messages import Logprobs, MemoryUse, WorkerSpec
from workers.batch import Batch
from workers.config import read_config
from workers.engine import Extra, Loaded, OutOfDeviceMemory, StepResult
from workers.grammar import Grammars, PendingMasks
from workers.kv_cache import KVCache
from workers.layers.attention import Chunk, PageRun
from workers.loader import Checkpoint
from workers.logprobs import logprobs
from workers.models.decoder import Decoder
from workers.pages import PAGE_SIZE, pages_for
from workers.parallel import Group
from workers.plan import NewSequence, Scheduled, StepPlan
from workers.sampler import Sampler

THREAD_BYTES = 32 << 20  # weights that a further CPU thread is worth: less, and it waits longer than it works
LOGITS_ROWS = 64  # of a prompt, whose logits over the whole vocabulary are in memory at once
NO_EXTRA = Extra()
RUN_PAGES = 64  # pages that decode gathers at once: 4 MB of keys in a model with 8 heads of 128

Choice = tuple[int, Logprobs | None]  # a token, or -1

logger = logging.getLogger("workers.runner")


@dataclass(slots=True)
class Slot:
    """A sequence as the engine knows it: what the plans said so far, and what it made of that."""

    new: NewSequence
    token_ids: array[int]
    pages: list[int]
    num_computed: int
    pooled: Tensor | float = 0.0  # [hidden] float32: the last hidden state, or the sum of all so far
    prompt_logprobs: list[Logprobs] = field(default_factory=list)

    @property
    def tells(self) -> bool:
        """Whether its log-probabilities are asked for, which after a preemption were told already."""
        fresh = len(self.token_ids) == self.new.prompt_len
        return self.new.params.prompt_logprobs is not None and fresh


@dataclass(slots=True)
class Piece:
    """The tokens of one sequence in a step."""

    slot: Slot
    rows: range  # of the batch


@dataclass(slots=True)
class Step:
    """A step on its way through the model."""

    batch: Batch
    pieces: list[Piece]
    complete: list[int]  # slots that have no pending token after it, in the order of the plan
    sampled: list[int]  # those of them that get a token


class Runner:
    """One rank of a transformer. Implements `workers.engine.Engine`."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.group = Group()
        self.slots: dict[int, Slot] = {}
        self.grammars: Grammars | None = None  # made when the first one is asked for

    def load(self, progress: Callable[[float, str], None]) -> Loaded:
        """Read this rank's weights and make the KV pages.

        Raises:
            CortexError: the checkpoint cannot be loaded, or does not divide over the ranks.
        """
        spec = self.spec
        dtype = getattr(torch, spec.dtype)
        device = torch.device(spec.device)
        config = read_config(spec.folder)
        config.check_ranks(spec.world_size)
        checkpoint = Checkpoint(spec.folder)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self.group = Group.join(spec)
        self.model = Decoder(config, self.group, dtype)
        torch.set_num_threads(min(spec.threads, 1 + self.model.nbytes // THREAD_BYTES))
        checkpoint.load(self.model.pieces(), lambda fraction: progress(0.9 * fraction, "reading weights"))
        held = self.model.nbytes
        linears = list(self.model.linears())
        for done, linear in enumerate(linears):
            progress(0.9 + 0.1 * done / len(linears), "packing weights")
            linear.pack()
        self.cache = KVCache(
            layers=config.num_layers,
            pages=spec.kv_pages,
            kv_heads=len(self.group.share_kv(config.num_kv_heads)),
            head_dim=config.head_dim,
            dtype=dtype,
            device=device,
        )
        self.sampler = Sampler(config.vocab_size, device)
        if device.type == "cpu":
            _tune_cpu(dtype)
        progress(1.0, "loaded")
        memory = MemoryUse(weights=held + self.model.head.copied, kv_pool=self.cache.nbytes)
        return Loaded(spec.kv_pages, memory)

    def prove(self) -> int:
        """Sum a one over the ranks."""
        return self.group.prove()

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step."""
        self.group.begin_step(plan.step)
        for number in plan.released:
            self._release(number)
        for new in plan.added:
            self._add(new)
        for entry in plan.scheduled:
            self.slots[entry.slot].pages += entry.new_pages
        try:
            return self._step(plan.scheduled)
        except RuntimeError as error:
            if self.group.size > 1 or not _is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
        # here, because the error held what the step had: only now there is something to give back
        if self.group.device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfDeviceMemory(reason)

    def collectives(self) -> tuple[int, float]:
        """How many there were, and the seconds in them."""
        return self.group.collectives, self.group.collective_seconds

    def close(self) -> None:
        """Leave the group, and let go of all memory."""
        self.group.leave()
        if self.grammars is not None:
            self.grammars.close()
        self.slots.clear()
        for name in ("model", "cache", "sampler"):
            self.__dict__.pop(name, None)

    def _add(self, new: NewSequence) -> None:
        token_ids = array("q", array("I", new.token_ids))
        pages = list(new.pages)
        self.slots[new.slot] = Slot(new, token_ids, pages, len(pages) * PAGE_SIZE)
        if new.pooling:
            return
        prompt, output = token_ids[: new.prompt_len], token_ids[new.prompt_len :]
        self.sampler.add(new.slot, new.params, prompt, output)
        if new.constraint is not None:
            if self.grammars is None:
                self.grammars = Grammars(self.spec.folder, self.model.vocab_size)
            self.grammars.add(new.slot, new.constraint, output, new.params.stop_ids)

    def _release(self, number: int) -> None:
        slot = self.slots.pop(number)
        if slot.new.pooling:
            return
        self.sampler.remove(number)
        if slot.new.constraint is not None:
            self.grammars.remove(number)

    def _step(self, scheduled: list[Scheduled]) -> StepResult:
        """What the plan's tokens lead to. No slot and no sampler changes before all of it was computed."""
        step = self._batch(scheduled)
        masks = self.grammars.begin(step.sampled) if self.grammars is not None else None
        hidden = self.model(step.batch, self.cache)
        pooled = [(piece.slot, self._pool(piece, hidden)) for piece in step.pieces if piece.slot.new.pooling]
        told = [(piece.slot, self._tell(piece, hidden)) for piece in step.pieces if piece.slot.tells]
        sampled = self._sample(hidden[step.batch.sampled], step.sampled, masks)
        for slot, vector in pooled:
            slot.pooled = slot.pooled + vector if slot.new.pooling == "mean" else vector
        for slot, entries in told:
            slot.prompt_logprobs += entries
        for piece in step.pieces:
            piece.slot.num_computed += len(piece.rows)
        result = StepResult([])
        for number in step.complete:
            self._conclude(number, sampled, result)
        return result

    def _sample(self, hidden: Tensor, slots: list[int], masks: PendingMasks | None) -> dict[int, Choice]:
        """The tokens of `slots`, whose hidden states are given, by slot."""
        if not slots:
            return {}
        bitmask = masks.result() if masks is not None else None
        sampled = self.sampler.sample(self.model.logits(hidden), slots, bitmask)
        return {
            slot: (token, sampled.logprobs.get(row))
            for row, (slot, token) in enumerate(zip(slots, sampled.tokens, strict=True))
        }

    def _pool(self, piece: Piece, hidden: Tensor) -> Tensor:  # [hidden] float32
        """The last of its hidden states, or the sum of all."""
        first = piece.rows.start if piece.slot.new.pooling == "mean" else piece.rows.stop - 1
        return self.model.norm(hidden[first : piece.rows.stop]).sum(dim=0, dtype=torch.float32)

    def _tell(self, piece: Piece, hidden: Tensor) -> list[Logprobs]:
        """How probable the tokens of a prompt were that follow those of `piece`."""
        slot, first = piece.slot, piece.rows.start
        start = slot.num_computed + 1
        following = slot.token_ids[start : start + len(piece.rows)].tolist()
        told: list[Logprobs] = []
        for start in range(0, len(following), LOGITS_ROWS):
            targets = following[start : start + LOGITS_ROWS]
            logits = self.model.logits(hidden[first + start : first + start + len(targets)])
            told += logprobs(logits, targets, [slot.new.params.prompt_logprobs] * len(targets))
        return told

    def _conclude(self, number: int, sampled: dict[int, Choice], result: StepResult) -> None:
        """Add what a sequence came to that has no pending token left."""
        slot, extra = self.slots[number], Extra()
        if slot.new.pooling:
            vector = slot.pooled / slot.new.prompt_len if slot.new.pooling == "mean" else slot.pooled
            token = -1
            extra.embedding = vector.cpu().numpy().astype("<f4").tobytes()
        else:
            token, extra.logprobs = sampled[number]
            if token < 0:
                error = self._nothing_to_choose(slot, number)
                extra = Extra("error", error.code, error.message)
            else:
                slot.token_ids.append(token)
                if slot.new.constraint is not None and self.grammars.accept(number, token):
                    extra.finish = "stop"
            extra.prompt_logprobs, slot.prompt_logprobs = slot.prompt_logprobs, []
        if extra != NO_EXTRA:
            result.extras[len(result.tokens)] = extra
        result.tokens.append(token)

    def _nothing_to_choose(self, slot: Slot, number: int) -> CortexError:
        if slot.new.constraint is not None:
            return self.grammars.error(number)
        return CortexError(
            Code.BAD_REQUEST,
            "the settings of the request leave no token to choose, or the model's numbers are not finite",
        )

    def _batch(self, scheduled: list[Scheduled]) -> Step:
        """The step's tokens as tensors, and what is to be done with them."""
        single = [entry for entry in scheduled if entry.num_tokens == 1]
        several = [entry for entry in scheduled if entry.num_tokens > 1]
        token_ids, positions, pages = array("q"), array("q"), array("q")
        chunks: list[Chunk] = []
        pieces: list[Piece] = []
        row_of: dict[int, int] = {}  # slot -> row of its last token
        for entry in (*single, *several):
            slot, first = self.slots[entry.slot], len(token_ids)
            start, end = slot.num_computed, slot.num_computed + entry.num_tokens
            token_ids.extend(slot.token_ids[start:end])
            positions.extend(range(start, end))
            pages.extend(slot.pages[position // PAGE_SIZE] for position in range(start, end))
            row_of[entry.slot] = len(token_ids) - 1
            pieces.append(Piece(slot, range(first, len(token_ids))))
            if entry.num_tokens > 1:
                context_pages = self._tensor(array("q", slot.pages[: pages_for(end)]))
                chunks.append(Chunk(slice(first, len(token_ids)), context_pages, end))
        complete = [
            entry.slot
            for entry in scheduled
            if self.slots[entry.slot].num_computed + entry.num_tokens == len(self.slots[entry.slot].token_ids)
        ]
        sampled = [number for number in complete if not self.slots[number].new.pooling]
        position_tensor = self._tensor(positions)
        batch = Batch(
            token_ids=self._tensor(token_ids),
            positions=position_tensor,
            pages=self._tensor(pages),
            places=position_tensor % PAGE_SIZE,
            num_decode=len(single),
            runs=self._runs([self.slots[entry.slot] for entry in single]),
            chunks=chunks,
            sampled=self._tensor(array("q", [row_of[number] for number in sampled])),
        )
        return Step(batch, pieces, complete, sampled)

    def _runs(self, slots: list[Slot]) -> list[PageRun]:
        """The pages that `slots`, each with one token in this step, attend over."""
        pages, sequence, filled = array("q"), array("q"), array("q")
        for row, slot in enumerate(slots):
            context = slot.num_computed + 1
            count = pages_for(context)
            pages.extend(slot.pages[:count])
            sequence.extend([row] * count)
            filled.extend([PAGE_SIZE] * (count - 1))
            filled.append(context - (count - 1) * PAGE_SIZE)
        place = torch.arange(PAGE_SIZE)
        bias = torch.zeros(len(filled), PAGE_SIZE).masked_fill_(
            place >= torch.tensor(filled).unsqueeze(1), -torch.inf
        )
        parts = zip(
            self._tensor(pages).split(RUN_PAGES),
            self._tensor(sequence).split(RUN_PAGES),
            bias.to(self.group.device)[:, None, None].split(RUN_PAGES),
            strict=True,
        )
        return [PageRun(*part) for part in parts] if slots else []

    def _tensor(self, values: array[int]) -> Tensor:  # [len(values)] int64
        return torch.tensor(values, dtype=torch.int64).to(self.group.device, non_blocking=True)


def _is_out_of_memory(error: RuntimeError) -> bool:
    """The CPU's allocator has no exception of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _tune_cpu(dtype: torch.dtype) -> None:
    """Settings of this process that serving on a CPU is fast with; called when the weights are in place."""
    # attention multiplies bfloat16 values as float32; this lets oneDNN do it exactly as fast
    torch.backends.mkldnn.matmul.fp32_precision = "bf16" if dtype == torch.bfloat16 else "ieee"
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        # glibc would give freed activations back to the kernel, which then has to clear each page of them
        # again: half the time of a prefill step
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)
