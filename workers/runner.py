"""The engine with a model in it: executes step plans on one rank."""

from __future__ import annotations

import ctypes
import logging
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ipc.worker_messages import MemoryUse, WorkerSpec
from workers.batch import Batch
from workers.config import read_config
from workers.engine import Loaded, StepResult
from workers.kv_cache import KVCache
from workers.layers.attention import Chunk, PageRun
from workers.loader import Checkpoint
from workers.models.decoder import Decoder
from workers.pages import PAGE_SIZE, pages_for
from workers.parallel import Group
from workers.plan import NewSequence, Scheduled, StepPlan
from workers.sampler import Draw, sample

THREAD_BYTES = 32 << 20  # weights that a further CPU thread is worth: less, and it waits longer than it works
RUN_PAGES = 64  # pages that decode gathers at once: 4 MB of keys in a model with 8 heads of 128

logger = logging.getLogger("workers.runner")


@dataclass(slots=True)
class Slot:
    """A sequence as the engine knows it: what the plans said so far."""

    new: NewSequence
    token_ids: array[int]
    pages: list[int] = field(default_factory=list)
    num_computed: int = 0


class Runner:
    """One rank of a transformer. Implements `workers.engine.Engine`."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.group = Group()
        self.slots: dict[int, Slot] = {}

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
        for slot in plan.released:
            del self.slots[slot]
        for new in plan.added:
            self.slots[new.slot] = Slot(
                new, array("q", array("I", new.token_ids)), list(new.pages), len(new.pages) * PAGE_SIZE
            )
        for entry in plan.scheduled:
            self.slots[entry.slot].pages += entry.new_pages
        batch, complete = self._batch(plan.scheduled)
        logits = self.model(batch, self.cache)
        for entry in plan.scheduled:
            self.slots[entry.slot].num_computed += entry.num_tokens
        tokens = sample(logits, [_next_draw(slot) for slot in complete])
        for slot, token in zip(complete, tokens, strict=True):
            slot.token_ids.append(token)
        return StepResult(tokens)

    def close(self) -> None:
        """Leave the group. The memory goes with the process."""
        self.group.leave()

    def _batch(self, scheduled: list[Scheduled]) -> tuple[Batch, list[Slot]]:
        """The step's tokens as tensors, and the sequences that it samples, in the order of the plan."""
        single = [entry for entry in scheduled if entry.num_tokens == 1]
        several = [entry for entry in scheduled if entry.num_tokens > 1]
        token_ids, positions, pages = array("q"), array("q"), array("q")
        chunks: list[Chunk] = []
        row_of: dict[int, int] = {}  # slot -> row of its last token
        for entry in (*single, *several):
            slot, first = self.slots[entry.slot], len(token_ids)
            start, end = slot.num_computed, slot.num_computed + entry.num_tokens
            token_ids.extend(slot.token_ids[start:end])
            positions.extend(range(start, end))
            pages.extend(slot.pages[position // PAGE_SIZE] for position in range(start, end))
            row_of[entry.slot] = len(token_ids) - 1
            if entry.num_tokens > 1:
                context_pages = self._tensor(array("q", slot.pages[: pages_for(end)]))
                chunks.append(Chunk(slice(first, len(token_ids)), context_pages, end))
        complete = [
            entry.slot
            for entry in scheduled
            if self.slots[entry.slot].num_computed + entry.num_tokens == len(self.slots[entry.slot].token_ids)
        ]
        position_tensor = self._tensor(positions)
        batch = Batch(
            token_ids=self._tensor(token_ids),
            positions=position_tensor,
            pages=self._tensor(pages),
            places=position_tensor % PAGE_SIZE,
            num_decode=len(single),
            runs=self._runs([self.slots[entry.slot] for entry in single]),
            chunks=chunks,
            sampled=self._tensor(array("q", [row_of[slot] for slot in complete])),
        )
        return batch, [self.slots[slot] for slot in complete]

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

    def _tensor(self, values: array[int]) -> torch.Tensor:  # [len(values)] int64
        return torch.tensor(values, dtype=torch.int64).to(self.group.device, non_blocking=True)


def _next_draw(slot: Slot) -> Draw:
    params = slot.new.params
    return Draw(params.temperature, params.top_k, params.top_p, params.seed, len(slot.token_ids))


def _tune_cpu(dtype: torch.dtype) -> None:
    """Settings of this process that serving on a CPU is fast with; called when the weights are in place."""
    if dtype == torch.bfloat16:
        # attention multiplies bfloat16 values as float32; this lets oneDNN do it exactly as fast
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        # glibc would give freed activations back to the kernel, which then has to clear each page of them
        # again: half the time of a prefill step
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)
