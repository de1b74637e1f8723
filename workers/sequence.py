"""One request inside the scheduler."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from ipc.worker_messages import Submit
from workers.plan import Scheduled


@dataclass(slots=True, eq=False)
class Sequence:
    """One stream of tokens on its way through the engine.

    `token_ids` holds prompt and output together; the first `num_computed` of them have their keys and
    values in `pages`. Everything else about progress is derived from those two.
    """

    request: Submit
    token_ids: array[int]
    prompt_len: int
    max_len: int  # tokens at which it ends with "length"
    stop_ids: frozenset[int]
    started: bool = False  # its supervisor knows that it left the queue
    slot: int | None = None  # None while it waits
    decode: Scheduled | None = None  # the entry of a step that needs no page, made once per slot
    pages: list[int] = field(default_factory=list)  # page numbers, in order
    num_computed: int = 0

    @property
    def num_pending(self) -> int:
        """Tokens that the next steps must feed: 1 in decode, more in prefill."""
        return len(self.token_ids) - self.num_computed
