"""What a rank holds on its device, what its largest step takes besides, and what that leaves for KV pages."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from ipc.errors import Code, CortexError
from ipc.sizes import gib
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
from workers.checkpoints.model_config import ModelConfig
from workers.step.pages import pages_for
from workers.step.plan import NewSequence, Scheduled, StepPlan

DEAR = {"repetition_penalty": 1.1, "frequency_penalty": 0.1, "logprobs": 20}  # what costs memory in each row
DEVICE_MARGIN = 128 << 20  # bytes of a GPU that stay free beside the pool, for what drivers take on their way
LONG_CONTEXT = 3072  # tokens: attention reads what is longer in blocks, which take no more memory
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's <malloc.h>
KEPT_PIECES = (1 << 30, 32 << 20)  # bytes, at most, of a piece that is kept; what glibc before 2.35 allows
USUAL_THRESHOLD = 128 << 10  # bytes of a piece of memory that the C library asks the kernel for, at first
TOLD_TOKENS = 64  # of a prompt, whose logits over the whole vocabulary are in memory at once


class Taken(NamedTuple):
    """What a computation takes of a device, in bytes."""

    most: int  # at one moment
    left: int  # afterwards, once allocators have given back what is free; of a GPU they give nothing back


def footprint(device: str) -> Footprint:
    """What this process holds now, by itself."""
    return Footprint(host=_status("RssAnon"), device=_reserved(device))


def held(device: str) -> int:
    """Bytes that this process holds on `device`, the context included that no allocator knows of."""
    return footprint(device).host if device == "cpu" else CONTEXT_BYTES + _reserved(device)


def taken(device: str, compute: Callable[[], object]) -> Taken:
    """What `compute` takes beside what this process holds already.

    On a CPU that is the most that was in use at one moment, by the kernel's own count. What would be held
    afterwards says less: pieces of free memory between others, which come out differently each time.
    """
    trim(device)
    before = held(device)
    if device != "cpu":
        compute()
        taken = held(device) - before
        return Taken(taken, taken)
    keep_freed(False)
    try:
        counts = _count_peak()
        compute()
        most = (_status("VmHWM") - _shared() if counts else held(device)) - before
    finally:
        keep_freed(True)
    trim(device)
    return Taken(max(0, most), max(0, held(device) - before))


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


def keep_freed(keeps: bool) -> None:
    """Whether the C library keeps the memory of large tensors that were let go, for the next ones.

    It would give it back to the kernel, which then has to clear each page of it again: a third more time for
    a prompt of 512 tokens. But while it does, what a process holds is what it uses, and not pieces between.
    """
    for size in KEPT_PIECES if keeps else (USUAL_THRESHOLD,):
        if _mallopt(M_MMAP_THRESHOLD, size):
            break
    _mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1 if keeps else USUAL_THRESHOLD)


def _mallopt(parameter: int, value: int) -> bool:
    """Set what glibc's allocator goes by; whether it does. There are others, which have no such thing."""
    libc = ctypes.CDLL(None)
    return hasattr(libc, "mallopt") and bool(libc.mallopt(parameter, value))


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
    greedy, uncounted = SamplingParams(0.0, **DEAR), SamplingParams(0.0, logprobs=20)
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
        # of more sequences than there may be at once nothing is counted
        feed(tokens, greedy if len(added) < spec.max_sequences else uncounted, longest)
        left -= tokens
    return StepPlan(0, [], added, scheduled)


def groups_of_few(config: ModelConfig, blocks: Sequence[int]) -> list[CacheGroup]:
    """Of the layers that such a step is measured with, so that a page or a state of each is little.

    Args:
        blocks: that run; what a head for drafts keeps comes behind them.
    """
    layers = config.layers
    keeping = [number for number in blocks if layers[number].keeps] + [*range(config.num_layers, len(layers))]
    few = [CacheGroup(kind="full", layers=[number for number in keeping if layers[number].kind != "state"])]
    if stateful := [number for number in keeping if layers[number].state_size]:
        few.append(CacheGroup(kind="state", layers=stateful))
    return few


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
        states = f", states of its sequences {gib(used.kv_pool)}" if used.kv_pool else ""
        raise CortexError(
            Code.INSUFFICIENT_MEMORY,
            f"{spec.model} has room for {pages} pages of keys and values on its tightest rank, and needs "
            f"{least}: of {gib(spec.memory_budget)} planned for rank {spec.rank}, its weights take "
            f"{gib(used.weights)}, the largest step {gib(used.activations)}{states} and the process itself "
            f"{gib(used.runtime)}; a page takes {page_bytes} bytes. A smaller max_step_tokens, "
            "max_sequences or context_length needs less",
        )


def _status(name: str) -> int:
    """Bytes that the kernel tells of this process under that name."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def _shared() -> int:
    """Bytes of files and of memory that others have as well, in this process's own pages."""
    return _status("RssFile") + _status("RssShmem")


def _count_peak() -> bool:
    """Have the kernel forget the most that this process held so far; whether it does."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _reserved(device: str) -> int:
    if device == "cpu":
        return 0
    import torch

    return torch.cuda.memory_reserved(device)
