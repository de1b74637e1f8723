"""What a rank holds on its device, what its largest step takes besides, and what that leaves for KV pages."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ipc.errors import Code, CortexError
from ipc.worker_messages import (
    CONTEXT_BYTES,
    PAGE_SIZE,
    SMALLEST_CONTEXT,
    CacheGroup,
    Footprint,
    MemoryUse,
    SamplingParams,
    WorkerSpec,
)
from workers.checkpoints.caches import most_pages
from workers.step.pages import pages_for
from workers.step.plan import NewSequence, Scheduled, StepPlan

DEAR = {"repetition_penalty": 1.1, "frequency_penalty": 0.1, "logprobs": 20}  # what costs memory in each row
DEVICE_MARGIN = 128 << 20  # bytes of a GPU that stay free beside the pool, for what drivers take on their way
LONG_CONTEXT = 3072  # tokens: attention reads what is longer in blocks, which take no more memory
TOLD_TOKENS = 64  # of a prompt, whose logits over the whole vocabulary are in memory at once


def footprint(device: str) -> Footprint:
    """What this process holds now, by itself."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in line]
    return Footprint(host=int(line.split()[1]) << 10, device=_reserved(device))


def held(device: str) -> int:
    """Bytes that this process holds on `device`, the context included that no allocator knows of."""
    return footprint(device).host if device == "cpu" else CONTEXT_BYTES + _reserved(device)


def total_memory(device: str) -> int:
    """Bytes that the device has, whoever holds them."""
    if device == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    import torch

    return torch.cuda.mem_get_info(device)[1]


def trim(device: str) -> None:
    """Give back what allocators keep for later."""
    gc.collect()
    if device != "cpu":
        import torch

        torch._C._cuda_clearCublasWorkspaces()  # which cuBLAS keeps from the first product on
        torch.cuda.empty_cache()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def largest_step(spec: WorkerSpec, sorted_rows: int, adapter: bool = False, groups: int = 1) -> StepPlan:
    """A step of all the tokens and sequences that there may be, each with the dearest settings.

    All of its pages are number 0: what is in them does not matter.

    Args:
        sorted_rows: of logits, which the sampler draws from at once.
        adapter: all sequences but the first have number 1: rows are picked out then, and are many.
        groups: of its layers.
    """
    added: list[NewSequence] = []
    scheduled: list[Scheduled] = []

    def feed(tokens: int, params: SamplingParams, context: int = 0) -> None:
        """Schedule the last `tokens` of a prompt of `context`, if that is more."""
        slot, cached = len(added), max(0, context - tokens) // PAGE_SIZE
        length, tables = cached * PAGE_SIZE + tokens, [[0] * cached] * groups
        number = int(adapter and slot > 0)
        added.append(NewSequence(slot, length, bytes(4 * length), params, tables=tables, adapter=number))
        scheduled.append(Scheduled(slot, tokens, [[0] * pages_for(tokens)] * groups))

    # so flat a distribution, and so wide a filter, that all of the vocabulary has to be sorted
    sorting = SamplingParams(100.0, top_p=0.99, **DEAR)
    greedy = SamplingParams(0.0, **DEAR)
    longest = min(spec.context_length, LONG_CONTEXT)
    left = spec.max_step_tokens
    for number in range(spec.max_sequences - 1):
        feed(1, sorting if number < sorted_rows else greedy, longest if number == 0 else 0)
    left -= len(added)
    if told := min(left // 2, TOLD_TOKENS, spec.context_length):
        feed(told, msgspec.structs.replace(greedy, prompt_logprobs=20))
        left -= told
    while left:
        tokens = min(left, spec.context_length)
        feed(tokens, greedy, longest)
        left -= tokens
    return StepPlan(0, [], added, scheduled)


def pool_pages(spec: WorkerSpec, page_bytes: int, used: MemoryUse) -> int:
    """Pages that this rank has room for beside what it holds, and no more than are wanted."""
    if spec.memory_budget is None:
        return spec.kv_pages
    room = spec.memory_budget - used.total
    if spec.device != "cpu":
        import torch

        free, _ = torch.cuda.mem_get_info(spec.device)  # without what the largest step took: torch keeps that
        room = min(room, free - DEVICE_MARGIN)
        if spec.resizable:  # chunks that pages begin and end within, and that of the page of padded steps
            from workers.cache.reserve import CHUNK_BYTES

            room -= 3 * CHUNK_BYTES
    return max(0, min(spec.kv_pages, room // page_bytes))


def check_pages(
    spec: WorkerSpec, pages: int, page_bytes: int, used: MemoryUse, groups: Sequence[CacheGroup]
) -> None:
    """See that so many pages are worth a load.

    Args:
        groups: of layers, each of which has pages of its own for every sequence: one with a window needs no
            more than lie in sight.

    Raises:
        CortexError: INSUFFICIENT_MEMORY, saying what the memory went to.
    """
    tokens = min(spec.context_length, SMALLEST_CONTEXT)
    least = sum(most_pages(group, tokens, spec.max_step_tokens) for group in groups)
    if pages < min(least, spec.kv_pages):
        states = f", states of its sequences {_gib(used.kv_pool)}" if used.kv_pool else ""
        raise CortexError(
            Code.INSUFFICIENT_MEMORY,
            f"{spec.model} has room for {pages} pages of keys and values on its tightest rank, and needs "
            f"{least}: of {_gib(spec.memory_budget)} planned for rank {spec.rank}, its weights take "
            f"{_gib(used.weights)}, the largest step {_gib(used.activations)}{states} and the process itself "
            f"{_gib(used.runtime)}; a page takes {page_bytes} bytes. A smaller max_step_tokens, "
            "max_sequences or context_length needs less",
        )


def _reserved(device: str) -> int:
    if device == "cpu":
        return 0
    import torch

    return torch.cuda.memory_reserved(device)


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"
