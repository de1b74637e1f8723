"""What the worker of a loaded model said of itself, from its `Ready` to its newest step."""

from __future__ import annotations

from collections.abc import Sequence

from ipc.worker_messages import Ready, StepReport
from neuron.tenancy.prefixes import Prefixes


class Statistics:
    """One epoch's. A worker that died has taken its cached pages and its counts with it.

    Args:
        ready: what its ranks measured, one a rank.

    Attributes:
        kv_pages: in its pool.
        measured: bytes that each rank holds, without what came after the load.
        page_hashes: of the pages that can be shared now, 16 bytes each.
        prefixes: of prompts, that clients gave names to.
    """

    def __init__(self, ready: Sequence[Ready]) -> None:
        self.kv_pages = min(report.kv_pages for report in ready)
        self.page_hashes: set[bytes] = set()
        self.prefixes = Prefixes()
        self.measured = [report.memory.total for report in ready]
        self._step = StepReport(step=0, sequences=[], running=0, waiting=0, pages_free=self.kv_pages)

    def take(self, steps: Sequence[StepReport]) -> None:
        """Steps that were reported, in their order; counts in them run from the load."""
        for step in steps:
            if step.evicted:
                self.page_hashes.difference_update(step.evicted)
                self.prefixes.forget(step.evicted)
            if step.cached:
                self.page_hashes.update(step.cached)
        self._step = steps[-1]

    def resize(self, pages: int, page_bytes: Sequence[int]) -> None:
        """Its pool has `pages` from now on, of so many bytes each on each of its ranks."""
        more = pages - self.kv_pages
        self.measured = [held + more * size for held, size in zip(self.measured, page_bytes, strict=True)]
        self.kv_pages = pages

    @property
    def sequences_waiting(self) -> int:
        """That the worker had no place for in its last step."""
        return self._step.waiting

    def doubt(self, pages: Sequence[bytes]) -> None:
        """Who was to compute those pages has left: those that are not there will not come."""
        self.prefixes.forget(page for page in pages if page not in self.page_hashes)

    def state(self, beside: int) -> dict[str, int]:
        """Fields of `ModelState`; `beside` are bytes of what came after the load."""
        step = self._step
        return {
            "bytes_measured": sum(self.measured) + beside,
            "pages_total": self.kv_pages,
            "pages_free": step.pages_free,
            "pages_cached": step.pages_cached,
            "prompt_tokens": step.prompt_tokens,
            "cached_tokens": step.cached_tokens,
            "preemptions": step.preemptions,
            "out_of_memory": step.out_of_memory,
            "steps": step.step,
            "drafted": step.drafted,
            "accepted": step.accepted,
        }
